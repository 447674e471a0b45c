"""What tests of quantization share: calibration data, and a model whose state moves slowly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import edgemem
from edgemem import load
from edgemem.modelfile import open_model
from edgemem.program import Array

Files = Callable[[str], Path]
DECAY = 0.999  # a time constant of 1000 steps: one update is far below half a step of int8
STEPS = 2000


def random_data(model: Path, path: Path, frames: int = 256) -> Path:
    """Calibration data: normal features, uniform tokens."""
    rng, contract = np.random.default_rng(7), open_model(model).contract
    arrays = {}
    for port in contract.inputs:
        shape = (frames, *port.shape[2:])
        if port.role == "tokens" and port.range is not None:
            arrays[port.name] = rng.integers(port.range[0], port.range[1] + 1, shape)
        elif port.role != "valid":
            arrays[port.name] = rng.standard_normal(shape).astype(np.float32)
    np.savez(path, **arrays)
    return path


class SlowAverage(nn.Module):
    """m = decay m + (1 - decay) x: an accumulator whose every update is small."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(width, width)
        self.state = (edgemem.StateTensor("mean", (width,)),)

    def step(self, x, state):  # type: ignore[no-untyped-def]
        mean = DECAY * state["mean"] + (1 - DECAY) * x
        return self.mix(mean), {"mean": mean}


def sequence(count: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    return (np.linspace(-1, 1, 8) + 0.3 * rng.standard_normal((count, 8))).astype(np.float32)


def output_error(narrow: Path, parent: Path) -> float:
    """RMS error of the outputs over a long run, relative to their RMS."""
    outputs = [np.stack([s.step(x) for x in sequence(STEPS)]) for s in (load(p).stream() for p in (narrow, parent))]
    return float(np.sqrt(np.mean((outputs[0] - outputs[1]) ** 2) / np.mean(outputs[1] ** 2)))
