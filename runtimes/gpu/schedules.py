"""How the threads of a GPU share a PrimFunc.

rows      a product with few rows: a group of threads sums each output       blockIdx.x  outputs / OUTPUTS
                                                                             threadIdx.y an output of a block
                                                                             threadIdx.x its share of the sum
dlight    TVM's rules for GPUs: matrix products, reductions, softmax and norms, and whatever is left
"""

from __future__ import annotations

import math
from typing import Any

from edgemem.runtimes.gpu.products import PRODUCT

MOST_ROWS = 8  # of a product that reads its weights once for each row
SUMMING = 256  # threads of a block that sums
ALONE = 16  # threads of a block in which each sums an output alone


def scheduled(function: Any, target: Any) -> tuple[Any, str]:
    """A PrimFunc with its loops bound to threads, and the name of the schedule that it got.

    A schedule that does not fit (TVM refuses one of its steps) gives way to the next more general one.
    """
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import ScheduleError

    with target:
        sch = Schedule(function, error_render_level="none")
        if product_rows(sch) <= MOST_ROWS:
            try:
                rows(sch, int(target.attrs["thread_warp_size"]))
            except ScheduleError:
                pass
            else:
                return sch.mod["main"].with_attr("tirx.is_scheduled", True), "rows"
        ruled, found = by_rules(function)
        if found:
            return without_bool_vectors(ruled), "dlight"
        sch = Schedule(function, error_render_level="none")
        spread(sch, int(target.attrs["max_num_threads"]))
        return sch.mod["main"].with_attr("tirx.is_scheduled", True), "spread"


def by_rules(function: Any) -> tuple[Any, bool]:
    """The PrimFunc by the first of TVM's own rules that fits, and whether one does."""
    import tvm
    from tvm.s_tir import dlight

    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction())
    ruled = dlight.ApplyDefaultSchedule(*rules)(tvm.IRModule({"main": function}))["main"]
    return ruled, bool(ruled.attrs.get("tirx.is_scheduled", False))


def without_bool_vectors(function: Any) -> Any:
    """A scheduled PrimFunc, its vector loops plain ones where it reads or writes truth values.

    TVM's CUDA C++ has two bytes for each truth value of a vector, its memory has one.
    """
    from tvm import IRModule
    from tvm.tirx.transform import VectorizeLoop

    held = [*function.params, *function.body.block.alloc_buffers]
    if all(str(buffer.dtype) != "bool" for buffer in held):
        return function
    return VectorizeLoop(False)(IRModule({"main": function}))["main"]


def spread(sch: Any, threads: int) -> None:
    """Every element by a thread of its own; operators between are put into their readers where these allow it."""
    from tvm.s_tir.dlight import normalize_prim_func
    from tvm.s_tir.schedule import ScheduleError

    for block in blocks(sch):
        try:
            sch.compute_inline(block)
        except ScheduleError:
            continue
    for info in normalize_prim_func(sch) or []:
        places = [axis.loop_rv for axis in info.iters if axis.kind == "S"]
        others = [axis.loop_rv for axis in info.iters if axis.kind != "S"]
        if not places:
            places = [sch.add_unit_loop(others[0] if others else info.block_rv)]
        sch.reorder(*places, *others)
        group, thread = sch.split(sch.fuse(*places), [None, threads])
        sch.bind(group, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")


def product_rows(sch: Any) -> float:
    """How many rows the product in a PrimFunc has; infinitely many where there is none."""
    found = [block for block in blocks(sch) if str(sch.get(block).name_hint) == PRODUCT]
    if len(found) != 1:
        return math.inf
    shape = [int(extent) for extent in sch.get(found[0]).writes[0].source.shape]
    return math.prod(shape[:-1])


def blocks(sch: Any) -> list[Any]:
    """The blocks below the root."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def rows(sch: Any, warp: int) -> None:
    """The threads of a group sum one output together; what follows it, its first thread does."""
    product = sch.get_sblock(PRODUCT)
    others = [block for block in blocks(sch) if str(sch.get(block).name_hint) != PRODUCT]
    *outer, k = sch.get_loops(product)
    after = inlined(sch, others)
    if after:
        sch.set_scope(product, 0, "local")
    elif warp > 1:
        # a block that copies: TVM forgets the bounds of the sum's own outputs where those of its inputs need no check
        after = sch.cache_write(product, 0, "local")
    loops = sch.get_loops(after or product)[: len(outer)]
    fused = sch.fuse(*loops)
    block, output = sch.split(fused, [None, ALONE if warp == 1 else SUMMING // warp])
    sch.bind(block, "blockIdx.x")
    sch.bind(output, "threadIdx.y")
    if after:
        sch.compute_at(product, output, preserve_unit_loops=True)
        k = sch.get_loops(product)[-1]
    if warp > 1:
        _, share = sch.split(k, [None, warp])
        sch.bind(share, "threadIdx.x")


def inlined(sch: Any, others: list[Any]) -> Any | None:
    """All blocks but the last put into their readers; the last, which follows the product, or None."""
    if not others:
        return None
    for block in others[:-1]:
        sch.compute_inline(block)
    return others[-1]
