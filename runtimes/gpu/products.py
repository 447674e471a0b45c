"""Products with constant matrices as tensor expressions for GPUs; narrow weights are widened in the kernel.

Weights lie by output, so that the threads which share one output read neighbours:

float    y[n] = sum_k x[k] w[n, k]                                         w [N, K]
f16, w8  y[n] = s[n] sum_k x[k] wide(w[n, k])                              w [N, K]
w4       y[n] = sum_k x[k] (nibble k mod 8 of w[n, k / 8] - 8) s[n, k/32]  w int32 [N, K / 8], s [N, K / 32]
vq       y[n] = s[n] sum_k x[k] sum_r book[r, code[r, n, k / dim], k mod dim]
integer  y[n] = sum_k (x[k] - z) w[n, k], in int32                         w int32 [N, K / 4], four bytes a word
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import ir, relax, te, tirx

from edgemem.runtimes.aot import dots
from edgemem.runtimes.aot.folding import dtype_of, shape_of
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized import products as host
from edgemem.runtimes.aot.quantized import recogniser
from edgemem.runtimes.aot.quantized.emitting import FLOAT, emitted, reshaped
from edgemem.runtimes.aot.quantized.weights import EIGHT, GROUP, Half, Int4, Int8, Narrow, widened

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any
PRODUCT = "product"  # the block that sums; `schedules` knows it by this name


def converted(
    builder: Any, kind: str, inputs: Sequence[Expr], attributes: Mapping[str, Any], matrices: Any, machine: Machine
) -> Expr:
    """The Relax expression of one operator of edgemem's own."""
    matrix: Any = matrices[attributes["matrix"]] if "matrix" in attributes else None
    if kind == recogniser.PRODUCT:
        return product(builder, inputs[0], matrix)
    if kind == recogniser.INTEGER:
        return integer_product(builder, inputs[0], inputs[1] if len(inputs) > 1 else None, matrix, machine)
    if kind == recogniser.DYNAMIC:
        return dynamic(builder, inputs[0])
    return host.converted(builder, kind, inputs, attributes, matrices, machine)


def float_product(builder: Any, x: Expr, weights: Array, shape: Sequence[int]) -> Expr:
    """x [..., K] times a float32 matrix [K, N]."""

    def form(a: Any, w: Any) -> Any:
        return summed(a, shape, lambda n, k: w(n, k))

    return emitted(builder, "product_float", form, x, weights.T)


