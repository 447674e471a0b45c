"""Small models of the zoo, and seeded inputs for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from edgemem.models import configured, spec, specs
from edgemem.module import StreamingModule, declared_states, floating_dtype, segment_length
from edgemem.state import StateTensor
from tests.cases import CASES

# Settings that make each model small; a model that is not named runs at its default configuration.
SMALL: dict[str, dict[str, object]] = {
    "rwkv4": {"layers": 2, "width": 8, "vocab": 11},
    "lm-rwkv4": {"layers": 2, "width": 8},
    "lmu": {"layers": 2, "width": 6, "order": 4, "features": 3, "outputs": 2},
    "kws-lmuformer": {"layers": 2, "width": 8, "order": 4, "channels": 2, "convolutions": 2, "features": 8},
    "kws-tiny": {"layers": 1, "width": 8, "order": 3, "channels": 2, "convolutions": 1, "features": 8},
    # wide enough for a small change anywhere to make or spare a spike
    "kws-spiking-lmuformer": {"layers": 1, "width": 48, "order": 4, "channels": 24, "convolutions": 2, "features": 8},
    "kws-gru": {"layers": 2, "width": 8, "features": 8},
    "kws-transformer": {"layers": 2, "width": 8, "heads": 2, "ffn": 8, "segment": 4, "left": 5, "features": 8},
    "memformer": {"layers": 2, "width": 8, "heads": 2, "slots": 3, "segment": 4},
    "memformer-seq2seq": {"layers": 2, "width": 8, "heads": 2, "slots": 3, "segment": 4, "vocab": 9},
    "lm-memformer": {"layers": 2, "width": 8, "heads": 2, "slots": 3, "segment": 4},
    "lm-transformer": {"layers": 2, "width": 8, "heads": 2, "context": 5},
    "lm-transformer-xl": {"layers": 2, "width": 8, "heads": 2, "memory": 3, "segment": 4},
    "folding": {
        "layers": 2,
        "width": 8,
        "heads": 2,
        "fold": 2,
        "segment": 4,
        "left": 5,
        "look_ahead": 2,
        "features": 3,
    },
    "probe-rwkv4": {"probe": "copy", "layers": 2, "width": 8},
    "probe-lmu": {"probe": "narma", "layers": 2, "width": 6, "order": 4, "channels": 2},
    "probe-gru": {"probe": "narma", "layers": 1, "width": 6},
    "probe-memformer": {"probe": "delay", "layers": 2, "width": 8, "heads": 2, "slots": 3, "segment": 4},
    "probe-folding": {"probe": "narma", "layers": 2, "width": 8, "ffn": 8, "heads": 2, "fold": 2, "left": 5},
    "asr-folding": {"layers": 2, "width": 8, "heads": 2, "fold": 2, "segment": 4, "left": 5, "look_ahead": 2},
}
NAMES = tuple(specs())


def settings_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Random settings of a model, all of them small."""
    return CASES[name][1]


def fresh(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, settings: dict[str, Any] | None = None
) -> StreamingModule:
    """A small model (`SMALL`, or other `settings`) with the weights that its seed gives."""
    torch.manual_seed(seed)
    config = configured(spec(name), SMALL.get(name, {}) if settings is None else settings)
    return spec(name).build(config).to(dtype).eval()


def small(
    name: str, seed: int = 0, dtype: torch.dtype = torch.float32, settings: dict[str, Any] | None = None
) -> StreamingModule:
    """As `fresh`, every parameter moved off values that hide it (a bias of 0)."""
    module = fresh(name, seed, dtype, settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def inputs(module: StreamingModule, batch: int, time: int, seed: int = 0) -> Any:
    """Random frames [batch, time, ...] for every port, by name where there are several."""
    generator = torch.Generator().manual_seed(seed)
    frames: dict[str, Tensor] = {}
    for port in module.inputs:
        shape = (batch, time, *port.shape)
        if port.low is not None and port.high is not None:
            frames[port.name] = torch.randint(port.low, port.high + 1, shape, generator=generator)
        else:
            frames[port.name] = torch.randn(shape, generator=generator, dtype=floating_dtype(module))
    return frames if len(frames) > 1 else next(iter(frames.values()))


def random_state(module: nn.Module, batch: int, seed: int = 0) -> dict[str, Tensor]:
    """A legal state: uniform inside every declared range, whole numbers for counters."""
    rng = np.random.default_rng(seed)
    return {name: random_tensor(module, tensor, batch, rng) for name, tensor in declared_states(module).items()}


def random_tensor(module: nn.Module, tensor: StateTensor, batch: int, rng: np.random.Generator) -> Tensor:
    values = rng.uniform(tensor.low, tensor.high, size=(batch, *tensor.shape))
    if tensor.role == "counter" or not tensor.dtype.startswith("float"):
        values = np.rint(values)
    dtype = floating_dtype(module) if tensor.dtype.startswith("float") else getattr(torch, tensor.dtype)
    return torch.from_numpy(values).to(dtype)


def whole(module: nn.Module, time: int) -> int:
    """`time` rounded up to whole segments."""
    length = segment_length(module)
    return -(-time // length) * length


def relative(y: Tensor, reference: Tensor) -> float:
    """Largest difference in units of the reference's largest value."""
    assert y.shape == reference.shape
    return float((y - reference).abs().max() / reference.abs().max().clamp(min=1e-12))
