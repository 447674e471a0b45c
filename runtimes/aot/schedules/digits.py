"""Products of numbers of three bytes with narrow weights: each panel is read once for all digits of a row.

for each panel of P columns, for each row:
    int8     part [3, P] = sum_k d[p, k] w[k, :]                         in registers
             y [P] = (65536 part[0] + 256 part[1] + part[2]) scale
    4 bits   for each group of 32 inputs: part [3, P] of the group; y [P] += its number times two scales
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names
from edgemem.runtimes.aot.schedules.matmul import UNROLLED, follow, side_by_side

PART, JOINED = "digit_part", "digit_joined"


def schedule(sch: Any, machine: Machine) -> None:
    """The order above; what follows the product is computed on each panel."""
    names = block_names(sch)
    part, joined, followers = sch.get_sblock(PART), sch.get_sblock(JOINED), names[names.index(JOINED) + 1 :]
    panel = next(int(r.source.shape[-1]) for r in sch.get(part).reads if is_panel(r.source))
    lanes = min(machine.lanes, panel & -panel)
    rows = len(sch.get(joined).writes[0].region) - 1
    *outer, n = sch.get_loops(joined)[: rows + 1]
    group = sch.get_loops(joined)[rows + 1 :]
    column, in_column = sch.split(n, [None, panel])
    vector, lane = sch.split(in_column, [None, lanes])
    sch.reorder(column, *outer, *group, vector, lane)
    if followers:
        sch.set_scope(joined, 0, "local")
        follow(sch, followers, outer[-1], lanes)
    sch.set_scope(part, 0, "local")
    sch.compute_at(part, group[0] if group else outer[-1], preserve_unit_loops=True)
    step, unrolled = in_part(sch, part, rows + 1 + len(group), lanes)
    if lanes > 1:
        sch.vectorize(lane)
    for loop in (vector, *unrolled):
        sch.unroll(loop)
    side_by_side(sch, [column, *outer])
    sch.decompose_reduction(part, step)
    if group:
        sch.decompose_reduction(joined, group[0])


def in_part(sch: Any, part: Any, axes: int, lanes: int) -> tuple[Any, list[Any]]:
    """Order the sum of one part, whose own rows, group and digit are `axes`; its outermost loop, those to unroll."""
    count = len(sch.get(part).iter_vars)
    own = sch.get_loops(part)[-count:]
    digit, column, *sums = own[axes - 1 :]
    vector, lane = sch.split(column, [None, lanes])
    extent = int(sch.get(sums[0]).extent)
    outer, inner = sch.split(sums[0], [None, next(u for u in (UNROLLED, 3, 2, 1) if extent % u == 0)])
    sch.reorder(outer, inner, *sums[1:], digit, vector, lane)
    if lanes > 1:
        sch.vectorize(lane)
    return outer, [inner, *sums[1:], digit, vector]


def is_panel(buffer: Any) -> bool:
    return str(buffer.ty.dtype) == "int32" and len(buffer.shape) == 3
