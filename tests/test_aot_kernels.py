"""Kernels of the aot runtime alone, each against NumPy in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import te, tirx

from edgemem.runtimes.aot import legalize, mathops
from edgemem.runtimes.aot.lowering import lowered
from edgemem.runtimes.aot.schedules import matmul, rows, scheduled
from tests.aot_kernels import HOST
from tests.aot_kernels import run_tensors as run

Array = np.ndarray[Any, np.dtype[Any]]


def applied(function: Any, tensor: Any) -> Any:
    """A function of one number at every index of a tensor."""
    return lambda i: function(tensor[i])


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 64, 64), (1, 7, 10), (1, 256, 160), (1, 33, 700), (3, 5, 17), (12, 64, 48), (32, 24, 1)]
)
def test_packed_products(tmp_path: Path, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m * k * n)
    x, w = rng.standard_normal((m, k)).astype("f"), rng.standard_normal((k, n)).astype("f")
    panel = matmul.panel_of(HOST, m, n)
    packed = panel.packed(w)
    left, right = te.placeholder(x.shape, "float32"), te.placeholder(packed.shape, "float32")
    y, schedule = run(tmp_path, [left, right, legalize.packed_product(left, right, (m, n), panel)], [x, packed])
    np.testing.assert_allclose(y, x.astype("d") @ w, rtol=1e-5, atol=1e-5)
    assert schedule == "tile"


@pytest.mark.parametrize("lead", [(2, 12), (3, 1), (2, 3, 4)])
def test_rows_in_several_axes(tmp_path: Path, lead: tuple[int, ...]) -> None:
    """A bias that follows is computed on whole tiles, and no tile reaches from one axis into the next."""
    rng = np.random.default_rng(len(lead))
    x, w, b = (rng.standard_normal(shape).astype("f") for shape in ((*lead, 4), (4, 16), (16,)))
    panel = matmul.panel_of(HOST, int(np.prod(lead)), 16)
    left, right, bias = (te.placeholder(v.shape, "float32") for v in (x, panel.packed(w), b))
    product = legalize.packed_product(left, right, (*lead, 16), panel)
    y = te.compute((*lead, 16), lambda *i: product(*i) + bias(i[-1]), name="biased")
    came, schedule = run(tmp_path, [left, right, bias, y], [x, panel.packed(w), b])
    np.testing.assert_allclose(came, x.astype("d") @ w + b, rtol=1e-5, atol=1e-5)
    assert schedule == "tile"


@pytest.mark.parametrize(("m", "k", "n", "lead"), [(1, 16, 1, ()), (24, 5, 1, ()), (1, 8, 20, (3,)), (4, 6, 32, (2,))])
def test_a_product_spread_over_more_than_it_has(tmp_path: Path, m: int, k: int, n: int, lead: tuple[int, ...]) -> None:
    """A gate of one column over a whole row, or one product over several tables: y = sigmoid(x w) v."""
    rng = np.random.default_rng(m * k * n)
    shape = (*lead, m, n if lead else 11)
    x, w, v = (rng.standard_normal(size).astype("f") for size in ((m, k), (k, n), shape))
    panel = matmul.panel_of(HOST, m, n)
    left, right, values = (te.placeholder(each.shape, "float32") for each in (x, panel.packed(w), v))
    product = legalize.packed_product(left, right, (m, n), panel)
    gate = te.compute((m, n), lambda *i: mathops.sigmoid(product(*i)), name="gate")
    y = te.compute(shape, lambda *i: gate(i[-2], i[-1] if lead else 0) * values(*i), name="gated")
    came, schedule = run(tmp_path, [left, right, values, y], [x, panel.packed(w), v])
    np.testing.assert_allclose(came, v / (1 + np.exp(-(x.astype("d") @ w))), rtol=1e-5, atol=1e-5)
    assert schedule == "tile"


def test_what_only_followers_read_does_not_keep_a_product_from_its_tiles(tmp_path: Path) -> None:
    """A chain of two operators that meets the product behind it: y = a b + g[..., :1] m."""
    rng = np.random.default_rng(0)
    a, b, g, m = (
        rng.standard_normal(shape).astype("f") for shape in ((4, 16, 64), (4, 64, 64), (4, 16, 3), (4, 16, 64))
    )
    left, right, gates, memory = (te.placeholder(v.shape, "float32") for v in (a, b, g, m))
    first = te.compute((4, 16, 1), lambda i, j, _: gates(i, j, 0), name="first")
    kept = te.compute(m.shape, lambda i, j, n: first(i, j, 0) * memory(i, j, n), name="kept")
    k = te.reduce_axis((0, 64), name="k")
    product = te.compute(m.shape, lambda i, j, n: te.sum(left(i, j, k) * right(i, k, n), axis=k), name=matmul.PLAIN)
    y = te.compute(m.shape, lambda *i: kept(*i) + product(*i), name="sum")
    came, schedule = run(tmp_path, [left, right, gates, memory, y], [a, b, g, m])
    np.testing.assert_allclose(came, a.astype("d") @ b + g[..., :1] * m, rtol=1e-5, atol=1e-5)
    assert schedule == "tile"


@pytest.mark.parametrize(("frames", "together"), [(33, 2), (5, 3), (4, 24)])
def test_an_axis_that_was_joined_is_read_frame_by_frame(tmp_path: Path, frames: int, together: int) -> None:
    """y[h, t c + j] = x[h, t c + j] + m[h, t]: loops over t and j, no division in either."""
    rng = np.random.default_rng(frames)
    x, m = rng.standard_normal((2, frames * together)).astype("f"), rng.standard_normal((2, frames)).astype("f")
    a, b = te.placeholder(x.shape, "float32"), te.placeholder(m.shape, "float32")
    y = te.compute(x.shape, lambda h, j: a(h, j) + b(h, j // together), name="y")
    came, _ = run(tmp_path, [a, b, y], [x, m])
    np.testing.assert_array_equal(came, x + np.repeat(m, together, axis=1))
    text = lowered(scheduled(te.create_prim_func([a, b, y]), HOST)[0], "kernel", HOST).function.script()
    assert not any(operator in text for operator in ("//", ">>", "%"))


@pytest.mark.parametrize("columns", [5, 16, 64, 200, 513, 4100])
def test_layer_norm_and_softmax(tmp_path: Path, columns: int) -> None:
    rng = np.random.default_rng(columns)
    x = (rng.standard_normal((3, columns)) * 4 + 30).astype("f")  # far from zero: a difference of squares would fail
    scale, shift = rng.standard_normal(columns).astype("f"), rng.standard_normal(columns).astype("f")
    lanes = rows.lanes_for(HOST, columns)
    a, b, c = (te.placeholder(v.shape, "float32") for v in (x, scale, shift))
    y, schedule = run(tmp_path, [a, b, c, rows.layer_norm(a, b, c, 1e-5, lanes)], [x, scale, shift])
    d = x.astype("d") - x.astype("d").mean(1, keepdims=True)
    wanted = d / np.sqrt((d * d).mean(1, keepdims=True) + 1e-5) * scale + shift
    np.testing.assert_allclose(y, wanted, rtol=2e-5, atol=2e-5)
    y, _ = run(tmp_path, [a, rows.softmax(a, lanes)], [x])
    e = np.exp(x.astype("d") - x.max(1, keepdims=True))
    np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=2e-6, atol=1e-9)
    assert schedule == "rows"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("exp", np.exp),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
        ("tanh", np.tanh),
        ("erf", np.vectorize(__import__("math").erf)),
    ],
)
def test_functions_keep_seven_digits(tmp_path: Path, name: str, wanted: Any) -> None:
    x = np.concatenate([np.linspace(-86, 88, 4001), np.linspace(-1, 1, 999), [1e-8, -1e-8, 0.0]]).astype("f")
    a = te.placeholder(x.shape, "float32")
    function = mathops.function(name)
    y, _ = run(tmp_path, [a, te.compute(a.shape, applied(function, a))], [x])
    np.testing.assert_allclose(y, wanted(x.astype("d")), rtol=4e-7, atol=1e-37)


def test_sine_and_cosine_keep_seven_digits_behind_the_point(tmp_path: Path) -> None:
    """Up to 1e5, next to multiples of pi / 2 too; larger angles stay in a range, and NaN is NaN."""
    draw, turns = np.random.default_rng(0), np.arange(1, 60_000, 7)
    x = np.concatenate([draw.uniform(-1e5, 1e5, 4000), draw.uniform(-7, 7, 4000), turns * (np.pi / 2), [0.0, 1e5]])
    x = np.concatenate([x, -x]).astype("f")
    edges = np.array([np.nan, 1e6, 3e38, -1e9], "f")
    for name, wanted in (("sin", np.sin), ("cos", np.cos)):
        a, b = te.placeholder(x.shape, "float32"), te.placeholder(edges.shape, "float32")
        function = mathops.function(name)
        y, _ = run(tmp_path, [a, te.compute(a.shape, applied(function, a))], [x])
        np.testing.assert_allclose(y, wanted(x.astype("d")), rtol=0, atol=1.5e-7)
        y, _ = run(tmp_path, [b, te.compute(b.shape, applied(function, b))], [edges])
        assert np.isnan(y[0]) and np.all(np.abs(y[1:]) <= 1.1)


@pytest.mark.parametrize("name", ["floor", "ceil", "trunc"])
def test_fractions_are_cut_off(tmp_path: Path, name: str) -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.uniform(-9, 9, 999), np.arange(-8, 8) / 2, [2.0**22 + 0.5, 2.0**23 - 0.5, 2.0**31, -3e38]])
    x = np.concatenate([x, -x, [np.inf, -np.inf, np.nan]]).astype("f")
    a = te.placeholder(x.shape, "float32")
    y, _ = run(tmp_path, [a, te.compute(a.shape, applied(mathops.function(name), a))], [x])
    np.testing.assert_array_equal(y, getattr(np, name)(x))


def test_the_logarithm_keeps_seven_digits(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([np.exp(draw.uniform(-87, 88, 4000)), draw.uniform(0.5, 2, 2000), [1.0, 1e-40, 1e-45]])
    x = x.astype("f")
    a = te.placeholder(x.shape, "float32")
    y, _ = run(tmp_path, [a, te.compute(a.shape, applied(mathops.log, a))], [x])
    np.testing.assert_allclose(y, np.log(x.astype("d")), rtol=4e-7, atol=1e-7)


def test_functions_at_the_edges(tmp_path: Path) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 100, -100, 0], np.float32)
    a = te.placeholder(x.shape, "float32")
    wanted = {
        "exp": [np.nan, np.inf, 0, np.inf, 0, np.inf, 0, 1],
        "sigmoid": [np.nan, 1, 0, 1, 0, 1, 0, 0.5],
        "tanh": [np.nan, 1, -1, 1, -1, 1, -1, 0],
        "log": [np.nan, np.inf, np.nan, np.log(1e30), np.nan, np.log(100), np.nan, -np.inf],
    }
    for name, values in wanted.items():
        function = mathops.function(name)
        y, _ = run(tmp_path, [a, te.compute(a.shape, applied(function, a))], [x])
        np.testing.assert_allclose(y, values, rtol=1e-6, atol=1e-7)


def test_a_costly_row_is_not_computed_for_every_column(tmp_path: Path) -> None:
    """An exponential that a broadcast reads many times keeps a buffer of its own."""
    x = np.linspace(-1, 1, 8).astype("f")
    a = te.placeholder(x.shape, "float32")
    power = te.compute((8,), lambda i: mathops.exp(a[i]), name="power")
    y, _ = run(tmp_path, [a, te.compute((8, 100), lambda i, j: power[i] * (j + 1.0), name="spread")], [x])
    np.testing.assert_allclose(y, np.exp(x)[:, None] * np.arange(1, 101), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 9, 256), (5, 1024), (3, 2, 16), (4, 40), (96,)])
@pytest.mark.parametrize("largest", [True, False])
def test_extremes_of_rows(tmp_path: Path, shape: tuple[int, ...], largest: bool) -> None:
    """In vectors where a row is whole ones; what is compared is computed on the way; the last of a lane counts too."""
    x = np.random.default_rng(len(shape)).standard_normal(shape).astype("f") - 1
    x.reshape(-1, shape[-1])[:, -1] *= 9
    a, k = te.placeholder(shape, "float32"), te.reduce_axis((0, shape[-1]), name="k")
    half = te.compute(shape, lambda *i: a(*i) * tirx.const(0.5, "float32"), name="half")
    reducer = te.max if largest else te.min
    y = te.compute((*shape[:-1], 1), lambda *i: reducer(half(*i[:-1], k), axis=k), name="y")
    came, _ = run(tmp_path, [a, y], [x])
    np.testing.assert_array_equal(came, (x / 2).max(-1, keepdims=True) if largest else (x / 2).min(-1, keepdims=True))
    text = lowered(scheduled(te.create_prim_func([a, y]), HOST)[0], "kernel", HOST).function.script()
    if HOST.lanes > 1 and shape[-1] % HOST.lanes == 0:
        assert f"T.Ramp(0, 1, {HOST.lanes})" in text and "half" not in text
