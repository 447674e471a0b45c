"""Hugging Face models as files: exported from a folder, then held against the model rebuilt from the file alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgemem.export.hf.exporter import export_hf
from edgemem.verify import verify
from tests import hf_models as hf

COMPILED = {"mamba", "gpt2", "qwen3_next"}  # a logarithm, a cube, a cache that slides, experts; no other has more
WINDOW = {"window": 20, "sinks": 2}
FILES = [
    ("rwkv", {}),
    ("mamba", {}),
    ("mamba2", {}),
    ("xlstm", {}),
    ("llama", WINDOW),
    ("qwen2", {**WINDOW, "eviction": "tova"}),
    ("gpt2", WINDOW),
    ("lfm2", WINDOW),
    ("qwen3_next", WINDOW),
    ("recurrent_gemma", {"window": 20}),
]


@pytest.mark.parametrize(("name", "settings"), FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_file_is_verified_against_the_model_rebuilt(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    hf.stream_of(name).model.save_pretrained(tmp_path / "model")
    contract = export_hf(tmp_path / "model", tmp_path / "m.onnx", settings)
    assert contract.model.source.kind == "checkpoint" and contract.chunk.unit == "token"
    runtimes = ["ort"] + ["aot"] * (name in COMPILED and importlib.util.find_spec("tvm") is not None)
    report = verify(tmp_path / "m.onnx", steps=300, runtimes=runtimes)
    assert report.ok, report
    ran = [name for runtime in runtimes for name in (runtime, f"{runtime} reset")]
    assert [stage.name for stage in report.stages] == ["weights", "torch", *ran]


def test_a_planted_weight_fails(tmp_path: Path) -> None:
    hf.stream_of("mamba").model.save_pretrained(tmp_path / "model")
    export_hf(tmp_path / "model", tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    weight = next(w for w in model.graph.initializer if w.name.startswith("model.backbone.layers.1.mixer.A_log"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.flat[3] += 0.01
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    report = verify(tmp_path / "m.onnx", steps=20)
    assert not report.ok and not report.stages[0].holds and "A_log" in str(report.stages[0].first)
