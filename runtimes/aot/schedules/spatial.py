"""Everything else: chains of elementwise operators in one loop nest, copies, gathers, plain reductions.

LLVM turns the innermost loops into vectors of the target, tails included. Where a place along the innermost axis is
divided by a constant (an axis that a reshape joined of two), the loop is cut there, so that it steps through both:

    for i < 2 n: y[i] = x[i] + m[i / 2]      ->      for i < n: for j < 2: y[2 i + j] = x[2 i + j] + m[i]
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import SIDE_BY_SIDE, blocks, is_costly, is_output, is_reduction, volume

WRITTEN_OUT = 8  # turns of a loop


def schedule(sch: Any, machine: Machine) -> None:
    """Inline what is computed once or costs nothing to compute again; reductions start from their first value."""
    for block in blocks(sch):
        if not is_output(sch, block) and not is_reduction(sch, block):
            inline(sch, block)
    for block in blocks(sch):
        if is_reduction(sch, block):
            in_lanes(sch, block, machine) if is_extreme_of_rows(sch, block, machine) else reduce(sch, block)
        else:
            cut(sch, block)


def cut(sch: Any, block: Any) -> None:
    """Cut the innermost loop where places along it are divided."""
    loops = sch.get_loops(block)
    if not loops or len(loops) != len(sch.get(block).iter_vars):
        return
    inner = loops[-1]
    extent = int(sch.get(inner).extent)
    for divisor in sorted(divisors(sch.get(block)), reverse=True):
        if divisor < extent and extent % divisor == 0:
            extent = divisor
            _, inner = sch.split(inner, [None, divisor])
            if divisor <= WRITTEN_OUT:
                sch.unroll(inner)


def divisors(block: Any) -> set[int]:
    """By what the place along a block's last axis is divided, or taken modulo, in what the block reads."""
    from tvm import tirx

    last, found = block.iter_vars[-1].var, set()
    waiting = [place.min for region in block.reads for place in region.region]
    while waiting:
        place = waiting.pop()
        if isinstance(place, tirx.FloorDiv | tirx.FloorMod) and place.a.same_as(last):
            found.add(int(place.b))
        waiting += [side for name in ("a", "b") if (side := getattr(place, name, None)) is not None]
    return found


def inline(sch: Any, block: Any) -> None:
    """Compute a block where it is read, unless that would repeat something costly."""
    from tvm.s_tir.schedule import ScheduleError

    repeated = any(volume(sch, reader) > volume(sch, block) for reader in sch.get_consumers(block))
    if repeated and is_costly(sch, block):
        return
    try:
        sch.compute_inline(block)
    except ScheduleError:  # an opaque reader: the block keeps its own loops and buffer
        return


def reduce(sch: Any, block: Any) -> None:
    """Start values in a loop of their own."""
    loops = sch.get_loops(block)
    axes = sch.get(block).iter_vars
    if len(loops) != len(axes):
        return
    first = next(index for index, axis in enumerate(axes) if int(axis.iter_type) == 2)
    sch.decompose_reduction(block, loops[first])


def is_extreme_of_rows(sch: Any, block: Any, machine: Machine) -> bool:
    """Whether a block is the largest or the smallest of neighbours, whole vectors of them, in several rows."""
    from tvm import tirx

    found = sch.get(block)
    if machine.lanes == 1 or not isinstance(found.body.value, tirx.Max | tirx.Min):
        return False
    *outer, last = found.iter_vars
    read = found.reads[0].region[-1].min if len(found.reads) == 1 and len(found.reads[0].region) else None
    return (
        len(sch.get_loops(block)) == len(found.iter_vars) > 1
        and all(int(axis.iter_type) != 2 for axis in outer)
        and last.var.same_as(read)
        and int(last.dom.extent) % machine.lanes == 0
    )


def in_lanes(sch: Any, block: Any, machine: Machine) -> None:
    """Extremes in vector lanes, which are halved until one is left; in whatever order, they are the same."""
    loops = sch.get_loops(block)
    row, extent = loops[-2], int(sch.get(loops[-1]).extent)
    lanes, parts = SIDE_BY_SIDE * machine.lanes, []
    lanes = lanes if extent % lanes == 0 else machine.lanes
    while lanes > 1:
        _, lane = sch.split(sch.get_loops(block)[-1], [None, lanes])
        parts.append(sch.rfactor(lane, -1))
        lanes //= 2 if lanes <= machine.lanes else SIDE_BY_SIDE
    for part in reversed(parts):
        sch.compute_at(part, row, preserve_unit_loops=True)
        sch.set_scope(part, 0, "local")
    for part in parts:
        lane, step, *units = sch.get_loops(part)[len(loops) - 1 :]
        sch.reorder(step, *units, lane)
        sch.vectorize(lane)
        sch.decompose_reduction(part, step)
    sch.decompose_reduction(block, sch.get_loops(block)[-1])
