"""Everything else: chains of elementwise operators in one loop nest, copies, gathers, plain reductions.

LLVM turns the innermost loops into vectors of the target, tails included.
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.schedules.blocks import blocks, is_costly, is_output, is_reduction, volume


def schedule(sch: Any) -> None:
    """Inline what is computed once or costs nothing to compute again; reductions start from their first value."""
    for block in blocks(sch):
        if not is_output(sch, block) and not is_reduction(sch, block):
            inline(sch, block)
    for block in blocks(sch):
        if is_reduction(sch, block):
            reduce(sch, block)


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
