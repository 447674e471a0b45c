"""The loops of `edgemem.runtimes.aot.attention`: rows of a cache outside, vectors of a head inside."""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.lowering import SHARED
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names, is_reduction
from edgemem.runtimes.aot.schedules.rows import in_vectors, lanes_of

PRODUCT, SCORES = "scores_product", "scores_result"
WEIGHTED, TOTAL = "weighted_rows", "weighted_total"
PARTS, TOGETHER = 4, 8  # stretches of the cache; rows of it that are read side by side


def is_attention(names: list[str]) -> bool:
    return any(name.startswith((SCORES, WEIGHTED, TOTAL)) for name in names)


def schedule(sch: Any, machine: Machine) -> None:
    """The order of whichever of the three it is."""
    names = block_names(sch)
    if SCORES in names:
        scores(sch, machine, names)
    elif WEIGHTED in names:
        weighted(sch, machine, sch.get_sblock(WEIGHTED))
    else:
        for name in names:
            summed(sch, machine, sch.get_sblock(name))


def scores(sch: Any, machine: Machine, names: list[str]) -> None:
    """One row of the cache after another; of each its heads."""
    _, head, query, row = sch.get_loops(sch.get_sblock(SCORES))
    sch.reorder(row, head, query)
    for name in reversed(names):
        if name != SCORES:
            sch.compute_at(sch.get_sblock(name), query, preserve_unit_loops=True)
            in_vectors(sch, name, machine)
    sch.annotate(row, SHARED, 1)


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
