"""Products with 4-bit weights in groups of 32 inputs, and the sums of a row's groups, which come before them.

for each panel of P columns, for each tile of rows, for each group:
    part [R, P] = sum of 32 x[r, k] f[k, :]                f = 1.5 + q / 16, in registers
    acc  [R, P] += (part - 1.5 sum x[r, group]) 16 s[group, :]
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names
from edgemem.runtimes.aot.schedules.matmul import SCALAR_PANEL, Panel, follow, side_by_side, tile_rows

SUM, PART, TOTAL = "group_sum", "group_part", "group_total"
LANES = 8  # partial sums of a group
VECTORS = {True: (4, 3), False: (2, 3)}  # per panel: many registers, few


def panel_of(machine: Machine, columns: int) -> Panel:
    """Panels of few vectors: each takes two accumulators."""
    if machine.lanes == 1:
        return Panel(SCALAR_PANEL, -(-columns // SCALAR_PANEL), columns)
    vectors = -(-columns // machine.lanes)
    widths = VECTORS[machine.registers >= 32]
    width = next((width for width in widths if vectors % width == 0), min(vectors, widths[0]))
    return Panel(width * machine.lanes, -(-vectors // width), columns)


def schedule(sch: Any, machine: Machine) -> None:
    """The order above; what follows the product is computed on each tile."""
    names = block_names(sch)
    followers = names[names.index(TOTAL) + 1 :]
    total, part = sch.get_sblock(TOTAL), sch.get_sblock(PART)
    weights = next(r.source for r in sch.get(part).reads if len(r.source.shape) == 3 and is_word(r.source))
    panel = int(weights.shape[-1])
    lanes = min(machine.lanes, panel & -panel)
    *outer, column, group = sch.get_loops(total)
    sizes = [int(sch.get(loop).extent) for loop in outer]
    at = max((index for index, extent in enumerate(sizes) if extent > 1), default=len(sizes) - 1)
    row, batch = outer[at], [*outer[:at], *outer[at + 1 :]]
    tile = tile_rows(machine, sizes[at], 2 * panel // lanes)
    row, in_row = sch.split(row, [None, tile])
    column, in_column = sch.split(column, [None, panel])
    vector, lane = sch.split(in_column, [None, lanes])
    sch.reorder(*batch, column, row, group, in_row, vector, lane)
    if followers:
        sch.set_scope(total, 0, "local")
        follow(sch, followers, row, lanes)
    sch.set_scope(part, 0, "local")
    sch.compute_at(part, group, preserve_unit_loops=True)
    *_, rows_of_part, _, part_column, word = (
        sch.get_loops(part) if at == len(sizes) - 1 else reordered(sch, part, at, len(sizes))
    )
    part_vector, part_lane = sch.split(part_column, [None, lanes])
    sch.reorder(word, rows_of_part, part_vector, part_lane)
    if lanes > 1:
        sch.vectorize(lane)
        sch.vectorize(part_lane)
    for loop in (vector, in_row, part_vector, rows_of_part, word):
        sch.unroll(loop)
    side_by_side(sch, [*batch, column, row])
    sch.decompose_reduction(part, word)
    sch.decompose_reduction(total, group)


def is_word(buffer: Any) -> bool:
    return str(buffer.ty.dtype) == "int32"


def schedule_sums(sch: Any, machine: Machine) -> None:
    """Partial sums of a group in a vector."""
    block = sch.get_sblock(SUM)
    *_, lane, step = sch.get_loops(block)
    sch.reorder(step, lane)
    if machine.lanes > 1:
        sch.vectorize(lane)
    sch.decompose_reduction(block, step)


def reordered(sch: Any, part: Any, at: int, axes: int) -> list[Any]:
    """The loops of `part` with the row axis just before its group and column."""
    loops = sch.get_loops(part)
    own = loops[-(axes + 3) :]
    return [*own[:at], *own[at + 1 : axes], own[at], *own[axes:]]
