"""How each kernel is computed: one module per family, picked by the blocks that a PrimFunc has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.runtimes.aot.machine import Machine

# `op_pattern` of a PrimFunc, relax's OpPatternKind: elementwise operators may follow it in one kernel; nothing may
OUT_ELEMENTWISE, OPAQUE = 4, 8
TILED = "tiles"  # the schedule of kernels that use the core's matrix unit
WRITTEN = "edgemem.written"  # attribute of a PrimFunc that is written in its order of execution: the schedule's name


def scheduled(function: Any, machine: Machine) -> tuple[Any, str]:
    """A PrimFunc in its order of execution, and the name of the schedule that it got.

    A schedule that does not fit (TVM refuses one of its steps) gives way to the next more general one; the last
    one is the order that the operators have by themselves.
    """
    from tvm.s_tir import Schedule
    from tvm.s_tir.schedule import ScheduleError

    from edgemem.runtimes.aot.schedules import attention, digits, groups, lookup, matmul, rows, spatial, tiles
    from edgemem.runtimes.aot.schedules.blocks import block_names

    if WRITTEN in (function.attrs or {}):
        return function, str(function.attrs[WRITTEN])
    sch = Schedule(function, error_render_level="none")
    names, product = block_names(sch), matmul.product_of(sch)
    attempts: list[tuple[str, Any]] = []  # each orders a schedule's blocks; one that writes others returns the PrimFunc
    if tiles.PRODUCT in names:
        attempts.append((TILED, lambda s: tiles.schedule(s, machine)))
    if attention.is_attention(names):
        attempts.append(("attention", lambda s: attention.schedule(s, machine)))
    if rows.LAST in names:
        attempts.append(("rows", lambda s: rows.schedule(s, machine)))
    if digits.JOINED in names:
        attempts.append(("digits", lambda s: digits.schedule(s, machine)))
    if groups.SUM in names:
        attempts.append(("groups", lambda s: groups.schedule_sums(s, machine)))
    if groups.TOTAL in names:
        attempts.append(("groups", lambda s: groups.schedule(s, machine)))
    if lookup.TOTAL in names:
        attempts.append(("lookup", lambda s: lookup.schedule(s, machine)))
    if product is not None:
        attempts.append(("tile", lambda s: matmul.schedule(s, machine, product)))
    attempts.append(("loops", lambda s: spatial.schedule(s, machine)))
    for name, attempt in attempts:
        sch = Schedule(function, error_render_level="none")
        try:
            written = attempt(sch)
        except ScheduleError:
            continue
        return sch.mod["main"] if written is None else written, name
    return function, "plain"
