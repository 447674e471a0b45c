"""MatMul: int8 with a constant and its bias, int16 with a constant, two of int8 or int16 that the step computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import FACTOR_BITS, SUM_BITS, whole_numbers
from edgemem.runtimes.integer.operation import Array, Operation, Out
from edgemem.runtimes.integer.operators import arithmetic
from edgemem.runtimes.integer.values import Fixed, Ints, Pair, Product, Value, Wide

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering


# --- kernels ---------------------------------------------------------------------------------------------------------


def product8(x: Tensor, at: int, w: Tensor, columns: tuple[Tensor, Tensor, Tensor], y: Tensor, depth: int,
             shift: int, out: Out) -> Operation:  # fmt: skip
    """int8 rows times int8 columns, stored [outputs, depth]; bias, factor and rest of each column."""
    outputs = columns[0].shape[0]
    rows = int(np.prod(y.shape)) // outputs

    def run(given: Sequence[Array]) -> Array:
        bias, factor, rest = (part.astype(np.int64) for part in given[2:])
        left = given[0][at : at + rows * depth].reshape(rows, depth).astype(np.int64)
        sums = left @ given[1].reshape(outputs, depth).T.astype(np.int64) + bias
        return out.put(sums * factor + rest, shift).reshape(-1)

    c = f"{out.c()}\nedgemem_product8(r0 + {at}, r1, r2, r3, r4, w, {rows}, {outputs}, {depth}, {shift}, &out);"
    return Operation("product8", (x, w, *columns), y, c, run)


def product16(x: Tensor, at: int, w: Tensor, factor: Tensor, y: Tensor, depth: int, shift: int, out: Out) -> Operation:
    """int16 rows times int16 columns, stored [outputs, depth]."""
    outputs = factor.shape[0]
    rows = int(np.prod(y.shape)) // outputs

    def run(given: Sequence[Array]) -> Array:
        left = given[0][at : at + rows * depth].reshape(rows, depth).astype(np.int64)
        sums = left @ given[1].reshape(outputs, depth).T.astype(np.int64)
        return out.put(sums * given[2].astype(np.int64), shift).reshape(-1)

    c = f"{out.c()}\nedgemem_product16(r0 + {at}, r1, r2, w, {rows}, {outputs}, {depth}, {shift}, &out);"
    return Operation("product16", (x, w, factor), y, c, run)


def pair(x: tuple[Tensor, int], columns: tuple[Tensor, int], y: Tensor, extents: tuple[int, int, int, int],
         zeros: tuple[int, int], factor: int, shift: int, out: Out) -> Operation:  # fmt: skip
    """int8 rows [batch, rows, depth] times int8 columns [batch, outputs, depth]; `extents` are those four."""
    batch, rows, depth, outputs = extents

    def run(given: Sequence[Array]) -> Array:
        left = given[0][x[1] : x[1] + batch * rows * depth].reshape(batch, rows, depth).astype(np.int64) - zeros[0]
        right = given[1][columns[1] : columns[1] + batch * outputs * depth].reshape(batch, outputs, depth)
        sums = left @ (right.astype(np.int64) - zeros[1]).transpose(0, 2, 1)
        return out.put(sums * factor, shift).reshape(-1)

    c = (
        f"{out.c()}\nedgemem_pair(r0 + {x[1]}, r1 + {columns[1]}, w, {batch}, {rows}, {outputs}, {depth}, "
        f"{zeros[0]}, {zeros[1]}, {factor}, {shift}, &out);"
    )
    return Operation("pair", (x[0], columns[0]), y, c, run)


def pair16(x: tuple[Tensor, int], columns: tuple[Tensor, int], y: Tensor, extents: tuple[int, int, int, int],
           factor: int, shift: int, out: Out) -> Operation:  # fmt: skip
    """int16 rows [batch, rows, depth] times int16 columns [batch, outputs, depth]; `extents` are those four."""
    batch, rows, depth, outputs = extents

    def run(given: Sequence[Array]) -> Array:
        left = given[0][x[1] : x[1] + batch * rows * depth].reshape(batch, rows, depth).astype(np.int64)
        right = given[1][columns[1] : columns[1] + batch * outputs * depth].reshape(batch, outputs, depth)
        return out.put(left @ right.astype(np.int64).transpose(0, 2, 1) * factor, shift).reshape(-1)

    c = (
        f"{out.c()}\nedgemem_pair16(r0 + {x[1]}, r1 + {columns[1]}, w, {batch}, {rows}, {outputs}, {depth}, "
        f"{factor}, {shift}, &out);"
    )
    return Operation("pair16", (x[0], columns[0]), y, c, run)


# --- rounding --------------------------------------------------------------------------------------------------------


def rounded_product(lowering: Lowering, value: Product, scale: float, out: Out) -> Operation:
    depth, (*lead, rows, width) = value.w.shape[0], (1, *value.shape)
    shape = (*lead, width, rows) if value.turned else value.shape
    target = lowering.result(shape, out.dtype)
    tensor, at = lowering.stretch(value.x.places)
    units = value.x.scale * value.scales
    q = np.rint(value.w / value.scales).astype(np.int64)
    if value.x.dtype == "int8":
        weights, shift = whole_numbers(units / scale, FACTOR_BITS)
        bias = np.rint(value.bias / units)
        rest = np.rint((value.bias / units - bias) * weights)  # what is left is less than half a unit of the sum
        whole = (bias - value.x.zero * q.sum(axis=0), weights, rest)
        columns = tuple(lowering.constant(part.astype(np.int32)) for part in whole)
        weight = lowering.constant(q.T.astype(np.int8))
        return product8(tensor, at, weight, (columns[0], columns[1], columns[2]), target, depth, shift, out)
    if np.any(value.bias) or value.x.zero:
        raise NotInteger("MatMul of int16 with a bias")
    weights, shift = whole_numbers(units / scale, bits16(depth))
    parts16 = (lowering.constant(q.T.astype(np.int16)), lowering.constant(weights.astype(np.int32)))
    return product16(tensor, at, *parts16, target, depth, shift, out)


def rounded_pair(lowering: Lowering, value: Pair, scale: float, out: Out) -> Operation:
    batch, (rows, outputs), depth = value.shape[:-2], value.shape[-2:], value.x.shape[-1]
    x = np.broadcast_to(value.x.places, (*batch, rows, depth))
    columns = np.broadcast_to(np.swapaxes(value.y.places, -1, -2), (*batch, outputs, depth))
    wide = value.x.dtype == "int16"
    unit, bits = value.x.scale * value.y.scale, bits16(depth) if wide else FACTOR_BITS
    factor, shift = whole_numbers(np.array([unit / scale]), bits)
    extents = (int(np.prod(batch, dtype=np.int64)), rows, depth, outputs)
    target = lowering.result(value.shape, out.dtype)
    places = (lowering.stretch(x), lowering.stretch(columns))
    if wide:
        return pair16(*places, target, extents, int(factor[0]), shift, out)
    return pair(*places, target, extents, (value.x.zero, value.y.zero), int(factor[0]), shift, out)


def bits16(depth: int) -> int:
    """Bits of a factor for sums of `depth` products of int16."""
    return min(28, SUM_BITS - 30 - depth.bit_length())


# --- rules -----------------------------------------------------------------------------------------------------------


def matmul(lowering: Lowering, node: Any) -> Value:
    left, right = lowering.value(node.input[0]), lowering.value(node.input[1])
    if left.shape[-1] == 1:
        return arithmetic.times(lowering, left, right)
    if isinstance(left, Wide) or isinstance(right, Wide):
        raise NotInteger("MatMul of what is not rounded")
    if isinstance(left, Ints) and isinstance(right, Fixed) and right.real.ndim <= 2:
        columns = right.real.reshape(right.shape[0], -1)
        shape = (*left.shape[:-1], *right.shape[1:])
        return Product(shape, left, columns, column_scales(right, 1), np.zeros(columns.shape[1]))
    if isinstance(left, Fixed) and left.real.ndim == 2 and isinstance(right, Ints):
        x = right.moved(np.swapaxes(right.places, -1, -2))
        shape = (*right.shape[:-2], left.shape[0], right.shape[-1])
        return Product(shape, x, left.real.T, column_scales(left, 0), np.zeros(left.shape[0]), turned=True)
    x, y = lowering.ints(left), lowering.ints(right)
    if (x.dtype, y.dtype) not in (("int8", "int8"), ("int16", "int16")) or (x.dtype == "int16" and (x.zero or y.zero)):
        raise NotInteger(f"MatMul of {x.dtype} with {y.dtype}, both computed in the step,")
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    return Pair((*batch, x.shape[-2], y.shape[-1]), x, y)


def column_scales(weight: Fixed, axis: int) -> Array:
    """The scales in which the rows or columns of a weight were stored."""
    if weight.scales is not None and weight.axis == axis:
        return weight.scales
    if weight.scale is None:
        raise NotInteger("MatMul with a float weight, or with one whose scales run along its sums")
    return np.full(weight.shape[axis] if weight.real.ndim == 2 else 1, weight.scale)


RULES = {"MatMul": matmul}
ROUNDED: dict[type, Any] = {Product: rounded_product, Pair: rounded_pair}
