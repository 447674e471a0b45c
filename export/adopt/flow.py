"""Time in a graph: where a value has it, and how its rows in a stream belong to those of the whole sequence.

row n of the stream is row n - offset of the whole sequence
the whole sequence has `short` rows fewer than (frames of the input) / rate
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgemem.export.adopt.build import Array
from edgemem.state import StateRole


@dataclass(frozen=True)
class Flow:
    """Time along `axis`, one row for `rate` rows of the input; `pads` rows of `fill` still wait to be put around it."""

    axis: int
    rate: int = 1
    offset: int = 0
    short: int = 0
    pads: tuple[int, int] = (0, 0)
    fill: float = 0.0


@dataclass(frozen=True)
class Carried:
    """A state that streaming adds: what a step leaves for the next one. `start` is of one stream, batch axis first."""

    name: str
    start: Array
    role: StateRole
    low: float = -1.0
    high: float = 1.0


@dataclass(frozen=True)
class Window:
    """What a convolution or a pool sees along time: `span` rows and the one that it stands at, every `stride` rows.

    row t sees rows t stride - left .. t stride - left + span
    """

    span: int  # (kernel - 1) * dilation
    stride: int
    left: int
    right: int

    def lag(self, offset: int) -> int:
        """Rows that the windows of a stream end before the last of every `stride`.

        So many that its rows are rows of the whole sequence, and that none comes before the input's row of its number.
        """
        ahead = self.span - self.left + offset - (self.stride - 1)
        return -ahead if ahead < 0 else -ahead % self.stride

    def tail(self, offset: int) -> int:
        """Rows of its past that a step sees again; below 0: rows of the step that no window sees."""
        return self.span + self.lag(offset) - (self.stride - 1)

    def after(self, flow: Flow) -> tuple[int, int]:
        """Offset and shortness of what comes out."""
        ahead = self.span - self.left + flow.offset - (self.stride - 1) + self.lag(flow.offset)
        rows = (self.left + self.right - self.span - 1 - flow.short) // self.stride + 1
        return ahead // self.stride, -rows


def axis_after(before: Sequence[int], after: Sequence[int], axis: int) -> int | None:
    """Where an axis is after a Reshape: as long, with as many elements before it; None where it has been cut up."""
    front = product(before[:axis])
    places = [i for i, size in enumerate(after) if size == before[axis] and product(after[:i]) == front]
    if axis in places:
        return axis
    from_the_end = len(after) - (len(before) - axis)
    return from_the_end if from_the_end in places else (places[0] if places else None)


def product(sizes: Sequence[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found


def attribute_ints(node: ir.Node, name: str, default: Sequence[int]) -> list[int]:
    found = node.attributes.get(name)
    return list(default) if found is None else list(found.as_ints())


def attribute_int(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()
