"""May a kernel write its result over one of its arguments?

Yes if every element of the result depends on no element of the argument but the one at the same index: then the
order of the loops does not matter.
"""

from __future__ import annotations

from typing import Any

from edgemem.runtimes.aot.schedules.blocks import blocks, is_reduction


def elementwise(function: Any, read: int, written: int) -> bool:
    """Whether parameter `written` of a PrimFunc may be the buffer of parameter `read`."""
    from tvm.s_tir import Schedule

    parameters = list(function.params)
    if not same_type(parameters[read], parameters[written]):
        return False
    sch = Schedule(function, error_render_level="none")
    dependent = [parameters[read]]  # the argument, and what was computed from it element by element
    for block in (sch.get(b) for b in blocks(sch)):
        touched = [region for region in block.reads if any(region.source.same_as(buffer) for buffer in dependent)]
        if not touched:
            continue
        if any(int(axis.iter_type) != 0 for axis in block.iter_vars):
            return False
        if len(block.writes) != 1 or not all(at_same_index(region, block) for region in touched):
            return False
        dependent.append(block.writes[0].source)
    return all(not is_reduction(sch, b) or not writes(sch, b, parameters[written]) for b in blocks(sch))


def same_type(a: Any, b: Any) -> bool:
    """Equal dtype and shape."""
    shapes = [[int(extent) for extent in buffer.shape] for buffer in (a, b)]
    return shapes[0] == shapes[1] and str(a.ty.dtype) == str(b.ty.dtype)


def at_same_index(region: Any, block: Any) -> bool:
    """Whether a block reads exactly the element at the index that it writes."""
    target = block.writes[0]
    if len(region.region) != len(target.region):
        return False
    pairs = zip(region.region, target.region, strict=True)
    return all(int(r.extent) == 1 and (r.min.same_as(w.min) or both_zero(r.min, w.min)) for r, w in pairs)


def both_zero(a: Any, b: Any) -> bool:
    from tvm import tirx

    return all(isinstance(x, tirx.IntImm) and int(x.value) == 0 for x in (a, b))


def writes(sch: Any, block: Any, buffer: Any) -> bool:
    return any(region.source.same_as(buffer) for region in sch.get(block).writes)
