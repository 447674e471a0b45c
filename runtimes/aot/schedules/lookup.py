"""Products with vector codes: the entry of the codebook that a code names is read into a vector and multiplied at once.

    for each panel of C outputs, for each tile of R rows:
        accumulators [R, C, dim] in registers; for each group g of inputs, for each output n of the panel:
            acc[r, n, :] += x[r, g, :] * sum_r book_r[code_r[g, n], :]
    y [N] = s [N] sum_d acc[:, d]

A table of x's products with all entries would save the multiplication, and cost as many reads: from a larger table,
that has to be made first.
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names
from edgemem.runtimes.aot.schedules.matmul import Panel, follow, side_by_side

PARTS, TOTAL = "lookup_parts", "lookup_total"
SPARE = 8  # registers for x, an entry and addresses
MOST_ROWS = 4  # at a time; a product of more rows decodes whole panels


def vector_of(machine: Machine, dim: int) -> int:
    """Elements of an entry that are one vector."""
    lanes = machine.lanes
    while dim % lanes:
        lanes //= 2
    return max(1, lanes)


def panel_of(machine: Machine, rows: int, columns: int, dim: int) -> Panel:
    """As many outputs as registers hold accumulators for, a number that divides all outputs if there is one."""
    vectors = max(1, rows) * dim // vector_of(machine, dim)
    most = max(2, min(16, (machine.registers - SPARE) // vectors))
    width = next((n for n in range(most, most // 2, -1) if columns % n == 0), most)
    return Panel(width, -(-columns // width), columns)


def schedule(sch: Any, machine: Machine) -> None:
    """The order above; what follows is computed on each tile."""
    names = block_names(sch)
    parts, total, followers = sch.get_sblock(PARTS), sch.get_sblock(TOTAL), names[names.index(TOTAL) + 1 :]
    codes = next(r.source for r in sch.get(parts).reads if str(r.source.ty.dtype).startswith("uint"))
    *outer, n = sch.get_loops(total)
    column, in_column = sch.split(n, [None, int(codes.shape[-1])])
    sch.reorder(column, *outer, in_column)
    sch.set_scope(parts, 0, "local")
    sch.compute_at(parts, column, preserve_unit_loops=True)
    *rows, entry, d, g = sch.get_loops(parts)[1:]
    vector, lane = sch.split(d, [None, vector_of(machine, int(sch.get(d).extent))])
    sch.reorder(g, entry, *rows, vector, lane)
    tile = [*outer, in_column, entry, *rows, vector]
    if followers:
        sch.set_scope(total, 0, "local")
        follow(sch, followers, column, 1)
    if int(sch.get(lane).extent) > 1:
        sch.vectorize(lane)
    for loop in tile:
        sch.unroll(loop)
    side_by_side(sch, [column, *outer])
    sch.decompose_reduction(parts, g)
