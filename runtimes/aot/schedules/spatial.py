"""Everything else: chains of elementwise operators in one loop nest, copies, gathers, plain reductions.

LLVM turns the innermost loops into vectors of the target, tails included. Where a place along the innermost axis is
divided by a constant (an axis that a reshape joined of two), the loop is cut there, so that it steps through both:

    for i < 2 n: y[i] = x[i] + m[i / 2]      ->      for i < n: for j < 2: y[2 i + j] = x[2 i + j] + m[i]
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.schedules.blocks import blocks, is_costly, is_output, is_reduction, volume

WRITTEN_OUT = 8  # turns of a loop


def schedule(sch: Any) -> None:
    """Inline what is computed once or costs nothing to compute again; reductions start from their first value."""
    for block in blocks(sch):
        if not is_output(sch, block) and not is_reduction(sch, block):
            inline(sch, block)
    for block in blocks(sch):
        if is_reduction(sch, block):
            reduce(sch, block)
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
