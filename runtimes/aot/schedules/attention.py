"""The loops of `edgemem.runtimes.aot.attention`: rows of a cache outside, vectors of a head inside."""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.lowering import SHARED
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names, is_reduction
from edgemem.runtimes.aot.schedules.rows import lanes_of

WEIGHTED, TOTAL = "weighted_rows", "weighted_total"
PARTS, TOGETHER = 4, 8  # stretches of the cache; rows of it that are read side by side


def is_attention(names: list[str]) -> bool:
    return any(name.startswith((WEIGHTED, TOTAL)) for name in names)


def schedule(sch: Any, machine: Machine) -> None:
    """The order of whichever of the two it is."""
    names = block_names(sch)
    if WEIGHTED in names:
        weighted(sch, machine, sch.get_sblock(WEIGHTED))
    else:
        for name in names:
            summed(sch, machine, sch.get_sblock(name))


def weighted(sch: Any, machine: Machine, block: Any) -> None:
    """Blocks of rows; of each all heads, a vector at a time."""
    part, head, query, d, group, row = sch.get_loops(block)
    vector, lane = sch.split(d, [None, lanes_of(machine, int(sch.get(d).extent))])
    sch.reorder(part, group, head, query, vector, row, lane)
    if int(sch.get(lane).extent) > 1:
        sch.vectorize(lane)
    sch.unroll(row)
    sch.decompose_reduction(block, group)
    sch.annotate(part, SHARED, 1)


def summed(sch: Any, machine: Machine, block: Any) -> None:
    """A sum of rows, vectors innermost."""
    *outer, d = sch.get_loops(block)[:4]
    vector, lane = sch.split(d, [None, lanes_of(machine, int(sch.get(d).extent))])
    if is_reduction(sch, block):
        row = sch.get_loops(block)[-1]
        sch.reorder(row, *outer, vector, lane)
    if int(sch.get(lane).extent) > 1:
        sch.vectorize(lane)
    if is_reduction(sch, block):
        sch.decompose_reduction(block, sch.get_loops(block)[0])
