"""Float activations as numbers of three bytes, so that products with narrow weights are products of bytes.

    x[k] = t sum_p 256^(2 - p) d[p, k]    t = max |x| / LIMIT over a row, or a group of it; d in -128..127
    w8   y[n] = s[n] t sum_p 256^(2 - p) sum_k d[p, k] w[k, n]
    w4   y[n] = sum_g s[g, n] t[g] sum_p 256^(2 - p) sum_k d[p, k] q[k, n]

The error is at most 2^-23 of the largest x of the row or group, which is what float32 itself leaves of a sum of such
terms; the sums of bytes are exact. Three products of 64 bytes take the place of converting each weight and
multiplying it. The largest magnitude is found among the bits, where NaN is the largest of all: NaN or infinity in a
group makes t so, and with it all that is computed from the group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

from edgemem.runtimes.aot import dots, mathops
from edgemem.runtimes.aot.folding import shape_of
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized.emitting import FLOAT, OPAQUE, emitted, reshaped, trimmed
from edgemem.runtimes.aot.quantized.weights import EIGHT, GROUP, Int4, Int8, quads
from edgemem.runtimes.aot.schedules import digits as schedule
from edgemem.runtimes.aot.schedules import rows
from edgemem.runtimes.aot.schedules.matmul import Panel, panel_of

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any
DIGITS = 3
LIMIT = 63 * 65536  # of a number: `nearest` is exact up to 2^22, and 32 products with 15 fit in int32
SMALLEST_BITS = 27 << 23  # 2^-100: at least that much of a row's largest value, so that LIMIT over it is finite
BYTE_OFFSET = 128  # what is added to int8 weights where the instruction wants them unsigned


def fits(machine: Machine) -> bool:
    """Whether the core multiplies and sums four bytes in one instruction."""
    return machine.dot in (dots.VNNI, dots.SDOT)


@dataclass(frozen=True)
class Digits:
    """Groups of a row of x, the last filled with zeros, Q groups in all: bytes int8 [Q, DIGITS, width], step t
    float32 [Q], and sums of the bytes int32 [Q, DIGITS].
    """

    bytes_: Expr
    step: Expr
    sums: Expr


def value_of(x: Any, group: int) -> Callable[[Expr, Expr], Expr]:
    """Element c of group q of x [rows, K], 0 behind the end of a row."""
    width = int(x.shape[1])
    count = -(-width // group)

    def value(q: Expr, c: Expr) -> Expr:
        k = (q % count) * group + c
        if width % group == 0:
            return x(q // count, k)
        return tirx.if_then_else(k < width, x(q // count, tirx.min(k, width - 1)), tirx.const(0.0, FLOAT))

    return value


def steps(builder: Any, x: Expr, group: int, machine: Machine) -> Expr:
    """The step t of every group of x [rows, K]: float32 [Q]."""
    count, width = shape_of(x)
    size = count * -(-width // group)
    lanes = rows.lanes_of(machine, group)

    def form(a: Any) -> Any:
        value = value_of(a, group)

        def magnitude(q: Expr, c: Expr) -> Expr:
            return tirx.reinterpret("int32", value(q, c)) & tirx.const(0x7FFFFFFF, "int32")

        top = rows.reduced(magnitude, [size], group, lanes, "top", te.max, tirx.max)
        least, share = tirx.const(SMALLEST_BITS, "int32"), tirx.const(1 / LIMIT, FLOAT)
        return te.compute(
            (size,), lambda q: tirx.reinterpret(FLOAT, tirx.max(top(q, 0), least)) * share, name=rows.LAST
        )

    return emitted(builder, "digits_step", form, x, pattern=OPAQUE)


def digits(builder: Any, x: Expr, group: int, machine: Machine) -> Digits:
    """x [..., K] in groups of `group`."""
    *lead, width = shape_of(x)
    x = reshaped(builder, x, (math.prod(lead), width))
    size = math.prod(lead) * -(-width // group)
    lanes = rows.lanes_of(machine, group)

    def bytes_of(a: Any, t: Any) -> Any:
        value = value_of(a, group)
        least, most, one = (tirx.const(float(v), FLOAT) for v in (-LIMIT, LIMIT, 1))
        up = te.compute((size,), lambda q: one / t(q), name="up")

        def whole(q: Expr, c: Expr) -> Expr:
            return tirx.min(tirx.max(mathops.nearest(value(q, c) * up(q)), least), most).astype("int32")

        number = te.compute((size, group), whole, name="whole")
        return te.compute((size, DIGITS, group), lambda q, p, c: digit(number(q, c), p), name=rows.LAST)

    def sums_of(d: Any) -> Any:
        total = rows.reduced(
            lambda q, p, c: d(q, p, c).astype("int32"), [size, DIGITS], group, lanes, "total", te.sum, rows.add
        )
        return te.compute((size, DIGITS), lambda q, p: total(q, p, 0), name=rows.LAST)

    step = steps(builder, x, group, machine)
    made = emitted(builder, "digits", bytes_of, x, step, pattern=OPAQUE)
    return Digits(made, step, emitted(builder, "digits_sums", sums_of, made, pattern=OPAQUE))


def digit(number: Expr, p: Expr) -> Expr:
    """Digit p of three, the highest first: each is what remains nearest to 0."""
    half = tirx.const(0x8080, "int32") >> (p * 8)
    return ((number + half) >> (16 - p * 8)).astype("int8")


def eight_bit(builder: Any, x: Expr, matrix: Int8, shape: Sequence[int], machine: Machine) -> Expr:
    """x [..., K] times int8 weights; sums of all inputs stay in int32 digit by digit."""
    *lead, width = shape_of(x)
    panel = panel_of(machine, rows=DIGITS * math.prod(lead), columns=shape[-1])
    group = -(-width // 4) * 4
    x_digits = digits(builder, x, group, machine)
    signed = machine.dot == dots.SDOT
    q = np.pad(matrix.q, ((0, group - width), (0, 0)))
    held = quads(panel, q if signed else (q.astype(np.int16) + BYTE_OFFSET).astype(np.uint8).view(np.int8))
    padded = (*lead, panel.count * panel.columns)

    def form(d: Any, t: Any, sums: Any, w: Any, s: Any) -> Any:
        k = te.reduce_axis((0, group // 4), name="k")

        def dot(*i: Any) -> Any:
            *row, p, n = i
            word = w(n // panel.columns, k, n % panel.columns)
            return dots.summed(dots.dot(machine.dot, word, quad(d, (row_of(row, lead), p), k * 4)), axis=k)

        y = te.compute((*lead, DIGITS, padded[-1]), dot, name=schedule.PART)

        def digit_sum(row: Sequence[Expr], p: int, n: Expr) -> Expr:
            total = y(*row, p, n)
            total = total if signed else total - sums(row_of(row, lead), p) * tirx.const(BYTE_OFFSET, "int32")
            return total.astype(FLOAT)

        def joined(*i: Any) -> Expr:
            *row, n = i
            high, middle, low = (digit_sum(row, p, n) for p in range(DIGITS))
            number = (high * tirx.const(65536.0, FLOAT) + middle * tirx.const(256.0, FLOAT)) + low
            return number * (t(row_of(row, lead)) * s(n))

        return trimmed(te.compute(padded, joined, name=schedule.JOINED), tuple(shape))

    scale = np.pad(matrix.scale, (0, padded[-1] - shape[-1]))
    return emitted(builder, "product_w8", form, x_digits.bytes_, x_digits.step, x_digits.sums, held, scale)


def four_bit(builder: Any, x: Expr, matrix: Int4, shape: Sequence[int], panel: Panel, machine: Machine) -> Expr:
    """x [..., K] times 4-bit weights in groups; the sum of a group is one int32."""
    lead, count = shape_of(x)[:-1], len(matrix.scale)
    padded = panel.count * panel.columns
    x_digits = digits(builder, x, GROUP, machine)
    words = four_bit_words(panel, np.pad(matrix.q, ((0, count * GROUP - len(matrix.q)), (0, 0))))
    scale = narrowest(np.pad(matrix.scale, ((0, 0), (0, padded - shape[-1]))))

    def form(d: Any, t: Any, sums: Any, w: Any, s: Any) -> Any:
        def group_of(row: Sequence[Expr], g: Expr) -> Expr:
            return row_of(row, lead) * count + g

        parts = group_sums(d, w, group_of, (*lead, count, DIGITS, padded), panel, machine)
        g = te.reduce_axis((0, count), name="g")

        def term(*i: Any) -> Expr:
            *row, n = i
            q = group_of(row, g)
            number = joined_digits([parts(*row, g, p, n) for p in range(DIGITS)], [sums(q, p) for p in range(DIGITS)])
            return te.sum(number.astype(FLOAT) * (t(q) * s(g, n).astype(FLOAT)), axis=g)

        return trimmed(te.compute((*lead, padded), term, name=schedule.JOINED), tuple(shape))

    return emitted(builder, "product_w4", form, x_digits.bytes_, x_digits.step, x_digits.sums, words, scale)


def narrowest(scale: Array) -> Array:
    """Scales in float16 where that loses nothing."""
    half = scale.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), scale) else scale


def group_sums(
    d: Any, w: Any, group_of: Callable[..., Expr], shape: Sequence[int], panel: Panel, machine: Machine
) -> Any:
    """[..., group, digit, output]: a group's digits times its weights plus 8, from words of eight weights."""
    word = te.reduce_axis((0, GROUP // EIGHT), name="word")
    side = te.reduce_axis((0, 2), name="side")  # the low halves of a word's bytes, then the high ones

    def product(*i: Any) -> Expr:
        *row, g, p, n = i
        bits = w(n // panel.columns, g * (GROUP // EIGHT) + word, n % panel.columns)
        four = tirx.if_then_else(side == 0, bits, bits >> tirx.const(4, "int32")) & tirx.const(0x0F0F0F0F, "int32")
        digit_bytes = quad(d, (group_of(row, g), p), word * EIGHT + side * 4)
        return dots.summed(dots.dot(machine.dot, four, digit_bytes), axis=[word, side])

    return te.compute(tuple(shape), product, name=schedule.PART)


def joined_digits(parts: Sequence[Expr], sums: Sequence[Expr]) -> Expr:
    """The int32 of a group: the products of its digits joined, less 8 times its inputs, as weights have 8 too much."""
    eight, sixteen = tirx.const(8, "int32"), tirx.const(16, "int32")
    whole = (sums[0] << sixteen) + (sums[1] << eight) + sums[2]
    return (parts[0] << sixteen) + (parts[1] << eight) + (parts[2] - whole * eight)


def quad(d: Any, outer: Sequence[Expr], place: Expr) -> Expr:
    """Four neighbouring bytes of a row as one int32."""
    parts = [d(*outer, place + i).astype("uint8").astype("int32") << tirx.const(8 * i, "int32") for i in range(4)]
    return parts[0] | parts[1] | parts[2] | parts[3]


def row_of(indices: Sequence[Expr], lead: Sequence[int]) -> Expr:
    """The number of a row in the order in which they lie."""
    number: Expr = tirx.const(0, "int32")
    for index, extent in zip(indices, lead, strict=True):
        number = number * extent + index
    return number


def four_bit_words(panel: Panel, q: Any) -> Any:
    """-8..7 [K, N], plus 8, as int32 [N / P, K / 8, P]: four inputs in the low halves of the bytes, then four above."""
    bits = panel.packed((q + 8).astype(np.uint32)).reshape(panel.count, -1, EIGHT, panel.columns)
    shifts = np.array([8 * (i % 4) + 4 * (i // 4) for i in range(EIGHT)], np.uint32)[:, None]
    return np.ascontiguousarray(np.bitwise_or.reduce(bits << shifts, axis=2)).view(np.int32)
