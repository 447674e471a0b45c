"""Kernels on narrow weights, each alone against NumPy in double precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import relax, te

from edgemem.runtimes.aot import legalize, mathops
from edgemem.runtimes.aot.quantized import products, reasons, tables
from edgemem.runtimes.aot.quantized.weights import Codes, Half, Int4, Int8, nibbles, widened
from edgemem.runtimes.aot.schedules import lookup
from edgemem.runtimes.aot.schedules.matmul import Panel
from tests.aot_kernels import HOST, kernels_of, run_module, run_tensors

Array = np.ndarray[Any, np.dtype[Any]]
RUNNABLE = {HOST.dot, "portable", *(["pairs"] if HOST.dot == "vnni" else [])}
DOTS = sorted({"portable", *({"vnni"} & {HOST.dot})})  # with floats, with digits
SHAPES = [(1, 64, 64), (1, 32, 10), (1, 96, 200), (3, 64, 17), (12, 64, 48)]


def computed(folder: Path, x: Array, operator: Any, machine: Any = HOST) -> tuple[Array, str]:
    """The result of one operator on `x`, compiled for this machine, and the schedule it got."""
    return run_module(folder, module_of(x, operator), [x], machine)


def module_of(x: Array, operator: Any) -> Any:
    """A Relax module of one operator on arrays like `x`."""
    builder = relax.BlockBuilder()
    variable = relax.Var("x", relax.TensorType(list(x.shape), str(x.dtype)))
    with builder.function("main", [variable]):
        with builder.dataflow():
            made = builder.emit_output(builder.normalize(operator(builder, variable)))
        builder.emit_func_output(made)
    return builder.get()


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize(
    ("kind", "dot"), [("f16", "portable"), ("vq", "portable"), *(("w8", d) for d in DOTS), *(("w4", d) for d in DOTS)]
)
def test_products(tmp_path: Path, kind: str, dot: str, m: int, k: int, n: int) -> None:
    """Weights widened to floats, and activations as digits where the core multiplies bytes."""
    rng = np.random.default_rng(m * k * n)
    x = rng.standard_normal((m, k)).astype("f")
    matrix, w = narrow(rng, kind, k, n)
    machine = replace(HOST, dot=dot)
    machine = machine if kind != "f16" else replace(machine, half=HOST.half and m % 2 == 1)  # both ways to widen
    y, schedule = computed(tmp_path, x, lambda builder, a: products.product(builder, a, matrix, machine))
    wanted = x.astype("d") @ w
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=2e-6 * np.abs(wanted).max())
    with_floats = {"w4": "groups", "vq": "lookup" if m <= lookup.MOST_ROWS else "tile"}
    assert schedule == ("digits" if dot == "vnni" else with_floats.get(kind, "tile"))


def narrow(rng: np.random.Generator, kind: str, k: int, n: int) -> tuple[Any, Array]:
    """A random matrix [k, n] of one kind, and what it stands for."""
    scale = rng.uniform(0.5, 2, n).astype("f")
    if kind == "f16":
        half = rng.standard_normal((k, n)).astype(np.float16)
        return Half(half.view(np.uint16)), half.astype("d")
    if kind == "w8":
        q = rng.integers(-128, 128, (k, n)).astype(np.int8)
        return Int8(q, scale), q * scale.astype("d")
    if kind == "w4":
        q, scales = rng.integers(-8, 8, (k, n)).astype(np.int8), rng.uniform(0.5, 2, (-(-k // 32), n)).astype("f")
        return Int4(q, scales), q * np.repeat(scales.astype("d"), 32, axis=0)[:k]
    return coded(rng, k, n, 4, 256, 2, mirrored=False)


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    ("kind", "dot"),
    [("f16", "portable"), ("vq", "portable"), *((k, d) for k in ("w8", "w4") for d in DOTS)]
    + [("w8a8", d) for d in sorted(RUNNABLE)],
)
def test_threads_may_share_the_panels(kind: str, dot: str, rows: int) -> None:
    """Of every narrow product; that a turn needs no other is checked wherever one is run."""
    rng, machine = np.random.default_rng(0), replace(HOST, dot=dot)
    x = np.zeros((rows, 96), "uint8" if kind == "w8a8" else "float32")
    matrix, _ = narrow(rng, "w8" if kind == "w8a8" else kind, 96, 300)

    def operator(builder: Any, a: Any) -> Any:
        if kind == "w8a8":
            return products.integer_product(builder, a, None, matrix.q, machine)
        return products.product(builder, a, matrix, machine)

    graph, kernels, _ = kernels_of(module_of(x, operator), ["x"], machine)
    assert (kernels[graph.calls[-1].kernel].shares or 1) > 1


@pytest.mark.skipif(not tables.permutes(HOST), reason="this core looks up no bytes")
def test_threads_make_tables_of_their_own() -> None:
    """What threads have in common are sums of outputs, of which each writes its own; no table is among them."""
    x, (matrix, _) = np.zeros((1, 96), "f"), narrow(np.random.default_rng(0), "vq", 96, 300)
    module = module_of(x, lambda builder, a: products.product(builder, a, matrix, HOST))
    _, kernels, schedules = kernels_of(module, ["x"], HOST)
    (made,) = (kernels[name] for name, schedule in schedules.items() if schedule == "tables")
    panels = -(-300 // tables.WIDE)
    assert made.shares == panels and made.repeats
    assert made.work_bytes == (panels * tables.WIDE * tables.DIGITS * 4,)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dim", "entries", "residual"),
    [
        (1, 512, 260, 4, 256, 1),
        (3, 96, 128, 2, 100, 1),
        (1, 64, 300, 8, 256, 2),
        (4, 40, 20, 4, 16, 2),
        (2, 36, 192, 4, 128, 3),
        (1, 7, 70, 1, 64, 1),
        (1, 1040, 64, 4, 64, 1),
    ],
)
def test_codes_by_tables(
    tmp_path: Path, mirrored: bool, rows: int, inputs: int, outputs: int, dim: int, entries: int, residual: int
) -> None:
    """Tables of one, two and four registers, one and several books, halves of mirrored ones, blocks of groups with an
    odd number left, outputs that fill no panel.
    """
    rng = np.random.default_rng(inputs)
    matrix, _ = coded(rng, inputs, outputs, dim, entries, residual, mirrored)
    matrix.codes[:, 0], matrix.codes[:, 1] = 0, entries - 1
    x = rng.standard_normal((rows, inputs)).astype("f")
    x[0] *= 1e-20
    assert tables.entries(matrix) == (entries // 2 if mirrored else entries)
    assert tables.fits(HOST, matrix) or "avx512vbmi" not in features()
    y, schedule = computed(tmp_path, x, lambda builder, a: products.product(builder, a, matrix, HOST))
    wanted = x.astype("d") @ values(matrix)
    error = np.abs(y - wanted).max(axis=1) / np.abs(wanted).max(axis=1)
    assert (error < 3e-6).all(), error
    if tables.fits(HOST, matrix):  # the last kernel: the product, or what takes the padding of its outputs away
        assert schedule == ("loops" if outputs % tables.WIDE else "tables")


def coded(
    rng: np.random.Generator, inputs: int, outputs: int, dim: int, entries: int, residual: int, mirrored: bool
) -> tuple[Codes, Array]:
    """A random matrix of codes, and what it stands for [inputs, outputs]."""
    books = rng.standard_normal((residual, entries, dim)).astype("f")
    if mirrored:
        books[:, entries // 2 :] = -books[:, : entries // 2]
    codes = rng.integers(0, entries, (residual, outputs, inputs // dim)).astype(np.uint8)
    matrix = Codes(codes, books, rng.uniform(0.5, 2, outputs).astype("f"))
    return matrix, values(matrix)


def values(matrix: Codes) -> Array:
    """What codes stand for, in double precision [inputs, outputs]."""
    terms = [
        book[code].reshape(len(code), -1) for book, code in zip(matrix.books.astype("d"), matrix.codes, strict=True)
    ]
    return (sum(terms[1:], terms[0]) * matrix.scale[:, None]).T


def test_an_entry_that_mirrors_none(tmp_path: Path) -> None:
    """One number in its last bit, and the whole table is made: a half would give it the wrong entry."""
    matrix, _ = coded(np.random.default_rng(2), 64, 256, 4, 256, 1, mirrored=True)
    books = matrix.books.copy()
    books[0, 200, 1] = np.nextafter(books[0, 200, 1], np.float32(9))
    assert tables.entries(matrix) == 128 and tables.entries(replace(matrix, books=books)) == 256
    books[0, 200, 1] += 3
    matrix.codes[0, :, 5] = 200
    changed = replace(matrix, books=books)
    x = np.random.default_rng(3).standard_normal((1, 64)).astype("f")
    y, _ = computed(tmp_path, x, lambda builder, a: products.product(builder, a, changed, HOST))
    wanted = x.astype("d") @ values(changed)
    np.testing.assert_allclose(y, wanted, atol=3e-6 * np.abs(wanted).max())
    assert np.abs(x.astype("d") @ values(matrix) - wanted).max() > 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_tables_at_their_limits(tmp_path: Path, mirrored: bool) -> None:
    """The largest entry of either sign in every group, alone and by turns: no sum of bytes or words goes round."""
    books = np.zeros((1, 256, 4), "f")
    books[0, 0], books[0, 128], books[0, 7, 0], books[0, 135, 0] = 1, -1, 0.25, -0.25
    if not mirrored:
        books[0, 9] = 0.5
    codes = np.zeros((1, 256, 512), np.uint8)
    codes[0, 1], codes[0, 2, ::2], codes[0, 3], codes[0, 4, 1:] = 128, 128, 7, 135
    matrix = Codes(codes, books, np.ones(256, "f"))
    x = np.array([[1e30] * 2048, [-1e-30] * 2048, [0] * 2048], "f")
    y, _ = computed(tmp_path, x, lambda builder, a: products.product(builder, a, matrix, HOST))
    wanted = x.astype("d") @ values(matrix)
    bound = np.abs(x).max(axis=1, keepdims=True) * 4 * 512 * 2.0**-22
    assert tables.entries(matrix) == (128 if mirrored else 256)
    assert (np.abs(y - wanted) <= bound).all() and not y[2].any()
    assert not y[:, 2].any()  # as many of one sign as of the other


def test_codes_by_tables_keep_what_is_not_finite(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    matrix, _ = narrow(rng, "vq", 64, 256)
    x = rng.standard_normal((3, 64)).astype("f")
    x[0, 3], x[1, 5] = np.nan, np.inf
    y, _ = computed(tmp_path, x, lambda builder, a: products.product(builder, a, matrix, HOST))
    assert not np.isfinite(y[:2]).any() and np.isfinite(y[2]).all()


def features() -> str:
    """What the processor says that it has."""
    info = Path("/proc/cpuinfo")
    return info.read_text().replace("_", "") if info.exists() else ""


def test_a_short_last_group(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, (matrix, w) = rng.standard_normal((2, 40)).astype("f"), narrow(rng, "w4", 40, 24)
    y, _ = computed(tmp_path, x, lambda builder, a: products.product(builder, a, matrix, HOST))
    np.testing.assert_allclose(y, x.astype("d") @ w, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("kind", ["w8", "w4"])
def test_digits_of_extreme_rows(tmp_path: Path, kind: str) -> None:
    """Largest weights against the largest activations, outliers, tiny rows, zeros; what is not finite stays so."""
    rng = np.random.default_rng(5)
    k, n = 2048, 64
    x = np.zeros((7, k), "f")
    x[0] = 1e30
    x[1], x[1, 77] = rng.standard_normal(k), -3000.0
    x[2] = rng.standard_normal(k) * 1e-25
    x[4], x[5], x[6] = rng.standard_normal((3, k))
    x[4, 5], x[5, 9], x[6, 11] = np.nan, np.inf, -np.inf
    matrix, w = narrow(rng, kind, k, n)
    matrix.q[:, :2] = np.iinfo(np.int8).min if kind == "w8" else -8  # the sums of whole columns at their limits
    matrix.q[:, 1:2] = np.iinfo(np.int8).max if kind == "w8" else 7
    w = matrix.q * (matrix.scale if kind == "w8" else np.repeat(matrix.scale, 32, axis=0)).astype("d")
    y, _ = computed(tmp_path, x, lambda builder, a: products.product(builder, a, matrix, HOST))
    wanted = x[:4].astype("d") @ w
    bound = np.abs(x[:4].astype("d")).max(axis=1, keepdims=True) * np.abs(w).sum(axis=0) * 2.0**-22
    assert (np.abs(y[:4] - wanted) <= bound).all() and not y[3].any()
    assert not np.isfinite(y[4:]).any()


def test_scales_of_16_bits(tmp_path: Path) -> None:
    """Scales that float16 holds exactly are stored so: subnormal ones included."""
    rng = np.random.default_rng(6)
    x, (matrix, _) = rng.standard_normal((1, 64)).astype("f"), narrow(rng, "w4", 64, 70)
    scale = matrix.scale.astype(np.float16).astype("f")
    scale[0, :3] = 2.0**-24, 2.0**-15, 0.0
    y, _ = computed(tmp_path, x, lambda builder, a: products.product(builder, a, Int4(matrix.q, scale), HOST))
    wanted = x.astype("d") @ (matrix.q * np.repeat(scale.astype("d"), 32, axis=0))
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("m", "k", "n"), [*SHAPES, (1, 7, 5), (2, 30, 33)])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("dot", sorted(RUNNABLE))
def test_integer_products_are_exact(tmp_path: Path, dot: str, dtype: str, m: int, k: int, n: int) -> None:
    """Extreme values included: no sum of bytes overflows or saturates."""
    machine = replace(HOST, dot=dot)
    rng = np.random.default_rng(k)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    x, q = rng.integers(low, high + 1, (m, k)).astype(dtype), rng.integers(-128, 128, (k, n)).astype(np.int8)
    x[0], q[:, 0] = high, 127
    q[:, 1], zero = -128, np.array([77], np.uint8)
    constant = relax.const(zero, "uint8") if dtype == "uint8" else None
    y, _ = computed(tmp_path, x, lambda builder, a: products.integer_product(builder, a, constant, q, machine))
    offset = int(zero[0]) if dtype == "uint8" else 0
    np.testing.assert_array_equal(y, (x.astype("i8") - offset) @ q.astype("i8"))


@pytest.mark.parametrize(("kind", "zero"), [("int8", 3), ("uint8", 128), ("int16", 0)])
@pytest.mark.parametrize("fused", [True, False])
def test_quantization_rounds_as_a_division_does(tmp_path: Path, kind: str, zero: int, fused: bool) -> None:
    """By a constant scale: every x whose quotient is a tie, or next to one, and what saturates; infinity too."""
    scale, low, high = np.float32(0.0371), np.iinfo(kind).min, np.iinfo(kind).max
    ties = ((np.arange(low, high) - zero + 0.5) * np.float64(scale)).astype("f")
    rng = np.random.default_rng(zero)
    beside = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    others = rng.standard_normal(999) * scale * high, [np.inf, -np.inf, 0.0, 1e36, -1e36]
    x = np.concatenate([ties, *beside, *others]).astype("f")
    held = relax.const(scale, "float32"), relax.const(np.array(zero, kind), kind)

    def operator(_: Any, variable: Any) -> Any:
        return relax.op.quantize(variable, *held, axis=0, out_dtype=kind)

    came, _ = computed(tmp_path, x, operator, replace(HOST, fused=HOST.fused and fused))
    np.testing.assert_array_equal(came, np.clip(np.rint(x / scale) + zero, low, high).astype(kind))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("kind", "zero", "other"), [("int16", 0, 0), ("uint8", 119, 119), ("int8", -5, 3)])
def test_what_is_rounded_and_widened_is_no_integer_in_between(
    tmp_path: Path, kind: str, zero: int, other: int, fused: bool
) -> None:
    """The same floats as through integers: saturated, infinite and in the middle of two steps."""
    scale, wide = np.float32(0.0371), np.float32(0.011)
    x = np.concatenate([(np.arange(-400, 400) + 0.5) * scale, [np.inf, -np.inf, 1e36, -0.0]]).astype("f")
    held = relax.const(scale, "float32"), relax.const(np.array(zero, kind), kind)
    back = relax.const(wide, "float32"), relax.const(np.array(other, kind), kind)
    machine = replace(HOST, fused=HOST.fused and fused)

    def operator(builder: Any, variable: Any) -> Any:
        q = builder.emit(relax.op.quantize(variable, *held, axis=0, out_dtype=kind))
        return relax.op.dequantize(q, *back, axis=0, out_dtype="float32")

    came, _ = computed(tmp_path, x, operator, machine)
    limits = np.iinfo(kind)
    q = np.clip(np.rint(x / scale) + zero, limits.min, limits.max).astype(kind)
    np.testing.assert_array_equal(came, (q.astype("i4") - other).astype("f") * wide)


@pytest.mark.parametrize("kept", [True, False])
def test_integers_that_something_else_reads_are_made_once(kept: bool) -> None:
    """Beside its integers, a tensor is widened from them; alone, it never becomes integers."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType([4, 64], "float32"))
    step, zero = relax.const(np.float32(0.1), "float32"), relax.const(np.array(0, "int16"), "int16")
    with builder.function("main", [x]):
        with builder.dataflow():
            q = builder.emit(relax.op.quantize(x, step, zero, axis=0, out_dtype="int16"))
            wide = builder.emit(relax.op.dequantize(q, step, zero, axis=0, out_dtype="float32"))
            made = builder.emit_output(relax.Tuple([wide, q]) if kept else wide)
        builder.emit_func_output(made)
    text = str(legalize.legalized(builder.get(), HOST, {}).script())
    assert ('T.Cast("int16"' in text) == kept and ("edgemem_nearest" in text)


