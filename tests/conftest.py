"""Model files that several tests read: small, exported once per run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# A deadline would be a timed assertion: the first example of a test often pays for imports.
settings.register_profile("edgemem", deadline=None)
settings.load_profile("edgemem")

SMALL_LMU = {"layers": 1, "width": 8, "order": 4, "features": 3, "outputs": 2}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `lmu.onnx`, `lmu4.onnx` (chunks of 4), `lm.onnx` (a byte language model) and `k.onnx`."""
    from edgemem.export import export_model

    folder = tmp_path_factory.mktemp("models")
    export_model("lmu", folder / "lmu.onnx", SMALL_LMU, seed=1)
    export_model("lmu", folder / "lmu4.onnx", SMALL_LMU, seed=1, chunk=4)
    export_model("lm-rwkv4", folder / "lm.onnx", {"layers": 1, "width": 16}, seed=1)
    export_model("kws-lmuformer", folder / "k.onnx")
    return folder


@pytest.fixture
def short_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long run of calibration as long as its schedule of resets: enough where the ranges are not what is tested."""
    from edgemem.quant import calibration

    monkeypatch.setattr(calibration, "LONG_FRAMES", 256)


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model whose state moves slowly, and calibration data: every feature has a mean of its own, in noise."""
    import torch

    from edgemem.export import to_onnx
    from tests.quantizing import SlowAverage, sequence

    folder = tmp_path_factory.mktemp("slow")
    to_onnx(SlowAverage(), torch.zeros(1, 1, 8), folder / "m.onnx")
    np.save(folder / "x.npy", sequence(4096, seed=1))
    return folder / "m.onnx", folder / "x.npy"


@pytest.fixture(scope="session")
def zoo(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small models of the zoo by name, exported once."""
    folder = tmp_path_factory.mktemp("zoo")
    from edgemem.export import export_model
    from tests.zoo import SMALL

    known = {"lm-rwkv4": models / "lm.onnx", "lmu": models / "lmu.onnx", "kws-lmuformer": models / "k.onnx"}

    def path(name: str) -> Path:
        file = known.get(name, folder / f"{name}.onnx")
        if not file.exists():
            export_model(name, file, SMALL.get(name, {}), seed=3)
        return file

    return path
