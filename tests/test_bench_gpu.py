"""`bench.gpu` on a processor with a tiny model: every engine's code runs, and what it writes is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

from bench import gpu, gpu_engines
from bench.results_page import rendered
from edgemem.errors import ModelFileError
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


class Given(gpu_engines.Engine):
    """Gives one number, or fails from some launch on."""

    def __init__(self, value: float, launches: int = 1 << 30) -> None:
        self.value, self.launches = value, launches

    def launch(self) -> None:
        self.launches -= 1
        if self.launches < 0:
            raise RuntimeError("CUDA error: misaligned address\nin a kernel")

    def wait(self) -> None: ...

    def step(self, x: np.ndarray) -> np.ndarray:
        return np.array([self.value])


def refusing(error: Exception) -> Callable[[Path, str], gpu_engines.Engine]:
    def make(path: Path, device: str) -> gpu_engines.Engine:
        raise error

    return make


def test_an_engine_that_computes_something_else_does_not_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does one that is not here, fails to start, or comes when the time is up."""
    makers = {
        "first": lambda p, d: Given(1.0),
        "near": lambda p, d: Given(1.0005),
        "far": lambda p, d: Given(1.1),
        "none": refusing(gpu_engines.Absent("no such thing")),
        "broken": refusing(RuntimeError("out of memory\nmore")),
    }
    monkeypatch.setattr(gpu, "ENGINES", makers)
    trial = gpu.Trial("cpu", 1, list(makers), math.inf)
    assert list(trial.started(tmp_path, [np.zeros(1)])) == ["first", "near"]
    assert [row["reason"] for row in trial.absent] == [
        "its outputs differ by 1.0e-01 of the largest",
        "no such thing",
        "RuntimeError: out of memory",
    ]
    late = gpu.Trial("cpu", 1, list(makers), -math.inf)
    assert late.started(tmp_path, [np.zeros(1)]) == {} and len(late.absent) == len(makers)
    late.measure({}, 1)
    assert {row["reason"] for row in late.absent} == {gpu.NO_TIME}


def test_an_engine_that_breaks_later_leaves_the_others(
    result: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there after each model; where edgemem is left out, the benchmark has failed."""
    makers = {"edgemem": refusing(ModelFileError("no kernel")), "torch": lambda p, d: Given(1.0),
              "onnxruntime": lambda p, d: Given(1.0, launches=1)}  # fmt: skip
    monkeypatch.setattr(gpu, "ENGINES", makers)
    written: list[int] = []
    monkeypatch.setattr(gpu, "write", lambda name, found, out: written.append(len(found["rows"])))
    options = ["--device", "cpu", "--models", "tiny", "--rounds", "1", "--out", str(tmp_path)]
    assert gpu.main([*options, "--batches", "1,2", "--seconds", "1000"]) == 1
    assert written == [1, 2]
    assert gpu.main([*options, "--batches", "1", "--seconds", "0", "--engines", "torch"]) == 0 and written[2:] == [0]
    trial = gpu.Trial("cpu", 1, list(makers), math.inf)
    trial.measure(gpu.TINY, 1)
    assert [row["engine"] for row in trial.rows] == ["torch"]
    assert [row["reason"] for row in trial.absent] == ["no kernel", "RuntimeError: CUDA error: misaligned address"]


@pytest.mark.skipif(has_gpu(), reason="this machine has a CUDA GPU")
def test_without_a_gpu_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--models", "tiny", "--out", str(tmp_path)]) == 2
    assert "bench.gpu: a CUDA GPU was wanted" in capsys.readouterr().err and not list(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu"])
    assert "--device cpu measures no GPU: give --out" in capsys.readouterr().err
