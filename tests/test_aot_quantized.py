"""The aot runtime on quantized models: every scheme against onnxruntime, weights as narrow as in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

import edgemem
from edgemem.compare import RELATIVE
from edgemem.export import export_model
from edgemem.modelfile import open_model
from edgemem.quant import quantize
from edgemem.trial import occasions, trial
from edgemem.verify import INT8_STEP
from tests.aot_programs import compiled
from tests.zoo import settings_of

SCHEMES = (
    "f16",
    "w8",
    "w8a8",
    "w8a8-dynamic",
    "w8a8-outlier",
    "w4g32",
    "vq:dim=4,codes=32",
    "vq:dim=4,codes=16,residual=2,mirror=1",
)
KERNELS = {"f16": "f16", "w8": "w8", "w8a8": "w8a8", "w8a8-dynamic": "w8a8", "w8a8-outlier": "w8a8", "w4g32": "w4"}
SETTINGS = {"layers": 1, "width": 64, "vocab": 64}
SHAPES = [[64, 64]] * 4 + [[64, 256], [64, 64], [256, 64], [64, 64]]  # [in, out]: time mixing, channel mixing, head


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rwkv4.onnx, and tokens to calibrate with."""
    path = tmp_path_factory.mktemp("quantized")
    export_model("rwkv4", path / "rwkv4.onnx", SETTINGS, seed=1)
    np.save(path / "tokens.npy", np.random.default_rng(0).integers(0, 64, (2, 200)))
    return path


def quantized(folder: Path, scheme: str, name: str = "rwkv4") -> Path:
    path = folder / f"{name}.{scheme.replace(':', '_')}.onnx"
    quantize(folder / f"{name}.onnx", path, scheme, calibrate=folder / "tokens.npy", steps=4)
    return path


@pytest.fixture(scope="module", params=SCHEMES)
def program(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path, Path]:
    """A scheme, the file that it makes of the model, and its compiled program."""
    path = quantized(folder, request.param)
    compiled(path, folder / path.stem)
    return request.param, path, folder / path.stem


def test_every_scheme_equals_onnxruntime_on_narrow_weights(program: tuple[str, Path, Path]) -> None:
    scheme, path, folder = program
    manifest = json.loads((folder / "manifest.json").read_text())
    found = trial(edgemem.load(path), edgemem.load(folder), 100, seed=3)
    # Where a float is in the middle of two int16 steps, the two may round it apart: a step is 3e-5 of a tensor's range.
    assert found.holds or (scheme == "w8a8" and found.max_rel_error < 1e-3), (
        found.first_divergence,
        found.max_rel_error,
    )
    stored = open_model(path).onnx.weight_bytes
    assert manifest["bytes"]["weights"] < 1.1 * stored + 8192  # vectors as float32, every constant aligned
    wanted = KERNELS.get(scheme, "vq")
    assert {row["kernel"] for row in manifest["products"]} == {wanted}
    products = [(row["product"], list(row["shape"])) for row in manifest["products"]]
    assert [shape for _, shape in products] == SHAPES and products[-1][0].split(".")[0] == "logits"


def test_threads_share_the_products_of_every_scheme(program: tuple[str, Path, Path]) -> None:
    """Bit for bit as one thread, over many steps."""
    folder = program[-1]
    manifest = json.loads((folder / "manifest.json").read_text())
    kernels = {kernel["symbol"]: kernel for kernel in manifest["kernels"]}
    largest = kernels[max(manifest["calls"], key=lambda call: call["weight_bytes"])["symbol"]]
    assert (largest["shares"] or 1) > 1, largest
    same_bytes(folder, steps=60)


def same_bytes(folder: Path, steps: int) -> None:
    """One, two and three threads give the same outputs and states, from the start state and from random ones."""

    def seen(threads: int) -> list[bytes]:
        program = edgemem.load(folder, threads=threads)
        state, found = program.new_state(), []
        for start, inputs in occasions(program.contract, steps, seed=2):
            if start is not None:
                state.set(start)
            found += [value.tobytes() for value in (*program.step(inputs, state).values(), *state.get().values())]
        return found

    one = seen(1)
    assert seen(2) == one and seen(3) == one and len(set(one)) > steps


def test_products_of_many_rows_and_convolutions(folder: Path) -> None:
    """A segment model: 4-bit weights and codes for several rows at a time, and a matrix that is no product's."""
    settings = {"layers": 1, "width": 32, "heads": 2, "slots": 4, "segment": 4, "vocab": 16}
    export_model("memformer-seq2seq", folder / "segment.onnx", settings, seed=1)
    for scheme in ("w4g32", "w8a8-dynamic", "vq:dim=4,codes=16"):
        path = folder / f"segment.{scheme.replace(':', '_')}.onnx"
        quantize(folder / "segment.onnx", path, scheme, steps=4)
        compiled(path, folder / path.stem)
        found = trial(edgemem.load(path), edgemem.load(folder / path.stem), 30, seed=3)
        assert found.holds, (scheme, found.first_divergence, found.max_rel_error)
        same_bytes(folder / path.stem, steps=12)


def test_the_report_names_the_kernel_of_every_product(folder: Path) -> None:
    from click.testing import CliRunner

    from edgemem.cli.main import cli

    path = quantized(folder, "w8")
    result = CliRunner().invoke(cli, ["compile", str(path), "-o", str(folder / "told"), "--json"])
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout)["products"]
    assert [row["shape"] for row in rows] == SHAPES
    assert all(row["weight"].endswith(".q") and row["reason"] for row in rows)


@pytest.mark.parametrize(("name", "scheme"), [("rwkv4", "w8a8-dynamic"), ("kws-lmuformer", "vq:dim=2,codes=16")])
@settings(max_examples=2, derandomize=True)  # seconds of compilation each
@given(data=st.data())
def test_random_models_equal_onnxruntime(
    tmp_path_factory: pytest.TempPathFactory, name: str, scheme: str, data: Any
) -> None:
    """Rows of one and of several; where activations are rounded, step by step and within one step of int8."""
    folder, config = tmp_path_factory.mktemp("random"), data.draw(settings_of(name))
    export_model(name, folder / "m.onnx", config, seed=1, chunk=data.draw(st.integers(1, 2)))
    quantize(folder / "m.onnx", folder / "q.onnx", scheme, smallest=32, steps=4)
    manifest = compiled(folder / "q.onnx", folder / "p")
    rounded = scheme.startswith("w8a8")
    programs = edgemem.load(folder / "q.onnx"), edgemem.load(folder / "p")
    found = trial(*programs, 48, relative=INT8_STEP if rounded else RELATIVE, together=rounded)
    assert found.holds, (config, scheme, found.first_divergence, found.max_rel_error)
    assert all(row["kernel"] for row in manifest["products"])
