"""Add, Sub, Neg, Mul, Div, ReduceSum, ReduceMean, Sqrt, Relu of integers.

Add, Sub, Mul      a sum of products of one or two integers: one sum in 64 bits, one rounding
Div                by a constant: Mul; else one reciprocal for all neighbours that have the same divisor
ReduceSum          over any axes: a sum of rows
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import FACTOR_BITS, SUM_BITS, attribute, whole_numbers
from edgemem.runtimes.integer.operation import Array, Operand, Operation, Out, elementwise
from edgemem.runtimes.integer.operators import rows, whole, wide
from edgemem.runtimes.integer.values import (
    WAITING,
    Fixed,
    Ints,
    Product,
    Quotient,
    Root,
    Rows,
    RowSum,
    Terms,
    Value,
    Whole,
    Wide,
)  # fmt: skip

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering

UPPER_WORD = 33  # the least shift that leaves nothing of the lower 32 bits, rounding included
MOST_ROOM = 14  # bits above an int16 less its zero
RATIO_BITS = 30  # of the factor between the scales of a quotient
LONGEST_SHIFT = 62


# --- kernels ---------------------------------------------------------------------------------------------------------


def sum_of_terms(terms: Sequence[tuple[int, Sequence[Operand]]], y: Tensor, shift: int, out: Out) -> Operation:
    """A sum of whole factors times one or two integers each, element by element."""
    operands = [operand for _, group in terms for operand in group]
    groups, first = [], 0
    for weight, group in terms:
        groups.append((weight, range(first, first + len(group)), [operand.zero for operand in group]))
        first += len(group)

    def compute(given: Sequence[Array]) -> Array:
        total = np.zeros(given[0].shape, np.int64)
        for weight, numbers, zeros in groups:
            part = np.full(given[0].shape, weight, np.int64)
            for number, zero in zip(numbers, zeros, strict=True):
                part = part * (given[number].astype(np.int64) - zero)
            total += part
        return out.put(total, shift)

    room = 0 if any(len(group) > 1 for _, group in terms) else min(MOST_ROOM, max(0, UPPER_WORD - shift))
    spread = f" * {1 << room}" if room else ""  # so that the upper word of a sum holds all of the result

    def statement(reads: Sequence[str]) -> str:
        pieces = []
        for weight, numbers, _ in groups:
            parts = [reads[number] for number in numbers]
            text = parts[0] if len(parts) == 1 else f"((int32_t){parts[0]} * {parts[1]})"
            pieces.append(f"(int64_t){weight} * ({text}{spread})")
        return f"edgemem_put(w, i, {' + '.join(pieces)}, {shift + room}, &out);"

    return elementwise("sum" if len(terms) > 1 else "scale", operands, y, statement, compute, [out.c()])


def quotient(above: Operand, below: Operand, y: Tensor, ratio: int, shift: int, out: Out) -> Operation:
    """(above - zero) / (below - zero) * ratio * 2^-shift; by zero, the limit on the side of `above`."""

    def compute(given: Sequence[Array]) -> Array:
        a, b = (g.astype(np.int64) - o.zero for g, o in zip(given, (above, below), strict=True))
        moved = 31 - bits_of(np.abs(b))
        inverse = np.where(b == 0, 2**31 - 1, (ratio << 31) // np.where(b == 0, 1, np.abs(b) << moved))
        shifts = np.where(b == 0, 1, np.clip(31 + shift - moved, 1, LONGEST_SHIFT))
        return out.put(np.where(b < 0, -a, a) * inverse, shifts)

    def statement(reads: Sequence[str]) -> str:
        divisor = f"if (i == 0 || {reads[1]} != last)"
        inverse = f"inverse = edgemem_inverse(last = {reads[1]}, {ratio}, {shift}, &by);"
        return f"{{ {divisor} {inverse} edgemem_put(w, i, (int64_t)({reads[0]}) * inverse, by, &out); }}"

    head = [out.c(), "int32_t last = 0, by = 1;", "int64_t inverse = 0;"]
    return elementwise("quotient", [above, below], y, statement, compute, head)


def bits_of(value: Array) -> Array:
    """How many bits a number below 2^31 has."""
    count: Array = np.frexp(value.astype(np.float64))[1].astype(np.int64)
    return count


def sum_of_rows(x: Tensor, at: int, y: Tensor, count: int, zero: int, factor: int, shift: int, out: Out) -> Operation:
    """The sum of every `count` neighbours."""
    rows = int(np.prod(y.shape))

    def run(given: Sequence[Array]) -> Array:
        sums = given[0][at : at + rows * count].astype(np.int64).reshape(rows, count).sum(1) - count * zero
        return out.put(sums * factor, shift)

    c = f"""\
{out.c()}
int32_t i, k;
for (i = 0; i < {rows}; ++i) {{
    int32_t sum = {-count * zero};
    for (k = 0; k < {count}; ++k) sum += r0[{at} + i * {count} + k];
    edgemem_put(w, i, (int64_t)sum * {factor}, {shift}, &out);
}}"""
    return Operation("row_sum", (x,), y, c, run)


def root(x: Operand, y: Tensor, factor: int, shift: int, out: Out) -> Operation:
    """The whole root of (x - zero) * factor, times 2^-shift."""

    def compute(given: Sequence[Array]) -> Array:
        squares = np.maximum(given[0].astype(np.int64) - x.zero, 0) * factor
        roots: Array = np.array([math.isqrt(int(square)) for square in squares], np.int64)
        return out.put(roots, shift)

    def statement(reads: Sequence[str]) -> str:
        return f"edgemem_put(w, i, {reads[0]} > 0 ? edgemem_root((uint64_t){reads[0]} * {factor}u) : 0, {shift}, &out);"

    return elementwise("root", [x], y, statement, compute, [out.c()])


# --- rounding --------------------------------------------------------------------------------------------------------


def rounded_terms(lowering: Lowering, value: Terms, scale: float, out: Out) -> Operation:
    bits = SUM_BITS - 16 * max(len(group) for _, group in value.terms) - len(value.terms)
    weights, shift = whole_numbers(np.array([factor / scale for factor, _ in value.terms]), bits)
    groups = [[lowering.operand(f.places, value.shape, f.zero) for f in group] for _, group in value.terms]
    terms = [(int(weight), group) for weight, group in zip(weights, groups, strict=True)]
    return sum_of_terms(terms, lowering.result(value.shape, out.dtype), shift, out)


def rounded_quotient(lowering: Lowering, value: Quotient, scale: float, out: Out) -> Operation:
    ratio = value.above.scale / value.below.scale / scale
    shift = RATIO_BITS - int(np.floor(np.log2(ratio))) - 1
    whole = min(round(ratio * 2.0**shift), (1 << RATIO_BITS) - 1)
    if abs(shift) > LONGEST_SHIFT:
        raise NotInteger(f"a factor of {ratio:g} between the scales of a quotient")
    above = lowering.operand(value.above.places, value.shape, value.above.zero)
    below = lowering.operand(value.below.places, value.shape, value.below.zero)
    return quotient(above, below, lowering.result(value.shape, out.dtype), whole, shift, out)


def rounded_row_sum(lowering: Lowering, value: RowSum, scale: float, out: Out) -> Operation:
    count = value.x.shape[-1]
    tensor, at = lowering.stretch(value.x.places)
    bits = min(FACTOR_BITS, SUM_BITS - 17 - count.bit_length())
    factor, shift = whole_numbers(np.array([value.factor * value.x.scale / scale]), bits)
    target = lowering.result(value.shape, out.dtype)
    return sum_of_rows(tensor, at, target, count, value.x.zero, int(factor[0]), shift, out)


def rounded_root(lowering: Lowering, value: Root, scale: float, out: Out) -> Operation:
    factor, shift = whole_numbers(np.array([value.x.scale / scale**2]), FACTOR_BITS)
    if shift % 2:
        factor, shift = (factor + 1) >> 1, shift - 1
    if shift < 2:
        raise NotInteger("Sqrt of numbers far larger than the steps of its result")
    x = lowering.operand(value.x.places, value.shape, value.x.zero)
    return root(x, lowering.result(value.shape, out.dtype), int(factor[0]), shift // 2, out)


# --- rules -----------------------------------------------------------------------------------------------------------


def add(lowering: Lowering, node: Any) -> Value:
    return plus(lowering, lowering.value(node.input[0]), lowering.value(node.input[1]), 1.0)


def subtract(lowering: Lowering, node: Any) -> Value:
    return plus(lowering, lowering.value(node.input[0]), lowering.value(node.input[1]), -1.0)


def plus(lowering: Lowering, left: Value, right: Value, sign: float) -> Value:
    if isinstance(left, Fixed) and isinstance(right, Fixed):
        return Fixed(left.real + sign * right.real)
    if isinstance(right, Product) and sign > 0:
        left, right = right, left
    if (
        isinstance(left, Product)
        and isinstance(right, Fixed)
        and not left.relu
        and not left.turned
        and right.real.ndim <= 1
    ):
        return replace(left, bias=left.bias + sign * np.broadcast_to(right.real, left.bias.shape))
    if isinstance(left, Wide) or isinstance(right, Wide):
        return wide.both(lowering, "+" if sign > 0 else "-", left, right)
    if isinstance(left, Whole) or isinstance(right, Whole):
        return whole.added(lowering, left, right, int(sign))
    terms = [*terms_of(lowering, left), *((sign * f, group) for f, group in terms_of(lowering, right))]
    return Terms(np.broadcast_shapes(left.shape, right.shape), tuple(terms))


def terms_of(lowering: Lowering, value: Value) -> tuple[tuple[float, tuple[Ints, ...]], ...]:
    if isinstance(value, Terms) and not value.relu:
        return value.terms
    found = lowering.ints(value)
    return ((found.scale, (found,)),)


def negate(lowering: Lowering, node: Any) -> Value:
    return times(lowering, lowering.value(node.input[0]), Fixed(np.array(-1.0)))


def multiply(lowering: Lowering, node: Any) -> Value:
    left, right = lowering.value(node.input[0]), lowering.value(node.input[1])
    if isinstance(left, Rows) and isinstance(right, Rows):
        return rows.scaled(left, right)
    return times(lowering, left, right)


def times(lowering: Lowering, left: Value, right: Value) -> Value:
    if isinstance(left, Fixed):
        left, right = right, left
    if isinstance(right, Fixed) and isinstance(left, Fixed):
        return Fixed(left.real * right.real)
    if isinstance(left, Wide) or isinstance(right, Wide):
        return wide.both(lowering, "*", left, right)
    if isinstance(right, Fixed) and right.real.size == 1 and right.real.ndim <= len(left.shape):
        factor = float(right.real.reshape(()))
        return Terms(left.shape, tuple((f * factor, group) for f, group in terms_of(lowering, left)))
    a, b = lowering.ints(left), lowering.ints(right)
    return Terms(np.broadcast_shapes(a.shape, b.shape), ((a.scale * b.scale, (a, b)),))


def divide(lowering: Lowering, node: Any) -> Value:
    left, right = lowering.value(node.input[0]), lowering.value(node.input[1])
    if isinstance(left, Wide) or isinstance(right, Wide):
        return wide.both(lowering, "/", left, right)
    if isinstance(right, Fixed):
        return times(lowering, left, Fixed(1.0 / right.real))
    a, b = lowering.ints(left), lowering.ints(right)
    return Quotient(np.broadcast_shapes(a.shape, b.shape), a, b)


def reduce_sum(lowering: Lowering, node: Any) -> Value:
    value = lowering.value(node.input[0])
    rank = len(value.shape)
    given = lowering.fixed(node.input[1]).reshape(-1) if len(node.input) > 1 else attribute(node, "axes", range(rank))
    axes = [int(axis) % rank for axis in given]
    kept = [axis for axis in range(rank) if axis not in axes]
    count = int(np.prod([value.shape[axis] for axis in axes], dtype=np.int64))
    shape = [value.shape[axis] for axis in kept]
    if attribute(node, "keepdims", 1):
        shape = [1 if axis in axes else extent for axis, extent in enumerate(value.shape)]
    factor = 1.0 / count if node.op_type == "ReduceMean" else 1.0
    if isinstance(value, Wide) and factor == 1.0:
        tensor, at = lowering.stretch(value.places.transpose([*kept, *axes]))
        return Wide(lowering.add(wide.sum_of_rows(tensor, at, lowering.result(shape, "float32"), count)))
    x = lowering.ints(value)
    places = x.places.transpose([*kept, *axes])
    return RowSum(tuple(shape), x.moved(places.reshape(*places.shape[: len(kept)], count)), factor)


def square_root(lowering: Lowering, node: Any) -> Value:
    return Root(lowering.ints(lowering.value(node.input[0])))


def relu(lowering: Lowering, node: Any) -> Value:
    value = lowering.value(node.input[0])
    if isinstance(value, Ints):
        return Terms(value.shape, ((value.scale, (value,)),), relu=True)
    if isinstance(value, WAITING):
        return replace(value, relu=True)
    if isinstance(value, Wide):
        return wide.both(lowering, "max", value, Fixed(np.zeros(1)))
    raise NotInteger(f"Relu of {'a count' if isinstance(value, Whole) else 'a table'}")


RULES = {
    "Add": add, "Sub": subtract, "Neg": negate, "Mul": multiply, "Div": divide, "ReduceSum": reduce_sum,
    "ReduceMean": reduce_sum, "Sqrt": square_root, "Relu": relu,
}  # fmt: skip
ROUNDED: dict[type, Any] = {
    Terms: rounded_terms,
    Quotient: rounded_quotient,
    RowSum: rounded_row_sum,
    Root: rounded_root,
}
