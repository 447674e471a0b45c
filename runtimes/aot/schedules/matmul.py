"""Matrix products in register tiles; a constant right side lies in panels of whole vectors.

    w [K, N]  ->  panels [N / P, K, P]        P columns, zeros behind the last one
    for each panel, for each tile of R rows:
        accumulators [R, P] in registers; for k: acc[r, :] += x[r, k] * panel[k, :]
        what follows (bias, gates) on the tile, then one store

What follows and is larger than the product (a gate of one column over a whole row) has loops of its own, behind it.
R = 1 for a matrix-vector product. The weights are read once, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemem.runtimes.aot import ahead
from edgemem.runtimes.aot.lowering import SHARED
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules import spatial
from edgemem.runtimes.aot.schedules.blocks import block_names, is_reduction, written

Array = np.ndarray[Any, np.dtype[Any]]

PACKED = "packed_matmul"  # block name of a product with panels
PLAIN = "matmul"  # block name of TVM's own form
WIDTHS = {True: (4, 6, 5, 8, 7, 3), False: (8, 6, 7, 5, 4, 3)}  # vectors per panel: wide registers, narrow ones
SCALAR_PANEL = 4  # columns where there are no vectors
UNROLLED = 4  # steps of the sum at a time


@dataclass(frozen=True)
class Panel:
    """`count` panels of `columns` columns each, for a matrix of `width` columns."""

    columns: int
    count: int
    width: int

    def packed(self, weights: Array) -> Array:
        """[K, N] as [count, K, columns], zeros behind the last column."""
        padded = np.zeros((weights.shape[0], self.columns * self.count), weights.dtype)
        padded[:, : self.width] = weights
        return np.ascontiguousarray(padded.reshape(len(weights), self.count, self.columns).transpose(1, 0, 2))


def panel_of(machine: Machine, rows: int, columns: int) -> Panel:
    """The panel for a product of `rows` rows: a few whole vectors, as little padding as possible."""
    if machine.lanes == 1:
        return Panel(SCALAR_PANEL, -(-columns // SCALAR_PANEL), columns)
    vectors = -(-columns // machine.lanes)
    widths = WIDTHS[machine.lanes >= 16 or rows > 1]
    fitting = [width for width in widths if vectors % width == 0]
    if fitting:
        width = fitting[0]
    elif vectors <= widths[0]:
        width = vectors
    else:
        width = 4
    return Panel(width * machine.lanes, -(-vectors // width), columns)


def tile_rows(machine: Machine, rows: int, vectors: int) -> int:
    """Rows per tile: as many as divide `rows` and leave registers for a row of weights and one value."""
    most = max(1, (machine.registers - vectors - 1) // max(1, vectors))
    return max(r for r in range(1, min(most, rows, 8) + 1) if rows % r == 0)


def schedule(sch: Any, machine: Machine, name: str) -> None:
    """Tile the product called `name`; what follows it is computed on each tile while it is in registers."""
    block = sch.get_sblock(name)
    producers = inlined_before(sch, name)
    followers = block_names(sch)[block_names(sch).index(name) + 1 :]
    if grows(sch, block, followers):
        for follower in followers[:-1]:
            spatial.inline(sch, sch.get_sblock(follower))
        followers = []
    *outer, column, k = sch.get_loops(block)
    panel = panel_columns(sch, block, machine, name)
    if panel is None:
        sch.reorder(k, column)
        sch.vectorize(column) if int(sch.get(column).extent) in (2, 4, 8, 16) else None
        sch.decompose_reduction(block, k)
        return
    lanes = min(machine.lanes, panel & -panel)
    rows = [int(sch.get(loop).extent) for loop in outer]
    at = max((index for index, extent in enumerate(rows) if extent > 1), default=len(rows) - 1)
    # Tiles stay inside one axis: what follows is computed on boxes, and a tile across two axes is no box.
    row, batch = outer[at], [*outer[:at], *outer[at + 1 :]]
    tile = tile_rows(machine, int(sch.get(row).extent), max(1, panel // lanes))
    row, in_row = sch.split(row, [None, tile])
    column, in_column = sch.split(column, [None, panel])
    vector, lane = sch.split(in_column, [None, lanes])
    extent = int(sch.get(k).extent)
    steps = next(u for u in (UNROLLED, 3, 2, 1) if extent % u == 0)
    k, in_k = sch.split(k, [None, steps])
    if producers:
        sch.reorder(column, *batch, row, k, in_k, in_row, vector, lane)
    else:
        sch.reorder(*batch, column, row, k, in_k, in_row, vector, lane)
    for producer in reversed(producers):
        sch.compute_at(sch.get_sblock(producer), column, preserve_unit_loops=True)
    if followers:
        sch.set_scope(block, 0, "local")
        follow(sch, followers, row, lanes)
    if lanes > 1:
        sch.vectorize(lane)
    for loop in (vector, in_row, in_k):
        sch.unroll(loop)
    if name.startswith(PACKED) and (producers or not any(int(sch.get(loop).extent) > 1 for loop in batch)):
        ahead.annotate(sch, k, sch.get(block).reads[-1].source, machine)
    side_by_side(sch, [column, *batch, row] if producers else [*batch, column, row])
    sch.decompose_reduction(block, k)


def side_by_side(sch: Any, loops: list[Any]) -> None:
    """Mark the outermost loop that has turns to share, if TVM agrees that they may run beside each other.

    It does not see that of sums whose start is already a block of its own: this comes before `decompose_reduction`.
    """
    from tvm.s_tir.schedule import ScheduleError

    for loop in loops:
        if int(sch.get(loop).extent) > 1:
            try:
                sch.copy().parallel(loop)
            except ScheduleError:
                return
            sch.annotate(loop, SHARED, 1)
            return


def inlined_before(sch: Any, name: str) -> list[str]:
    """What the product reads that is computed before it; what only its followers read is inlined into them."""
    names = block_names(sch)
    before = names[: names.index(name)]
    for other in reversed(before):  # so that what only an inlined block read is inlined with it
        readers = [str(sch.get(reader).name_hint) for reader in sch.get_consumers(sch.get_sblock(other))]
        if not any(reader in before or reader == name for reader in readers):
            sch.compute_inline(sch.get_sblock(other))
    return [other for other in before if other in block_names(sch)]


def panel_columns(sch: Any, block: Any, machine: Machine, name: str) -> int | None:
    """Columns per tile, None where no vector divides them."""
    shapes = [tuple(int(extent) for extent in region.source.shape) for region in sch.get(block).reads]
    if name.startswith(PACKED):
        return shapes[-1][-1]
    columns = shapes[-1][-1]
    lanes = machine.lanes
    while columns % lanes:
        lanes //= 2
    if lanes < min(4, machine.lanes):
        return None
    vectors = columns // lanes
    return lanes * next(v for v in (4, 3, 5, 2, 1) if vectors % v == 0)


def grows(sch: Any, block: Any, followers: list[str]) -> bool:
    """Whether a follower spreads the product over more elements than it has: no tile of one is a tile of the other."""
    kept = min(written(sch, each) for each in (block, *sch.get_consumers(block)))  # without the panels' padding
    return any(written(sch, sch.get_sblock(name)) > kept for name in followers)


def follow(sch: Any, names: list[str], row: Any, lanes: int) -> None:
    """Inline all that follows into the last block, and compute that on each tile."""
    for name in names[:-1]:
        sch.compute_inline(sch.get_sblock(name))
    last = sch.get_sblock(names[-1])
    sch.reverse_compute_at(last, row)
    inner = sch.get_loops(last)[-1]
    extent = int(sch.get(inner).extent)
    if lanes > 1 and extent % lanes == 0:
        vector, lane = sch.split(inner, [None, lanes])
        sch.vectorize(lane)
        sch.unroll(vector)


def product_of(sch: Any) -> str | None:
    """The block of a kernel's matrix product, where it has one."""
    for name in block_names(sch):
        if name.startswith((PACKED, PLAIN)) and is_reduction(sch, sch.get_sblock(name)):
            return name
    return None
