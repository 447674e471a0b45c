"""Products of bytes for a core's matrix unit (`schedules.tiles`): which it takes, and as a tensor expression.

    y[..., n] = sum_k (x[..., k] - z) w[k, n], in int32        panels [N / P, K / 4, P, 4]

x is read where it lies if its rows fill tiles and its inputs are whole steps of 64; else with zeros behind both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import ir, te, tirx

from edgemem.runtimes.aot.folding import shape_of
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized.emitting import emitted, reshaped, trimmed
from edgemem.runtimes.aot.quantized.weights import quads
from edgemem.runtimes.aot.schedules import tiles
from edgemem.runtimes.aot.schedules.matmul import Panel

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any
LEAST_ROWS = 8  # below, a tile's time goes into loading weights that are used once
LEAST_PRODUCTS = 1 << 18  # of bytes; below, telling the unit the sizes of its tiles takes longer than it saves


def fits(machine: Machine, lead: Sequence[int], matrix: Sequence[int]) -> bool:
    """Whether the core has the unit, the system lets a process use it, and x [*lead, K] times [K, N] is worth it."""
    return (
        machine.tiles and max(lead, default=1) >= LEAST_ROWS and math.prod(lead) * math.prod(matrix) >= LEAST_PRODUCTS
    )


def product(builder: Any, x: Expr, zero: Expr | None, q: Array, machine: Machine) -> Expr:
    """(x - zero) times an int8 matrix [K, N], in int32; x uint8 or int8 [..., rows, K]."""
    shape = (*shape_of(x)[:-1], q.shape[1])
    panel = tiles.panel_of(q.shape[1])
    tiling = tiles.tiling_of(shape[:-1], panel)
    q = np.pad(q, ((0, -len(q) % tiles.DEPTH), (0, 0)))
    words = quads(panel, q)
    held: list[Any] = [words.astype("<i4").view(np.int8).reshape(*words.shape, tiles.QUAD)]
    offset = int(zero.value.numpy().item()) if isinstance(zero, ir.GenericConst) else 0
    moving = zero is not None and not isinstance(zero, ir.GenericConst)
    if moving or offset:
        held.append(q.sum(axis=0, dtype=np.int32))
    if moving:
        held.append(reshaped(builder, zero, (1,)))

    def form(a: Any, w: Any, sums: Any = None, z: Any = None) -> Any:
        y = summed(padded(a, tiling, len(q)), w, shape, panel, tiling)
        if sums is None:
            return trimmed(y, shape)

        def moved(*i: Any) -> Any:
            below = tirx.const(offset, "int32") if z is None else z(0).astype("int32")
            return y(*i) - below * sums(i[-1])

        return te.compute(shape, moved, name="packed_moved")

    return emitted(builder, "product_w8a8", form, x, *held)


def padded(x: Any, tiling: tiles.Tiling, width: int) -> Any:
    """x with zeros behind its rows and inputs, where there are not enough for whole tiles."""
    shape = [int(extent) for extent in x.shape]
    wanted = [tiling.padded if axis == tiling.axis else extent for axis, extent in enumerate(shape[:-1])] + [width]
    if shape == wanted:
        return x
    ends = [(tiling.axis, shape[tiling.axis]), (len(shape) - 1, shape[-1])]

    def value(*i: Any) -> Any:
        inside = tirx.all(*(i[axis] < end for axis, end in ends))
        place = [tirx.min(index, shape[axis] - 1) for axis, index in enumerate(i)]
        return tirx.if_then_else(inside, x(*place), tirx.const(0, str(x.dtype)))

    return te.compute(wanted, value, name=tiles.PAD)


def summed(x: Any, w: Any, shape: Sequence[int], panel: Panel, tiling: tiles.Tiling) -> Any:
    """sum_k x[..., k] w[k, n] with the rows and columns that fill tiles."""
    k = te.reduce_axis((0, int(x.shape[-1])), name="k")
    rows = [int(extent) for extent in x.shape[:-1]]

    def dot(*i: Any) -> Any:
        weight = w(i[-1] // panel.columns, k // tiles.QUAD, i[-1] % panel.columns, k % tiles.QUAD)
        return te.sum(x(*i[:-1], k).astype("int32") * weight.astype("int32"), axis=k)

    made = [*rows, panel.count * panel.columns]
    return te.compute(made, dot, name=tiles.PRODUCT, attrs=tiling.annotations())
