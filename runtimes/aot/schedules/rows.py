"""Reductions along rows: layer norm and softmax, one row after another, in vector lanes.

sum over N   ->   L partial sums over N / L, then halved log2 L times, then the N mod L last elements
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from edgemem.runtimes.aot import mathops
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import SIDE_BY_SIDE, block_names, is_reduction

Tensor = Any
LAST = "row_result"  # name of the block that writes the output; the others are computed row by row

LONG = 8  # vectors; a row of more is worth a remainder
LONGEST = 64  # vectors; a row of more has these sums even where they leave a remainder


def lanes_of(machine: Machine, columns: int) -> int:
    """The widest vector that divides a row."""
    lanes = machine.lanes
    while columns % lanes:
        lanes //= 2
    return max(1, lanes)


def lanes_for(machine: Machine, columns: int) -> int:
    """Lanes of a row's partial sums: a divisor, or of a long row that has none the machine's, and a remainder."""
    lanes = lanes_of(machine, columns)
    lanes = machine.lanes if 2 * lanes < machine.lanes and columns >= LONG * machine.lanes else lanes
    several = SIDE_BY_SIDE * lanes
    fitting = columns >= 2 * several and columns % several == 0
    return several if lanes > 1 and (fitting or columns >= LONGEST * lanes) else lanes


def reduced(
    element: Callable[..., Any], outer: list[Any], columns: int, lanes: int, name: str, reducer: Any, pair: Any
) -> Tensor:
    """One number per row of `outer` [rows...]: `element(*row, column)` reduced over all columns."""
    step, rest = te.reduce_axis((0, columns // lanes), name=f"{name}_step"), columns % lanes
    first = columns - rest
    part = te.compute(
        (*outer, lanes), lambda *i: reducer(element(*i[:-1], step * lanes + i[-1]), axis=step), name=f"{name}_{lanes}"
    )
    while lanes > 1:
        lanes //= 2
        part = halved(part, outer, lanes, name, pair)
    if not rest:
        return part
    last = te.reduce_axis((0, rest), name=f"{name}_last")
    tail = te.compute((*outer, 1), lambda *i: reducer(element(*i[:-1], first + last), axis=last), name=f"{name}_tail")
    return te.compute((*outer, 1), lambda *i: pair(part(*i), tail(*i)), name=f"{name}_whole")


def halved(part: Tensor, outer: list[Any], lanes: int, name: str, pair: Any) -> Tensor:
    """Neighbouring halves of a vector combined."""
    return te.compute(
        (*outer, lanes), lambda *i: pair(part(*i), part(*i[:-1], i[-1] + lanes)), name=f"{name}_half_{lanes}"
    )


def add(a: Any, b: Any) -> Any:
    return a + b


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, epsilon: float, lanes: int) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) scale + shift over the last axis; the variance from the differences."""
    outer, columns = list(x.shape[:-1]), int(x.shape[-1])
    inverse = tirx.const(1.0 / columns, "float32")
    total = reduced(x, outer, columns, lanes, "sum", te.sum, add)

    def squared(*i: Any) -> Any:
        difference = x(*i) - total(*i[:-1], 0) * inverse
        return difference * difference

    square = reduced(squared, outer, columns, lanes, "square", te.sum, add)
    one = tirx.const(1.0, "float32")
    deviation = te.compute(
        (*outer, 1),
        lambda *i: one / tirx.sqrt(square(*i[:-1], 0) * inverse + tirx.const(epsilon, "float32")),
        name="deviation",
    )
    return te.compute(
        x.shape,
        lambda *i: (x(*i) - total(*i[:-1], 0) * inverse) * deviation(*i[:-1], 0) * scale(i[-1]) + shift(i[-1]),
        name=LAST,
    )


def softmax(x: Tensor, lanes: int) -> Tensor:
    """e^(x - max) / sum over the last axis."""
    outer, columns = list(x.shape[:-1]), int(x.shape[-1])
    top = reduced(x, outer, columns, lanes, "top", te.max, tirx.max)
    power = te.compute(x.shape, lambda *i: mathops.exp(x(*i) - top(*i[:-1], 0)), name="power")
    total = reduced(power, outer, columns, lanes, "sum", te.sum, add)
    one = tirx.const(1.0, "float32")
    inverse = te.compute((*outer, 1), lambda *i: one / total(*i[:-1], 0), name="inverse")
    return te.compute(x.shape, lambda *i: power(*i) * inverse(*i[:-1], 0), name=LAST)


def schedule(sch: Any, machine: Machine) -> None:
    """All stages of a row before the next row; every innermost loop in vectors."""
    names = block_names(sch)
    *outer, _ = sch.get_loops(sch.get_sblock(LAST))
    if outer:
        row = sch.fuse(*outer)
        for name in reversed(names):
            if name != LAST:
                sch.compute_at(sch.get_sblock(name), row, preserve_unit_loops=True)
    for name in names:
        in_vectors(sch, name, machine)


def in_vectors(sch: Any, name: str, machine: Machine) -> None:
    """One stage: lanes innermost, a reduction's steps around them."""
    block = sch.get_sblock(name)
    *_, inner = loops = sch.get_loops(block)
    if is_reduction(sch, block):
        lane, step = loops[-2:]
        sch.reorder(step, lane)
        sch.vectorize(lane)
        sch.decompose_reduction(block, step)
        return
    extent = int(sch.get(inner).extent)
    lanes = lanes_for(machine, extent)
    if extent % lanes:
        return  # LLVM's vectors have a remainder
    if extent > lanes > 1:
        _, inner = sch.split(inner, [None, lanes])
    if lanes > 1:
        sch.vectorize(inner)
