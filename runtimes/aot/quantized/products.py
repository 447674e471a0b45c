"""Operators of edgemem's own as tensor expressions; weights are packed for the core when the model is imported.

w8, f16   y[n] = s[n] sum_k x[k] wide(w[k, n])                             panels [N / P, K, P]
w8, w4    on cores that sum products of four bytes: `digits`
w4        y[n] = sum_g 16 s[g, n] sum_k x[k] ((q[k, n] + 24) / 16 - 1.5)    panels [N / P, K / 8, P]
vq        y[n] = s[n] sum_k x[k] book[code[k / dim, n], k mod dim]         codes [N / C, K / dim, C]
          or, for many rows, a product with panels that are decoded first; where bytes are permuted: `tables`
integer   y[n] = sum_k (x[k] - z) w[k, n], in int32                        panels [N / P, K / 4, P]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import ir, relax, te, tirx

from edgemem.runtimes.aot import dots, mathops
from edgemem.runtimes.aot.folding import dtype_of, shape_of
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized import digits, recogniser, tables, tiles
from edgemem.runtimes.aot.quantized.emitting import FLOAT, OPAQUE, constant, emitted, reshaped, trimmed
from edgemem.runtimes.aot.quantized.weights import (
    EIGHT,
    GROUP,
    Codes,
    Half,
    Int4,
    Int8,
    Narrow,
    nibbles,
    quads,
    widened,
)
from edgemem.runtimes.aot.schedules import groups, lookup, rows
from edgemem.runtimes.aot.schedules.matmul import PACKED, Panel, panel_of

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any


def converted(
    builder: Any, kind: str, inputs: Sequence[Expr], attributes: Mapping[str, Any], matrices: Any, machine: Machine
) -> Expr:
    """The Relax expression of one operator of edgemem's own."""
    matrix: Any = matrices[attributes["matrix"]] if "matrix" in attributes else None
    if kind == recogniser.PRODUCT:
        return product(builder, inputs[0], matrix, machine)
    if kind == recogniser.INTEGER:
        return integer_product(builder, inputs[0], inputs[1] if len(inputs) > 1 else None, matrix, machine)
    if kind == recogniser.DYNAMIC:
        return dynamic(builder, inputs[0], machine)
    if kind == recogniser.ROWS:
        return quantized_rows(builder, inputs[0], inputs[1], machine)
    if kind == recogniser.HALF:
        return builder.emit_te(half, inputs[0], primfunc_name_hint="half")
    return decoded(builder, matrix, bool(attributes.get("rows", 0)), tuple(attributes["shape"]))


def half(bits: Any) -> Any:
    return te.compute(bits.shape, lambda *i: widened(bits(*i)), name="half")


def product(builder: Any, x: Expr, matrix: Narrow, machine: Machine) -> Expr:
    """x [..., K] times a narrow matrix [K, N]."""
    x = builder.normalize(x)
    shape = (*shape_of(x)[:-1], matrix.shape[1])
    if len(shape) < 2:
        flat = product(builder, reshaped(builder, x, (1, matrix.shape[0])), matrix, machine)
        return reshaped(builder, flat, shape)
    count = math.prod(shape[:-1])
    panel = panel_of(machine, rows=count, columns=shape[-1])
    if isinstance(matrix, Half):
        return emitted(
            builder,
            "product_f16",
            lambda a, w: trimmed(panelled(a, w, shape, panel, as_float if machine.half else widened), shape),
            x,
            panel.packed(matrix.bits).view(np.float16 if machine.half else np.uint16),
        )
    if isinstance(matrix, Int8) and digits.fits(machine):
        return digits.eight_bit(builder, x, matrix, shape, machine)
    if isinstance(matrix, Int8):
        scale = constant(matrix.scale)
        return emitted(
            builder, "product_w8", lambda a, w, s: scaled(panelled(a, w, shape, panel, as_float), s, shape), x,
            panel.packed(matrix.q), scale,
        )  # fmt: skip
    if isinstance(matrix, Int4):
        return four_bit(builder, x, matrix, shape, machine)
    if count <= lookup.MOST_ROWS and tables.fits(machine, matrix):
        return tables.product(builder, x, matrix, shape, machine)
    if count <= lookup.MOST_ROWS:
        return looked_up(builder, x, matrix, shape, machine)
    return decoded_product(builder, x, matrix, shape, panel)


