"""Products with vector codes by lookup: x times every codebook entry once, then one table entry per code.

table [K / dim, codes] = x [K / dim, dim] . book [codes, dim]
y [N] = s [N] sum_g table[g, code[g, :]]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names

if TYPE_CHECKING:
    from edgemem.runtimes.aot.quantized.weights import Codes

TABLE, TOTAL, SCALED = "lookup_table", "lookup_total", "lookup_scaled"
AT_ONCE = 4  # parts of x whose tables are read together


def pays(rows: int, matrix: Codes, machine: Machine) -> bool:
    """Whether tables cost less than decoding: they are made anew for every row of x."""
    inputs, outputs = matrix.shape
    terms, entries = len(matrix.codes), matrix.books.shape[1]
    tables = rows * terms * (inputs * entries / machine.lanes + outputs * inputs / matrix.dim)
    decoding = terms * inputs * outputs + rows * inputs * outputs / machine.lanes
    return bool(tables < decoding)


def schedule(sch: Any, machine: Machine) -> None:
    """Tables in vectors; sums of a few parts at a time, so that the accumulators are read and written less often."""
    names = block_names(sch)
    table, total = sch.get_sblock(TABLE), sch.get_sblock(TOTAL)
    *_, entry, d = sch.get_loops(table)
    lanes = machine.lanes
    while int(sch.get(entry).extent) % lanes:
        lanes //= 2
    outer, lane = sch.split(entry, [None, max(1, lanes)])
    sch.reorder(outer, d, lane)
    if lanes > 1:
        sch.vectorize(lane)
    sch.unroll(d)
    sch.decompose_reduction(table, d)
    *_, column, term, part = sch.get_loops(total)
    extent = int(sch.get(part).extent)
    part, together = sch.split(part, [None, next(n for n in (AT_ONCE, 3, 2, 1) if extent % n == 0)])
    sch.reorder(term, part, column, together)
    sch.unroll(together)
    sch.decompose_reduction(total, term)
    for name in names[names.index(TOTAL) + 1 : -1]:
        sch.compute_inline(sch.get_sblock(name))
