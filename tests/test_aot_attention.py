"""Attention of few queries to long caches: each kernel against NumPy in double precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import relax, te

from edgemem.runtimes.aot import attention, attention_scores
from edgemem.runtimes.aot.lowering import lowered
from edgemem.runtimes.aot.schedules import scheduled
from tests.aot_kernels import HOST, Library, run_module, unwritten
from tests.aot_kernels import run_tensors as run


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