def product(builder: Any, x: Expr, matrix: Narrow) -> Expr:
    """x [..., K] times a narrow matrix [K, N], float32."""
    x = builder.normalize(x)
    shape = (*shape_of(x)[:-1], matrix.shape[1])

    def scaled(y: Any, scale: Any) -> Any:
        return te.compute(y.shape, lambda *i: y(*i) * scale(i[-1]), name="scaled")

    if isinstance(matrix, Half):
        form: Callable[..., Any] = lambda a, w: summed(a, shape, lambda n, k: widened(w(n, k)))  # noqa: E731
        held = [matrix.bits.T]
    elif isinstance(matrix, Int8):
        form = lambda a, w, s: scaled(summed(a, shape, lambda n, k: w(n, k).astype(FLOAT)), s)  # noqa: E731
        held = [matrix.q.T, matrix.scale]
    elif isinstance(matrix, Int4):
        form = lambda a, w, s: summed(a, shape, lambda n, k: four_bits(w, n, k) * s(n, k // GROUP))  # noqa: E731
        held = [nibbles_by_output(matrix.q), matrix.scale.T]
    else:
        dim, count = matrix.dim, len(matrix.codes)
        form = lambda a, c, b, s: scaled(summed(a, shape, lambda n, k: entry(c, b, n, k, dim, count)), s)  # noqa: E731
        held = [matrix.codes, matrix.books, matrix.scale]
    return emitted(builder, f"product_{matrix.kernel}", form, x, *held)


def summed(x: Any, shape: Sequence[int], weight: Callable[[Expr, Expr], Expr]) -> Any:
    """sum_k x[..., k] weight(n, k)"""
    k = te.reduce_axis((0, int(x.shape[-1])), name="k")
    return te.compute(tuple(shape), lambda *i: te.sum(x(*i[:-1], k) * weight(i[-1], k), axis=k), name=PRODUCT)


def nibbles_by_output(q: Array) -> Array:
    """-8..7 [K, N] -> int32 [N, K / 8]: the weight plus 8 of input i among eight in bits 4 i to 4 i + 3."""
    bits = np.pad((q.T + 8).astype(np.uint32), ((0, 0), (0, -len(q) % EIGHT)))
    shifts = np.arange(0, 4 * EIGHT, 4, dtype=np.uint32)
    words: Array = np.bitwise_or.reduce(bits.reshape(len(bits), -1, EIGHT) << shifts, axis=2).view(np.int32)
    return words


def four_bits(words: Any, n: Expr, k: Expr) -> Expr:
    """One weight of -8..7 as a float."""
    shift = ((k % EIGHT) * 4).astype("int32")
    nibble = (words(n, k // EIGHT) >> shift) & tirx.const(15, "int32")
    return (nibble - tirx.const(8, "int32")).astype(FLOAT)


def entry(codes: Any, books: Any, n: Expr, k: Expr, dim: int, count: int) -> Expr:
    """One weight of vector codes, before its output's scale."""
    terms = [books(r, codes(r, n, k // dim).astype("int32"), k % dim) for r in range(count)]
    return sum(terms[1:], terms[0])


def integer_product(builder: Any, x: Expr, zero: Expr | None, q: Array, machine: Machine) -> Expr:
    """(x - zero) times an int8 matrix, in int32; x is uint8 or int8."""
    shape = (*shape_of(x)[:-1], q.shape[1])
    shift, flips = host.offset_of(dtype_of(x), machine.dot)
    held: list[Any] = [byte_words(q), q.astype(np.int32).sum(axis=0)]
    if zero is not None and not isinstance(zero, ir.GenericConst):
        held.append(reshaped(builder, zero, (1,)))
    elif zero is not None:
        shift += int(zero.value.numpy().item())

    def form(a: Any, w: Any, sums: Any, z: Any = None) -> Any:
        k = te.reduce_axis((0, int(w.shape[1])), name="k")

        def dot(*i: Any) -> Any:
            word = host.word_of(a, i[:-1], k)
            word = word ^ tirx.const(host.FLIPPED, "int32") if flips else word
            return te.sum(dots.dot(machine.dot, word, w(i[-1], k)), axis=k)

        y = te.compute(tuple(shape), dot, name=PRODUCT)
        if z is None and shift == 0:
            return y
        part = tirx.const(shift, "int32")

        def moved(*i: Any) -> Any:
            offset = part if z is None else z(0).astype("int32") + part
            return y(*i) - offset * sums(i[-1])

        return te.compute(tuple(shape), moved, name="moved")

    return emitted(builder, "product_w8a8", form, x, *held)


def byte_words(q: Array) -> Array:
    """int8 [K, N] as int32 [N, K / 4]: four inputs of an output in a word, the first in its lowest byte."""
    return np.ascontiguousarray(np.pad(q.T, ((0, 0), (0, -len(q) % 4)))).view("<i4").astype(np.int32)


def dynamic(builder: Any, x: Expr) -> Expr:
    """uint8 values, scale and zero point of a tensor: its range and 0 in 255 steps (ONNX DynamicQuantizeLinear)."""
    shape = shape_of(x)
    size = math.prod(shape)
    nothing, most = tirx.const(0.0, FLOAT), tirx.const(255.0, FLOAT)

    def extreme(a: Any, reduce: Any, name: str) -> Any:
        k = te.reduce_axis((0, size), name="k")
        return te.compute((1,), lambda _: reduce(a(k), axis=k), name=name)

    def step_of(high: Any, low: Any) -> Any:
        return te.compute((1,), lambda i: (tirx.max(high(i), nothing) - tirx.min(low(i), nothing)) / most, name="step")

    def safe(step: Any) -> Expr:
        return tirx.Select(step(0) > nothing, step(0), tirx.const(1.0, FLOAT))

    def zero_of(step: Any, low: Any) -> Any:
        return te.compute((1,), lambda i: tirx.round(nothing - tirx.min(low(i), nothing) / safe(step)), name="zero")

    def values(a: Any, step: Any, zero: Any) -> Any:
        def value(k: Expr) -> Expr:
            return tirx.max(tirx.min(tirx.round(a(k) / safe(step)) + zero(0), most), nothing).astype("uint8")

        return te.compute((size,), value, name="quantized")

    flat = reshaped(builder, x, (size,))
    high = builder.emit_te(lambda a: extreme(a, te.max, "high"), flat, primfunc_name_hint="high")
    low = builder.emit_te(lambda a: extreme(a, te.min, "low"), flat, primfunc_name_hint="low")
    step = builder.emit_te(step_of, high, low, primfunc_name_hint="step")
    zero = builder.emit_te(zero_of, step, low, primfunc_name_hint="zero")
    q = builder.emit_te(values, flat, step, zero, primfunc_name_hint="quantized")
    point = builder.emit(relax.op.astype(zero, "uint8"))
    parts = [reshaped(builder, part, size) for part, size in ((q, shape), (step, ()), (point, ()))]
    return relax.Tuple(parts)
