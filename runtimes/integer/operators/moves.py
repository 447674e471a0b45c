"""Reshape, Transpose, Slice, Split, Concat, Gather by constants: nothing until a kernel needs elements side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import attribute
from edgemem.runtimes.integer.operation import COUNTERS, Array, Operation, nested, place
from edgemem.runtimes.integer.operators import rows, whole
from edgemem.runtimes.integer.values import Fixed, Ints, Value, Whole, Wide
from edgemem.runtimes.integer.views import Piece, loops, row_major

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering


# --- kernels ---------------------------------------------------------------------------------------------------------


def move(parts: Sequence[Piece], tensors: Sequence[Tensor], shape: Sequence[int], y: Tensor) -> Operation:
    """Parts of buffers to where they lie in the result; `tensors` are the buffers by part."""
    reads = tuple(dict.fromkeys(tensors))
    numbers = [reads.index(tensor) for tensor in tensors]
    targets = [indices(piece.shape, start_of(piece, shape), row_major(shape)) for piece in parts]
    sources = [indices(piece.shape, piece.view.start, piece.view.strides) for piece in parts]

    def run(given: Sequence[Array]) -> Array:
        result: Array = np.empty(int(np.prod(y.shape)), y.dtype)
        for number, target, source in zip(numbers, targets, sources, strict=True):
            result[target] = given[number][source]
        return result

    lines = [copy_text(piece, number, shape) for piece, number in zip(parts, numbers, strict=True)]
    same = {
        number
        for number, tensor in enumerate(reads)
        if tensor.dtype == y.dtype and unharmed(number, numbers, targets, sources)
    }
    return Operation("move", reads, y, "\n".join(lines), run, frozenset(same))


def start_of(piece: Piece, shape: Sequence[int]) -> int:
    """The first element of a piece in the whole."""
    return sum(corner * stride for corner, stride in zip(piece.corner, row_major(shape), strict=True))


def indices(shape: Sequence[int], start: int, strides: Sequence[int]) -> Array:
    """Flat indices of the elements of a view, in order."""
    found: Array = np.full((1,) * len(shape), start)
    for axis, (extent, stride) in enumerate(zip(shape, strides, strict=True)):
        found = found + np.arange(extent).reshape([-1 if other == axis else 1 for other in range(len(shape))]) * stride
    return found.reshape(-1)


def unharmed(number: int, numbers: Sequence[int], targets: Sequence[Array], sources: Sequence[Array]) -> bool:
    """Whether a buffer may lie where the result is written: every element is read before it is written over."""
    order, written = np.concatenate(targets), np.full(sum(len(t) for t in targets), -1)
    written[order] = np.arange(len(order))
    first = 0
    for which, source in zip(numbers, sources, strict=True):
        now = np.arange(first, first + len(source))
        first += len(source)
        if which == number and ((source >= len(written)) | (written[np.minimum(source, len(written) - 1)] < now)).any():
            return False
    return True


def copy_text(piece: Piece, number: int, shape: Sequence[int]) -> str:
    """C for one piece."""
    start, nest = start_of(piece, shape), loops(piece.shape, [row_major(shape), piece.view.strides])
    if len(nest) == 1 and (nest[0][0] == 1 or nest[0][1] == (1, 1)):
        return f"memmove(w + {start}, r{number} + {piece.view.start}, {nest[0][0]} * sizeof *w);"
    names = list(COUNTERS[: len(nest)])
    target = place(start, names, [steps[0] for _, steps in nest])
    source = place(piece.view.start, names, [steps[1] for _, steps in nest])
    text = nested(names, [extent for extent, _ in nest], f"w[{target}] = r{number}[{source}];")
    counters, *loops_text = text.replace("int32_t i = 0, ", "int32_t ").replace(", ++i", "").splitlines()
    return "\n".join(["{", *(f"    {line}" for line in (counters, *loops_text)), "}"])


def gather(x: Tensor, table: Tensor, y: Tensor) -> Operation:
    """Elements of a buffer in another order."""
    count = int(np.prod(y.shape))
    c = f"int32_t i;\nfor (i = 0; i < {count}; ++i) w[i] = r0[r1[i]];"
    return Operation("gather", (x, table), y, c, lambda given: given[0][given[1]])


# --- rules -----------------------------------------------------------------------------------------------------------


def moving(lowering: Lowering, node: Any, change: Callable[[Array], Array]) -> Value:
    value = lowering.value(node.input[0])
    if isinstance(value, (Ints, Wide, Whole)):
        return value.moved(change(value.places))
    if isinstance(value, Fixed):
        return value.moved(change(value.real))
    raise NotInteger(f"{node.op_type} of what is not rounded yet")


def reshape(lowering: Lowering, node: Any) -> Value:
    wanted = [int(extent) for extent in lowering.fixed(node.input[1])]
    kept = not attribute(node, "allowzero", 0)
    return moving(
        lowering, node, lambda a: a.reshape([a.shape[i] if e == 0 and kept else e for i, e in enumerate(wanted)])
    )


def flatten(lowering: Lowering, node: Any) -> Value:
    axis = attribute(node, "axis", 1)
    return moving(lowering, node, lambda a: a.reshape(int(np.prod(a.shape[:axis], dtype=np.int64)), -1))


def transpose(lowering: Lowering, node: Any) -> Value:
    return moving(lowering, node, lambda a: a.transpose(attribute(node, "perm", None)))


def identity(lowering: Lowering, node: Any) -> Value:
    return lowering.value(node.input[0])


def expand(lowering: Lowering, node: Any) -> Value:
    wanted = tuple(int(extent) for extent in lowering.fixed(node.input[1]).reshape(-1))
    return moving(lowering, node, lambda a: np.broadcast_to(a, np.broadcast_shapes(a.shape, wanted)))


def unsqueeze(lowering: Lowering, node: Any) -> Value:
    axes = tuple(int(axis) for axis in lowering.fixed(node.input[1]).reshape(-1))
    return moving(lowering, node, lambda a: np.expand_dims(a, axes))


def squeeze(lowering: Lowering, node: Any) -> Value:
    axes = tuple(int(axis) for axis in lowering.fixed(node.input[1]).reshape(-1)) if len(node.input) > 1 else None
    return moving(lowering, node, lambda a: np.squeeze(a, axes))


def gather_rule(lowering: Lowering, node: Any) -> Value:
    axis, data, index = attribute(node, "axis", 0), lowering.value(node.input[0]), lowering.value(node.input[1])
    if isinstance(index, Whole):
        if not isinstance(data, Fixed) or axis != 0:
            raise NotInteger("Gather by a computed index from what is no constant table")
        return rows.looked_up(data, index)
    chosen = lowering.fixed(node.input[1]).astype(np.int64)
    return moving(lowering, node, lambda a: np.take(a, chosen, axis=axis))


def slice_rule(lowering: Lowering, node: Any) -> Value:
    given = [[int(v) for v in lowering.fixed(name).reshape(-1)] for name in node.input[1:] if name]
    starts, ends = given[:2]
    axes = given[2] if len(given) > 2 else list(range(len(starts)))
    steps = given[3] if len(given) > 3 else [1] * len(starts)

    def cut(a: Array) -> Array:
        where: list[slice] = [slice(None)] * a.ndim
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            where[axis] = slice(start, end, step)
        return a[tuple(where)]

    return moving(lowering, node, cut)


def split(lowering: Lowering, node: Any) -> tuple[Value, ...]:
    axis, count = attribute(node, "axis", 0), len(node.output)
    sizes = [int(v) for v in lowering.fixed(node.input[1]).reshape(-1)] if len(node.input) > 1 else None

    def part(index: int) -> Callable[[Array], Array]:
        def cut(a: Array) -> Array:
            each = -(-a.shape[axis] // count)
            ends = np.cumsum(sizes)[:-1] if sizes is not None else np.arange(1, count) * each
            parts: list[Array] = np.split(a, ends, axis)
            return parts[index]

        return cut

    return tuple(moving(lowering, node, part(index)) for index in range(count))


def concat(lowering: Lowering, node: Any) -> Value:
    values, axis = [lowering.value(name) for name in node.input], attribute(node, "axis", 0)
    if all(isinstance(value, Fixed) for value in values):
        scale = values[0].scale if isinstance(values[0], Fixed) else None
        return Fixed(np.concatenate([value.real for value in values if isinstance(value, Fixed)], axis), scale)
    if any(isinstance(value, Wide) for value in values):
        return Wide(np.concatenate([lowering.as_wide(value).places for value in values], axis))
    if any(isinstance(value, Whole) for value in values):
        return masks(lowering, values, axis)
    like = next((value for value in values if isinstance(value, Ints)), None) or lowering.ints(values[0])
    return like.moved(np.concatenate([whole.in_steps(lowering, value, like).places for value in values], axis))


def masks(lowering: Lowering, values: Sequence[Value], axis: int) -> Whole:
    """Masks, or counts, side by side; constants become what they are."""
    kinds = {value.dtype for value in values if isinstance(value, Whole)}
    if len(kinds) > 1:
        raise NotInteger("Concat of counts and masks")
    kind = kinds.pop()
    parts = [
        lowering.places(value.real.astype(kind)) if isinstance(value, Fixed) else whole.counted(lowering, value)
        for value in values
    ]
    return Whole(np.concatenate(parts, axis), kind)


RULES = {
    "Reshape": reshape, "Flatten": flatten, "Transpose": transpose, "Identity": identity, "Expand": expand,
    "Unsqueeze": unsqueeze, "Squeeze": squeeze, "Gather": gather_rule, "Slice": slice_rule, "Split": split,
    "Concat": concat,
}  # fmt: skip
