"""Attention of few queries to long caches: each kernel against NumPy in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import relax, te

from edgemem.runtimes.aot import attention, attention_scores, attention_weights
from edgemem.runtimes.aot.lowering import lowered
from edgemem.runtimes.aot.schedules import scheduled
from tests.aot_kernels import HOST, Library, run_module, unwritten
from tests.aot_kernels import run_tensors as run

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.mark.parametrize(
    ("length", "heads", "count", "width"),
    [(65, 2, 1, 16), (67, 3, 2, 24), (96, 1, 4, 44), (32, 2, 1, 7), (129, 1, 3, 64)],
)
def test_attention_to_rows_where_they_lie(tmp_path: Path, length: int, heads: int, count: int, width: int) -> None:
    rng = np.random.default_rng(length)
    shapes = (1, heads, count, width), (1, heads, count, length), (1, length, heads, width)
    _, w, x = (rng.standard_normal(shape).astype("f") for shape in shapes)
    _, b, c = (te.placeholder(shape, "float32") for shape in shapes)
    parts, first = run(tmp_path, [b, c, attention.weighted_parts(b, c)], [w, x])
    given = te.placeholder(parts.shape, "float32")
    total, second = run(tmp_path, [given, b, c, attention.weighted_total(given, b, c)], [parts, w, x])
    np.testing.assert_allclose(total[0], np.einsum("hij,jhd->hid", w[0].astype("d"), x[0]), rtol=1e-5, atol=1e-5)
    assert first == second == "attention"


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(("length", "heads", "count", "steps"), [(64, 2, 1, 1), (67, 3, 2, 3), (95, 1, 4, 2)])
def test_scores_of_rows_where_they_lie(
    tmp_path: Path, length: int, heads: int, count: int, steps: int, lanes: int
) -> None:
    """On vectors of any width, whole blocks of rows and a shorter last one, shared by two."""
    rng, width = np.random.default_rng(length), steps * lanes
    q, x = (rng.standard_normal(shape).astype("f") for shape in ((1, heads, count, width), (1, length, heads, width)))
    function, schedule = scheduled(attention_scores.kernel(heads, count, length, width, lanes), HOST)
    library = Library(tmp_path, {"kernel": lowered(function, "kernel", HOST)})
    came = unwritten((heads, count, length), "float32")
    library("kernel", [q, x], [came])
    np.testing.assert_allclose(came, np.einsum("hid,jhd->hij", q[0].astype("d"), x[0]), rtol=1e-5, atol=1e-5)
    assert schedule == "attention" and library.kernels["kernel"].shares == -(-length // lanes)


@pytest.mark.parametrize("operator", ["divide", "multiply"])
def test_scaled_scores_are_those_of_scaled_queries(tmp_path: Path, operator: str) -> None:
    """One kernel scales the queries, and none reads the scores again."""
    rng = np.random.default_rng(0)
    q, x = (rng.standard_normal(shape).astype("f") for shape in ((1, 2, 3, 16), (1, 70, 2, 16)))
    builder = relax.BlockBuilder()
    left, read = (relax.Var(name, relax.TensorType(array.shape, "float32")) for name, array in (("q", q), ("x", x)))
    with builder.function("main", [left, read]):
        with builder.dataflow():
            turned = builder.emit(relax.op.permute_dims(read, [0, 2, 3, 1]))
            scores = builder.emit(relax.op.matmul(left, turned))
            scaled = builder.emit_output(getattr(relax.op, operator)(scores, relax.const(3.0, "float32")))
        builder.emit_func_output(scaled)
    module = attention.with_attention(builder.get(), HOST)
    came, schedule = run_module(tmp_path, module, [q, x])
    wanted = np.einsum("hid,jhd->hij", q[0].astype("d"), x[0]) * (3.0 if operator == "multiply" else 1 / 3)
    np.testing.assert_allclose(came[0], wanted, rtol=1e-5, atol=1e-5)
    assert schedule == "attention"  # the last kernel


def weighed(tmp_path: Path, scores: Array, lanes: int) -> tuple[Array, Array]:
    """The kernel's powers [heads, count, length] and inverse sums [heads, count]."""
    _, heads, count, length = scores.shape
    function, schedule = scheduled(attention_weights.kernel(heads, count, length, lanes), HOST)
    library = Library(tmp_path, {"kernel": lowered(function, "kernel", HOST)})
    powers, inverse = unwritten(scores.shape, "float32"), unwritten((1, heads, count, 1), "float32")
    library("kernel", [scores], [powers, inverse])
    assert schedule == "attention" and library.kernels["kernel"].shares == (heads if heads > 1 else None)
    return powers[0], inverse[0, ..., 0]


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize(("heads", "count", "length"), [(2, 1, 64), (3, 2, 67), (1, 4, 31), (2, 3, 1)])
def test_weights_are_a_softmax_in_two_parts(tmp_path: Path, heads: int, count: int, length: int, lanes: int) -> None:
    """Of scores far from 0 and of masked ones too; powers are at most 1."""
    rng = np.random.default_rng(length)
    scores = (rng.standard_normal((1, heads, count, length)) * 30 + 200).astype("f")
    scores[..., 1::3] = -3e38
    powers, inverse = weighed(tmp_path, scores, lanes)
    exact = np.exp(scores[0].astype("d") - scores[0].max(axis=-1, keepdims=True))
    np.testing.assert_allclose(powers, exact, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(inverse, 1 / exact.sum(axis=-1), rtol=1e-5)
    assert powers.max() == 1


def test_a_nan_among_scores_reaches_every_weight_of_its_row_alone(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).standard_normal((1, 2, 1, 70)).astype("f")
    scores[0, 1, 0, 69] = np.nan
    powers, inverse = weighed(tmp_path, scores, 16)
    assert np.isfinite(powers[0] * inverse[0, :, None]).all()
    assert np.isnan(powers[1] * inverse[1, :, None]).all()


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_weighed_is_divided_instead_of_its_weights(tmp_path: Path, kept: bool) -> None:
    """A softmax that something else reads, too, is computed for that."""
    rng = np.random.default_rng(1)
    s, x = (rng.standard_normal(shape).astype("f") for shape in ((1, 2, 3, 70), (1, 70, 2, 16)))
    builder = relax.BlockBuilder()
    scores, read = (relax.Var(name, relax.TensorType(array.shape, "float32")) for name, array in (("s", s), ("x", x)))
    with builder.function("main", [scores, read]):
        with builder.dataflow():
            weights = builder.emit(relax.op.nn.softmax(scores, axis=-1))
            turned = builder.emit(relax.op.permute_dims(read, [0, 2, 1, 3]))
            product = builder.emit(relax.op.matmul(weights, turned))
            last = builder.emit(
                relax.op.add(product, relax.op.max(weights, axis=[-1], keepdims=True)) if kept else product
            )
            result = builder.emit_output(last)
        builder.emit_func_output(result)
    came, _ = run_module(tmp_path, attention.with_attention(builder.get(), HOST), [s, x])
    exact = np.exp(s[0].astype("d"))
    exact /= exact.sum(axis=-1, keepdims=True)
    wanted = np.einsum("hij,jhd->hid", exact, x[0]) + (exact.max(axis=-1, keepdims=True) if kept else 0)
    np.testing.assert_allclose(came[0], wanted, rtol=1e-5, atol=1e-6)