def as_float(value: Expr) -> Expr:
    return value.astype(FLOAT)


def panelled(x: Any, w: Any, shape: tuple[int, ...], panel: Panel, wide: Callable[[Expr], Expr]) -> Any:
    """sum_k x[..., k] wide(w[n / P, k, n mod P]), with the padding of the last panel where a block follows."""
    k = te.reduce_axis((0, int(x.shape[-1])), name="k")
    padded = (*shape[:-1], panel.count * panel.columns)

    def dot(*i: Any) -> Any:
        return te.sum(x(*i[:-1], k) * wide(w(i[-1] // panel.columns, k, i[-1] % panel.columns)), axis=k)

    return te.compute(padded, dot, name=PACKED)


def scaled(y: Any, scale: Any, shape: tuple[int, ...]) -> Any:
    return te.compute(shape, lambda *i: y(*i) * scale(i[-1]), name="packed_scaled")


def four_bit(builder: Any, x: Expr, matrix: Int4, shape: tuple[int, ...], machine: Machine) -> Expr:
    """A product with groups of 4-bit weights; inputs and outputs are padded to whole groups and panels."""
    panel = groups.panel_of(machine, shape[-1])
    if digits.fits(machine):
        return digits.four_bit(builder, x, matrix, shape, panel, machine)
    count, width = matrix.scale.shape[0], shape_of(x)[-1]
    q = np.pad(matrix.q, ((0, count * GROUP - len(matrix.q)), (0, 0)))
    scale = np.pad(matrix.scale, ((0, 0), (0, panel.count * panel.columns - shape[-1])))
    half = scale.astype(np.float16)
    held = half.view(np.uint16) if np.array_equal(half.astype(np.float32), scale) else scale
    if width < count * GROUP:
        x = emitted(builder, "group_pad", lambda a: whole_groups(a, count), x, pattern=OPAQUE)
    sums = emitted(builder, "group_sums", group_sums, x, pattern=OPAQUE)
    return emitted(
        builder,
        "product_w4",
        lambda a, total, w, s: four_bit_form(a, total, w, s, shape, panel),
        x,
        sums,
        nibbles(panel, q),
        held,
    )


def whole_groups(x: Any, count: int) -> Any:
    """x [..., K] with zeros behind it, [..., 32 count]."""
    width, nothing = int(x.shape[-1]), tirx.const(0.0, FLOAT)
    return te.compute(
        (*x.shape[:-1], count * GROUP),
        lambda *i: tirx.if_then_else(i[-1] < width, x(*i[:-1], tirx.min(i[-1], width - 1)), nothing),
        name="group_pad",
    )


def group_sums(x: Any) -> Any:
    """The sum of every 32 of x [..., K]: [..., K / 32]."""
    *lead, width = (int(extent) for extent in x.shape)
    j = te.reduce_axis((0, GROUP // groups.LANES), name="j")
    some = te.compute(
        (*lead, width // GROUP, groups.LANES),
        lambda *i: te.sum(x(*i[:-2], i[-2] * GROUP + j * groups.LANES + i[-1]), axis=j),
        name=groups.SUM,
    )
    return te.compute(some.shape[:-1], lambda *i: tree([some(*i, n) for n in range(groups.LANES)]), name="group_sums")


def four_bit_form(x: Any, total: Any, w: Any, scale: Any, shape: tuple[int, ...], panel: Panel) -> Any:
    """x [..., K], sums [..., K / 32], w int32 [N / P, K / 8, P], scale [K / 32, N] in float32 or bits of float16
    -> [..., N]

    A nibble n among the bits of a float32 makes it 1 + n / 16, that is (q + 24) / 16.
    """
    lead, count = shape[:-1], int(scale.shape[0])
    word = te.reduce_axis((0, GROUP // EIGHT), name="word")

    def part(*i: Any) -> Any:
        bits = w(i[-1] // panel.columns, i[-2] * (GROUP // EIGHT) + word, i[-1] % panel.columns)
        first = i[-2] * GROUP + word * EIGHT
        terms = [x(*i[:-2], first + k) * with_nibble(bits, k) for k in range(EIGHT)]
        return te.sum(sum(terms[1:], terms[0]), axis=word)

    parts = te.compute((*lead, count, panel.count * panel.columns), part, name=groups.PART)
    g = te.reduce_axis((0, count), name="g")
    middle = tirx.const(1.5, FLOAT)

    def step(*i: Any) -> Any:
        value = scale(*i)
        return (widened(value) if str(value.ty.dtype) == "uint16" else value) * tirx.const(16.0, FLOAT)

    y = te.compute(
        (*lead, panel.count * panel.columns),
        lambda *i: te.sum((parts(*i[:-1], g, i[-1]) - total(*i[:-1], g) * middle) * step(g, i[-1]), axis=g),
        name=groups.TOTAL,
    )
    return trimmed(y, shape)


def with_nibble(bits: Expr, k: int) -> Expr:
    """The float32 with nibble `k` of a word as the highest bits of its fraction, and exponent 0."""

    def number(value: int) -> Expr:
        return tirx.const(value, "int32")

    up = 19 - 4 * k
    moved = bits << number(up) if up >= 0 else bits >> number(-up)
    return tirx.reinterpret(FLOAT, (moved & number(0x780000)) | number(0x3F800000))


def tree(terms: list[Expr]) -> Expr:
    """Their sum, halves first."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return tree(terms[:middle]) + tree(terms[middle:])


def looked_up(builder: Any, x: Expr, matrix: Codes, shape: tuple[int, ...], machine: Machine) -> Expr:
    """Codebook entries multiplied as they are read."""
    dim, count = matrix.dim, len(matrix.codes)
    panel = lookup.panel_of(machine, math.prod(shape[:-1]), shape[-1], dim)
    codes = np.stack([panel.packed(part.T) for part in matrix.codes])  # [R, N / C, K / dim, C]

    def form(a: Any, c: Any, b: Any, s: Any) -> Any:
        g = te.reduce_axis((0, int(c.shape[2])), name="g")

        def part(*i: Any) -> Any:
            *row, n, d = i
            terms = [b(r, c(r, n // panel.columns, g, n % panel.columns).astype("int32"), d) for r in range(count)]
            return te.sum(a(*row, g * dim + d) * sum(terms[1:], terms[0]), axis=g)

        padded = (*shape[:-1], panel.count * panel.columns)
        parts = te.compute((*padded, dim), part, name=lookup.PARTS)
        y = te.compute(padded, lambda *i: tree([parts(*i, d) for d in range(dim)]) * s(i[-1]), name=lookup.TOTAL)
        return trimmed(y, shape)

    scale = np.pad(matrix.scale, (0, panel.count * panel.columns - shape[-1]))
    return emitted(builder, "product_vq", form, x, codes, matrix.books, scale)


def decoded_product(builder: Any, x: Expr, matrix: Codes, shape: tuple[int, ...], panel: Panel) -> Expr:
    """For many rows: each panel is decoded once, then read by all of them."""
    codes = np.stack([panel.packed(part.T) for part in matrix.codes])  # [R, N / P, K / dim, P]
    dim, count = matrix.dim, len(matrix.codes)

    def form(a: Any, c: Any, b: Any, s: Any) -> Any:
        width = int(a.shape[-1])

        def entry(p: Expr, k: Expr, n: Expr) -> Expr:
            terms = [b(r, c(r, p, k // dim, n).astype("int32"), k % dim) for r in range(count)]
            return sum(terms[1:], terms[0])

        w = te.compute((panel.count, width, panel.columns), entry, name="decoded_panel")
        return scaled(panelled(a, w, shape, panel, lambda value: value), s, shape)

    return emitted(builder, "product_vq_rows", form, x, codes, matrix.books, matrix.scale)


def integer_product(builder: Any, x: Expr, zero: Expr | None, q: Array, machine: Machine) -> Expr:
    """(x - zero) times an int8 matrix, in int32; x is uint8 or int8."""
    shape = (*shape_of(x)[:-1], q.shape[1])
    if len(shape) < 2:
        flat = integer_product(builder, reshaped(builder, x, (1, q.shape[0])), zero, q, machine)
        return reshaped(builder, flat, shape)
    if tiles.fits(machine, shape[:-1], q.shape):
        return tiles.product(builder, x, zero, q, machine)
    panel = panel_of(machine, rows=math.prod(shape[:-1]), columns=shape[-1])
    shift, flips = offset_of(dtype_of(x), machine.dot)
    held: list[Any] = [quads(panel, q), q.sum(axis=0, dtype=np.int32)]
    if zero is not None and not isinstance(zero, ir.GenericConst):
        held.append(reshaped(builder, zero, (1,)))
    elif zero is not None:
        shift += int(zero.value.numpy().item())

    def form(a: Any, w: Any, sums: Any, z: Any = None) -> Any:
        k = te.reduce_axis((0, int(w.shape[1])), name="k")

        def dot(*i: Any) -> Any:
            word = word_of(a, i[:-1], k)
            word = word ^ tirx.const(FLIPPED, "int32") if flips else word
            return dots.summed(dots.dot(machine.dot, word, w(i[-1] // panel.columns, k, i[-1] % panel.columns)), axis=k)

        y = te.compute((*shape[:-1], panel.count * panel.columns), dot, name=f"{PACKED}_integer")
        if z is None and shift == 0:
            return trimmed(y, shape)
        constant_part = tirx.const(shift, "int32")

        def moved(*i: Any) -> Any:
            offset = constant_part if z is None else z(0).astype("int32") + constant_part
            return y(*i) - offset * sums(i[-1])

        return te.compute(shape, moved, name="packed_moved")

    return emitted(builder, "product_w8a8", form, x, *held)


FLIPPED = -0x7F7F7F80  # the highest bit of every byte: 128 more or less


def offset_of(dtype: str, kind: str) -> tuple[int, bool]:
    """How far below an instruction's operands the values of a type are, and whether their highest bit flips."""
    if kind in dots.SIGNED:
        return (-128, True) if dtype == "uint8" else (0, False)
    return (0, False) if dtype == "uint8" else (128, True)


def word_of(x: Any, row: Sequence[Expr], k: Expr) -> Expr:
    """Four neighbours of a row of bytes as one int32; 0 behind the end, where the weights are 0 too."""
    width = int(x.shape[-1])

    def byte(i: int) -> Expr:
        place, nothing = k * 4 + i, tirx.const(0, "int32")
        inside = width % 4 == 0 or i < width % 4
        value = x(*row, place if inside else tirx.min(place, width - 1))
        value = value.astype("uint8").astype("int32") << tirx.const(8 * i, "int32")
        return value if inside else tirx.Select(place < width, value, nothing)

    return byte(0) | byte(1) | byte(2) | byte(3)


def dynamic(builder: Any, x: Expr, machine: Machine) -> Expr:
    """uint8 values, scale and zero point of a tensor: its range and 0 in 255 steps (ONNX DynamicQuantizeLinear)."""
    shape = shape_of(x)
    size = math.prod(shape)
    lanes = rows.lanes_of(machine, size)

    def form(a: Any) -> Any:
        def value(k: Expr) -> Expr:
            return a(k)

        high = rows.reduced(value, [], size, lanes, "high", te.max, tirx.max)
        low = rows.reduced(value, [], size, lanes, "low", te.min, tirx.min)
        nothing, most = tirx.const(0.0, FLOAT), tirx.const(255.0, FLOAT)
        step = te.compute((1,), lambda i: (tirx.max(high(i), nothing) - tirx.min(low(i), nothing)) / most, name="step")
        safe = te.compute((1,), lambda i: tirx.Select(step(i) > nothing, step(i), tirx.const(1.0, FLOAT)), name="safe")
        zero = te.compute((1,), lambda i: mathops.nearest(nothing - tirx.min(low(i), nothing) / safe(i)), name="zero")
        q = te.compute(
            (size,),
            lambda k: tirx.max(tirx.min(mathops.nearest(a(k) / safe(0)) + zero(0), most), nothing).astype("uint8"),
            name=rows.LAST,
        )
        return [q, step, te.compute((1,), lambda i: zero(i).astype("uint8"), name="zero_point")]

    made = emitted(builder, "dynamic_quantize", form, reshaped(builder, x, (size,)), pattern=OPAQUE)
    q, step, zero = (builder.emit(relax.TupleGetItem(made, index)) for index in range(3))
    return relax.Tuple([reshaped(builder, q, shape), reshaped(builder, step, ()), reshaped(builder, zero, ())])


def quantized_rows(builder: Any, x: Expr, scale: Expr, machine: Machine) -> Expr:
    """nearest(x / scale) in int8, x [..., K], scale [..., 1] with |x| <= 127 scale: one division for each row."""
    shape = tuple(shape_of(x))

    def form(a: Any, s: Any) -> Any:
        one, most = (tirx.const(value, FLOAT) for value in (1.0, 127.0))
        inverse = te.compute(s.shape, lambda *i: one / s(*i), name="inverse")

        def value(*i: Any) -> Any:
            row = (*i[:-1], 0)
            q = mathops.nearest(mathops.divided(a(*i), s(*row), inverse(*row)))
            return tirx.max(tirx.min(q, most), -most).astype("int8")  # NaN has a place, too

        return te.compute(shape, value, name=rows.LAST)

    return emitted(builder, "quantized_rows", form, x, scale, pattern=OPAQUE)


def decoded(builder: Any, matrix: Narrow, rows_first: bool, shape: tuple[int, ...]) -> Expr:
    """A narrow matrix as floats in the arena, for operators without a narrow kernel."""
    if isinstance(matrix, Codes):
        held = [matrix.codes, matrix.books, matrix.scale]
    elif isinstance(matrix, Int4):
        held = [matrix.q, matrix.scale]
    else:
        held = [matrix.q, matrix.scale] if isinstance(matrix, Int8) else [matrix.bits]
    inputs, outputs = matrix.shape

    def value(tensors: Sequence[Any], k: Expr, n: Expr) -> Expr:
        if isinstance(matrix, Half):
            return widened(tensors[0](k, n))
        if isinstance(matrix, Int8):
            return tensors[0](k, n).astype(FLOAT) * tensors[1](n)
        if isinstance(matrix, Int4):
            return tensors[0](k, n).astype(FLOAT) * tensors[1](k // GROUP, n)
        codes, books, scale = tensors
        terms = [
            books(r, codes(r, n, k // matrix.dim).astype("int32"), k % matrix.dim) for r in range(len(matrix.codes))
        ]
        return sum(terms[1:], terms[0]) * scale(n)

    def form(*tensors: Any) -> Any:
        size = (outputs, inputs) if rows_first else (inputs, outputs)
        pick = (lambda a, b: value(tensors, b, a)) if rows_first else (lambda a, b: value(tensors, a, b))
        return te.compute(size, pick, name="decoded")

    return reshaped(builder, emitted(builder, f"decoded_{matrix.kernel}", form, *held, pattern=OPAQUE), shape)
