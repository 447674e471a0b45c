"""Products with a few huge input features: where int8 alone fails, and what keeping those features float gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgemem
from edgemem import load
from edgemem.export import to_onnx
from edgemem.modelfile import open_model
from edgemem.program import Array
from edgemem.quant import quantize

pytestmark = pytest.mark.usefixtures("short_calibration")
WIDTH, PLANTED, SIZE = 64, (5, 40), 150.0


class Mixed(nn.Module):
    """A product and a short memory."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(WIDTH, 32)
        self.state = (edgemem.StateTensor("last", (32,)),)

    def step(self, x, state):  # type: ignore[no-untyped-def]
        y = self.mix(x) + 0.5 * state["last"]
        return y, {"last": y}


def features(count: int, seed: int) -> Array:
    """Normal features, two of them lifted far above the rest."""
    x = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    x[:, PLANTED] += SIZE
    return x


def explained(narrow: Path, parent: Path) -> float:
    """Share of the outputs' variance that is left."""
    y, wanted = (
        np.stack([s.step(x) for x in features(500, 9)])[50:] for s in (load(p).stream() for p in (narrow, parent))
    )
    return 1.0 - float(np.mean((y - wanted) ** 2) / np.mean((wanted - wanted.mean(axis=0)) ** 2))


def test_planted_outliers_ruin_int8_and_not_the_split_product(tmp_path: Path) -> None:
    to_onnx(Mixed(), torch.zeros(1, 1, WIDTH), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", features(1000, 1))
    left = {}
    for scheme in ("w8a8", "w8a8-dynamic", "w8a8-outlier"):
        quantize(tmp_path / "m.onnx", tmp_path / f"{scheme}.onnx", scheme, calibrate=tmp_path / "x.npy", steps=20)
        left[scheme] = explained(tmp_path / f"{scheme}.onnx", tmp_path / "m.onnx")
    assert left["w8a8"] < 0.95 and left["w8a8-dynamic"] < 0.95
    assert left["w8a8-outlier"] > 0.995
    places = open_model(tmp_path / "w8a8-outlier.onnx").onnx.initializers["mix.weight.T.outlier"].numpy()
    assert tuple(places) == PLANTED


def test_without_outliers_it_is_the_dynamic_scheme(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32))
    for scheme in ("w8a8-dynamic", "w8a8-outlier"):
        quantize(
            models / "lmu.onnx", tmp_path / f"{scheme}.onnx", scheme, calibrate=tmp_path / "x.npy", smallest=8, steps=9
        )
    a, b = (load(tmp_path / f"{s}.onnx").stream() for s in ("w8a8-dynamic", "w8a8-outlier"))
    x = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)
    np.testing.assert_array_equal([a.step(row) for row in x], [b.step(row) for row in x])