@pytest.mark.skipif(not HOST.fused, reason="this core rounds products before it adds them")
def test_division_by_an_inverse_is_division(tmp_path: Path) -> None:
    """To the last bit, for random scales and every kind of last place."""
    rng = np.random.default_rng(0)
    s = np.exp2(rng.uniform(-20, 20, 4000)).astype("f")
    s[:3] = [np.nextafter(np.float32(2), np.float32(0)), np.nextafter(np.float32(1), np.float32(2)), 1]
    x = (rng.standard_normal((500, 4000)) * s).astype("f")
    a, b, c = te.placeholder(x.shape, "float32"), *(te.placeholder(s.shape, "float32") for _ in range(2))
    y = te.compute(x.shape, lambda i, j: mathops.divided(a(i, j), b(j), c(j)), name="y")
    came, _ = run_tensors(tmp_path, [a, b, c, y], [x, s, 1 / s])
    np.testing.assert_array_equal(came, x / s)
    assert np.any(came != x * (1 / s))


def test_rows_are_quantized_as_a_division_does(tmp_path: Path) -> None:
    """Rows of every size that a float32 has, of zeros, and of middles between two steps; NaN stays where it is."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 60, 80)).astype("f") * np.exp2(rng.integers(-60, 120, (5, 60, 1))).astype("f")
    x[0, 0], x[0, 1], x[0, 2] = 0, np.arange(80) + 0.5, (np.arange(80) - 40) * np.float32(1e-20)
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-20)) * np.float32(1 / 127)
    x[1, 1, 3] = np.nan
    builder = relax.BlockBuilder()
    variables = [relax.Var(name, relax.TensorType(list(a.shape), "float32")) for name, a in (("x", x), ("s", scale))]
    with builder.function("main", variables):
        with builder.dataflow():
            given = builder.emit_output(builder.normalize(products.quantized_rows(builder, *variables, HOST)))
        builder.emit_func_output(given)
    q, schedule = run_module(tmp_path, builder.get(), [x, scale])
    known = ~np.isnan(x)
    np.testing.assert_array_equal(q[known], np.rint(x / scale)[known])
    assert schedule == "rows" and q.max() == 127 and q.min() == -127


def test_half_precision_in_integers(tmp_path: Path) -> None:
    """Every finite float16, subnormal ones included."""
    from tvm import te

    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[(bits & 0x7C00) != 0x7C00]
    a = te.placeholder(bits.shape, "uint16")
    y, _ = run_tensors(tmp_path, [a, te.compute(a.shape, lambda i: widened(a[i]), name="half")], [bits])
    np.testing.assert_array_equal(y.view(np.uint32), bits.view(np.float16).astype("f").view(np.uint32))


def test_nibbles() -> None:
    q = np.arange(-8, 8, dtype=np.int8).reshape(8, 2)
    assert [hex(word) for word in nibbles(Panel(2, 1, 2), q).view(np.uint32)[0, 0]] == ["0xeca86420", "0xfdb97531"]


@pytest.mark.parametrize("x", [[0.0] * 20, [1.0, -3.0, 0.25], list(np.linspace(-7, 2, 33)), [5.0, 6.0], [-1e-30]])
def test_dynamic_quantization_equals_onnxruntime(tmp_path: Path, x: list[float]) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    value = np.array([x], np.float32)
    ports = (("q", TensorProto.UINT8, value.shape), ("s", TensorProto.FLOAT, []), ("z", TensorProto.UINT8, []))
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, value.shape)
    graph = helper.make_graph([node], "g", [entry], [helper.make_tensor_value_info(*port) for port in ports])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    wanted = onnxruntime.InferenceSession(model.SerializeToString()).run(["q", "z"], {"x": value})
    for index, expected in ((0, wanted[0]), (2, wanted[1])):
        y, _ = computed(tmp_path, value, lambda builder, a, at=index: products.dynamic(builder, a, HOST)[at])
        np.testing.assert_array_equal(y, expected)


def test_the_report_says_why_no_better() -> None:
    """Every branch that picks a kernel, on cores with and without the instructions."""
    rng = np.random.default_rng(0)
    plain = replace(HOST, dot="portable")
    few, many = (Codes(rng.integers(0, 9, (1, n, 4)).astype(np.uint16), rng.standard_normal((1, e, 2)).astype("f"),
                       np.ones(n, "f")) for n, e in ((8, 256), (512, 300)))  # fmt: skip
    matrix, _ = narrow(rng, "w8", 8, 8)
    assert reasons.of_product(matrix, 1, plain).endswith("the core sums no four products of bytes at once")
    assert reasons.of_product(few, 5, plain).startswith("5 rows read each panel")
    assert reasons.of_product(few, 1, plain).endswith("no AVX512-VBMI to look up 64 at once")
    signed, _ = coded(rng, 8, 256, 4, 256, 1, mirrored=True)
    if tables.permutes(HOST):
        assert reasons.of_product(signed, 1, HOST).startswith("tables of the activations' products with one half")
        assert reasons.of_product(matrix, 1, HOST).endswith("numbers of three bytes, vpdpbusd")
        assert reasons.of_product(few, 1, HOST).endswith("256 entries would take longer to make than 8 outputs to read")
        assert reasons.of_product(many, 1, HOST).endswith("tables hold 256 entries, the codebook has 300")
        assert reasons.of_product(narrow(rng, "vq", 8, 256)[0], 4, HOST).startswith("tables of the activations'")
