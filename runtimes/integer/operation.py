"""One call of a step: what it reads and writes, its C text, and the same arithmetic in NumPy.

In the C text `r0`, `r1` … are the buffers that an operation reads, `w` is the one that it writes, `t` its scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.values import MASK
from edgemem.runtimes.integer.views import loops, row_major, view

Array = np.ndarray[Any, np.dtype[Any]]
C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float", "int64": "int64_t"}
LIMITS = {"int8": (-128, 127), "int16": (-32768, 32767)}
COUNTERS = "abcdefgh"  # of nested loops


@dataclass(frozen=True)
class Out:
    """How a result is stored: its type, what stands for zero, and the limits of it."""

    dtype: str
    zero: int
    low: int
    high: int

    def c(self) -> str:
        return f"const edgemem_out out = {{{np.dtype(self.dtype).itemsize}, {self.zero}, {self.low}, {self.high}}};"

    def put(self, value: Array, shift: int | Array) -> Array:
        """Halves go up."""
        rounded = ((value + (np.int64(1) << (np.int64(shift) - 1))) >> shift) + self.zero
        clipped: Array = np.clip(rounded, self.low, self.high).astype(self.dtype)
        return clipped


@dataclass(frozen=True)
class Operation:
    """One call of a step: flat arrays of `reads`, in order, give the flat array of `write`.

    `in_place` are the reads that may lie where the result is written; `work_bytes` is the size of its scratch.
    """

    kind: str
    reads: tuple[Tensor, ...]
    write: Tensor
    c: str
    run: Callable[[Sequence[Array]], Array]
    in_place: frozenset[int] = frozenset()
    work_bytes: int = 0


@dataclass(frozen=True)
class Operand:
    """What an elementwise operation reads for every element of its result: `places` [shape], all of one tensor."""

    tensor: Tensor
    places: Array
    zero: int = 0

    def index(self) -> Array:
        index: Array = (self.places & MASK).reshape(-1)
        return index

    def at_same_place(self, y: Tensor) -> bool:
        """Whether the element that is read for element i of y is element i of a tensor of the same type."""
        return self.tensor.dtype == y.dtype and bool(np.array_equal(self.index(), np.arange(self.places.size)))


def elementwise(
    kind: str,
    operands: Sequence[Operand],
    y: Tensor,
    statement: Callable[[Sequence[str]], str],
    compute: Callable[[Sequence[Array]], Array],
    head: Sequence[str] = (),
) -> Operation:
    """An operation on one element after the other.

    `statement` is the C text for element `i`, given the C text of the operands, `compute` the same for whole arrays.
    """
    indices = [operand.index() for operand in operands]

    def run(given: Sequence[Array]) -> Array:
        return compute([array[index] for array, index in zip(given, indices, strict=True)])

    c = "\n".join([*head, loop(operands, y, statement)])
    reads = tuple(operand.tensor for operand in operands)
    same = {i for i, operand in enumerate(operands) if operand.at_same_place(y) and reads.count(operand.tensor) == 1}
    return Operation(kind, reads, y, c, run, frozenset(same))


def loop(operands: Sequence[Operand], y: Tensor, statement: Callable[[Sequence[str]], str]) -> str:
    """C: nested loops over the elements of y, as few as the operands allow."""
    shape = operands[0].places.shape
    views = [view(operand.places) for operand in operands]
    assert all(v is not None for v in views)
    nest = loops(shape, [row_major(shape), *(v.strides for v in views if v is not None)])
    names = ["i"] if len(nest) == 1 else list(COUNTERS[: len(nest)])
    reads = []
    for index, (operand, found) in enumerate(zip(operands, views, strict=True)):
        assert found is not None
        address = place(found.start, names, [steps[index + 1] for _, steps in nest])
        read = f"r{index}[{address}]"
        reads.append(read if operand.zero == 0 else f"({read} - ({operand.zero}))")
    return nested(names, [extent for extent, _ in nest], statement(reads))


def place(start: int, names: Sequence[str], strides: Sequence[int]) -> str:
    """C: an index into a buffer."""
    parts = [
        name if stride == 1 else f"{name} * {stride}" for name, stride in zip(names, strides, strict=True) if stride
    ]
    return " + ".join(([str(start)] if start or not parts else []) + parts)


def nested(names: Sequence[str], extents: Sequence[int], statement: str) -> str:
    """C: loops around a statement; `i` counts all of its executions."""
    counters = "int32_t i;" if list(names) == ["i"] else f"int32_t i = 0, {', '.join(names)};"
    lines, more = [counters], "" if list(names) == ["i"] else ", ++i"
    for depth, (name, extent) in enumerate(zip(names, extents, strict=True)):
        last = more if depth == len(names) - 1 else ""
        lines.append(f"{'    ' * depth}for ({name} = 0; {name} < {extent}; ++{name}{last})")
    return "\n".join([*lines, f"{'    ' * len(names)}{statement}"])


def literal(value: np.float32) -> str:
    """A C literal that is exactly this number."""
    return f"{float(value).hex()}f"
