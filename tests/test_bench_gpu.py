"""`bench.gpu` on a processor with a tiny model: every engine's code runs, and what it writes is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

from bench import gpu, gpu_engines
from bench.results_page import rendered
from tests.gpus import has_gpu


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("gpu")
    options = ["--device", "cpu", "--models", "tiny", "--batches", "2", "--rounds", "2", "--out", str(folder)]
    assert gpu.main(options) == 0
    found: dict[str, object] = json.loads((folder / "gpu.json").read_text())
    return found


def test_every_engine_takes_part(result: dict[str, list[dict[str, object]]]) -> None:
    assert [row["engine"] for row in result["rows"]] == list(gpu_engines.ENGINES) and not result["skipped"]
    for row in result["rows"]:
        assert row["run_us"] > 0 and row["step_us"] > 0 and row["batch"] == 2  # type: ignore[operator]
        assert row["bytes_per_step"] == result["rows"][0]["bytes_per_step"]
        assert row["gb_per_s"] == pytest.approx(row["bytes_per_step"] / row["run_us"] / 1e3, abs=0.01)  # type: ignore[operator]


def test_its_section_says_what_was_measured(result: dict[str, object]) -> None:
    """Goals are of models that were not run here; a result that has them is judged by its numbers."""
    text = rendered("gpu", gpu.section(result))
    assert "on cpu" in text and "`torch-graph`" in text and text.count("not run") == len(gpu.GOALS)
    rows = [
        {"model": "169M", "batch": 1, "engine": "edgemem", "of_copy": 0.71, "step_us": 1.0},
        {"model": "small", "batch": 1, "engine": "edgemem", "of_copy": 0.1, "step_us": 6.0},
        {"model": "small", "batch": 1, "engine": "torch-graph", "of_copy": 0.1, "step_us": 10.0},
    ]
    assert [line[-2:] for line in gpu.goals({"rows": rows})] == [["0.71", "reached"], ["0.60", "missed"]]


def test_an_engine_that_computes_something_else_does_not_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Given(gpu_engines.Engine):
        def __init__(self, value: float) -> None:
            self.value = value

        def launch(self) -> None: ...

        def wait(self) -> None: ...

        def step(self, x: np.ndarray) -> np.ndarray:
            return np.array([self.value])

    def absent(path: Path, device: str) -> gpu_engines.Engine:
        raise gpu_engines.Absent("no such thing")

    makers = {"first": lambda p, d: Given(1.0), "near": lambda p, d: Given(1.0005), "far": lambda p, d: Given(1.1)}
    monkeypatch.setattr(gpu, "ENGINES", {**makers, "none": absent})
    engines, left_out = gpu.started(tmp_path, "cpu", [np.zeros(1)])
    assert list(engines) == ["first", "near"]
    assert [row["reason"] for row in left_out] == ["its outputs differ by 1.0e-01 of the largest", "no such thing"]


@pytest.mark.skipif(has_gpu(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--models", "tiny", "--out", str(tmp_path)]) == 2
    assert "bench.gpu: a CUDA GPU was wanted" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--device cpu measures no GPU: give --out" in capsys.readouterr().err
