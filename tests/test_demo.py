"""The demo from torch to detections: every stage timed, and none of them a must but the first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from edgemem import demo
from edgemem.cli.demo import compiled, quantized
from edgemem.cli.main import cli
from edgemem.errors import MissingDependency

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")


def refuse(*_: object, **__: object) -> None:
    raise MissingDependency("it is not installed")


def test_the_whole_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "VERIFY_STEPS", 20)
    done = CliRunner().invoke(cli, ["demo", "--output", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert list(found["frame_us"]) == ["torch", "onnxruntime", "onnxruntime, w8a8", "compiled, w8a8"]
    said, heard = ["go", "left", "stop", "off"], [d["label"] for d in found["detections"]]
    assert heard == [word for word in said if word in heard] and len(heard) >= 3  # a voice that it never heard
    assert (tmp_path / "demo.png").stat().st_size > 10_000

    # without the optional parts the demo says so and goes on with what there is
    monkeypatch.setattr("edgemem.runtimes.aot.compiler.require_tvm", refuse)
    monkeypatch.setattr("edgemem.quant.quantizer.quantize", refuse)
    console, times = Console(record=True), dict[str, float]()
    file = quantized(console, tmp_path / f"{demo.MODEL}.onnx", times)
    assert file == tmp_path / f"{demo.MODEL}.onnx"
    assert compiled(console, file, times).runtime == "ort" and not times
    assert console.export_text().count("skipped") == 2
