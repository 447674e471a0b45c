"""Every model of the zoo against an independent implementation: plain NumPy in float64, one vector at a time."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgemem.models import ModelSpec, specs
from edgemem.module import StreamingModule, each, extent, scan, segment_length

BATCH = 2
# float64 keeps 16 digits; sums of a few hundred terms in another order, over a few layers, lose at most six of them
TOLERANCE = 1e-10

Settings = st.SearchStrategy[dict[str, Any]]


def sizes(*parts: Settings, **fields: st.SearchStrategy[Any]) -> Settings:
    """Settings from independent fields, and from `parts` that draw fields together."""
    return st.tuples(*parts, st.fixed_dictionaries(fields)).map(
        lambda drawn: {k: v for d in drawn for k, v in d.items()}
    )


few, small = st.integers(1, 2), st.integers(3, 7)
PROBED = st.sampled_from(["recall", "copy", "narma", "digits"])
windows = st.floats(2.0, 30.0)

FOLDS = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(3, 4)).map(
    lambda drawn: {"fold": drawn[0], "heads": drawn[1], "width": drawn[0] * drawn[1] * drawn[2], "ffn": drawn[0] * 4}
)
FEEDS = st.sampled_from([0, 1])  # folded as attention, not folded
HEADS = st.tuples(st.integers(1, 3), st.integers(3, 5)).map(  # a layer norm of 2 numbers is two signs
    lambda drawn: {"heads": drawn[0], "width": drawn[0] * drawn[1]}
)
MEMORIES: dict[str, st.SearchStrategy[Any]] = {
    "layers": few,
    "slots": st.integers(1, 4),
    "segment": st.integers(2, 5),
    "ffn": st.sampled_from([0, 5]),
    "temperature": st.sampled_from([0.25, 1.5]),
}
WINDOWS: dict[str, st.SearchStrategy[Any]] = {
    "layers": few,
    "segment": st.integers(2, 4),
    "left": st.integers(1, 6),
    "look_ahead": st.integers(0, 5),
}

SPOTTERS: dict[str, st.SearchStrategy[Any]] = {
    "features": st.sampled_from([4, 6]),
    "forget": st.sampled_from([0.8, 1.0]),
}
LMUFORMERS: dict[str, st.SearchStrategy[Any]] = {
    "layers": few,
    "order": small,
    "channels": st.integers(1, 3),
    "window": windows,
    "convolutions": few,
    "kernel": st.integers(1, 4),
    "expand": few,
}

CASES: dict[str, tuple[str, Settings]] = {
    "rwkv4": ("rwkv4", sizes(layers=few, width=small, vocab=small, ffn=st.sampled_from([0, 5]), tied=st.booleans())),
    "lm-rwkv4": ("rwkv4", sizes(layers=few, width=small, vocab=small)),
    "lmu": (
        "lmu",
        st.one_of(
            sizes(layers=few, width=small, order=small, window=windows, features=small, outputs=small),
            sizes(
                layers=few,
                width=small,
                order=small,
                window=windows,
                features=small,
                outputs=small,
                parallel=st.just(True),
                channels=st.integers(1, 3),
            ),
        ),
    ),
    "kws-lmuformer": ("kws_lmuformer", sizes(**SPOTTERS, **LMUFORMERS, width=small)),
    "kws-tiny": ("kws_lmuformer", sizes(**SPOTTERS, **LMUFORMERS, width=small)),
    "kws-spiking-lmuformer": (
        "kws_spiking",
        sizes(**SPOTTERS, **LMUFORMERS, width=small, decay=st.sampled_from([0.0, 0.5])),
    ),
    "kws-gru": ("kws_gru", sizes(**SPOTTERS, layers=few, width=small)),
    "kws-transformer": (
        "kws_transformer",
        sizes(HEADS, **SPOTTERS, layers=few, ffn=small, segment=st.integers(2, 4), left=st.integers(1, 6)),
    ),
    "memformer": ("memformer", sizes(HEADS, **MEMORIES, features=small, vocab=st.sampled_from([0, 5]))),
    "memformer-seq2seq": ("memformer", sizes(HEADS, **MEMORIES, vocab=small)),
    "lm-memformer": ("memformer", sizes(HEADS, **MEMORIES, vocab=small)),
    "lm-transformer": (
        "transformer",
        sizes(HEADS, layers=few, context=st.integers(1, 9), ffn=st.sampled_from([0, 5]), vocab=small),
    ),
    "lm-transformer-xl": (
        "transformer_xl",
        sizes(
            HEADS,
            layers=few,
            memory=st.integers(1, 7),
            segment=st.integers(2, 5),
            ffn=st.sampled_from([0, 5]),
            vocab=small,
        ),
    ),
    "folding": ("folding", sizes(FOLDS, **WINDOWS, ffn_fold=FEEDS, features=small, vocab=st.sampled_from([0, 5]))),
    "asr-folding": ("folding", sizes(FOLDS, **WINDOWS, ffn_fold=FEEDS, features=st.just(12), vocab=small)),
    "probe-rwkv4": ("probes", sizes(probe=PROBED, layers=few, width=small, ffn=st.sampled_from([0, 5]))),
    "probe-lmu": (
        "probes",
        sizes(
            probe=PROBED,
            layers=few,
            width=small,
            order=small,
            window=windows | st.just(0.0),
            channels=st.integers(1, 3),
        ),
    ),
    "probe-gru": ("probes", sizes(probe=PROBED, layers=few, width=small, ffn=st.sampled_from([0, 5]))),
    "probe-memformer": ("probes", sizes(HEADS, **MEMORIES, probe=PROBED)),
    "probe-folding": ("probes", sizes(FOLDS, probe=PROBED, layers=few, left=st.integers(1, 6))),
}


def spec_of(name: str) -> ModelSpec:
    module = importlib.import_module(f"edgemem.models.{CASES[name][0]}")
    return next(spec for spec in module.MODELS if spec.name == name)


def disturbed(module: StreamingModule) -> StreamingModule:
    """The module in float64, every stored tensor moved, so that none is at a value that hides it (a bias of 0)."""
    module = module.double().eval()
    with torch.no_grad():
        for tensor in module.state_dict(keep_vars=True).values():
            tensor += 0.1 * torch.randn_like(tensor)
    return module


def drawn_input(module: StreamingModule, time: int) -> Any:
    """Random frames [BATCH, time, ...], by name where the model has several inputs."""
    frames: dict[str, Tensor] = {}
    for port in module.inputs:
        shape = (BATCH, time, *port.shape)
        if port.dtype == "int64":
            assert port.low is not None and port.high is not None
            frames[port.name] = torch.randint(port.low, port.high + 1, shape)
        else:
            frames[port.name] = torch.randn(shape, dtype=torch.float64)
    return frames if len(frames) > 1 else next(iter(frames.values()))


def relative_error(y: Tensor, reference: np.ndarray) -> float:
    """Largest difference, in units of the reference's largest value."""
    assert tuple(y.shape) == reference.shape
    return float(np.abs(y.numpy() - reference).max() / np.abs(reference).max())


def test_every_model_has_an_oracle() -> None:
    assert set(CASES) == set(specs())


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_every_form_equals_the_equations(name: str, data: st.DataObject) -> None:
    spec = spec_of(name)
    config = spec.config(**data.draw(CASES[name][1], label="settings"))
    torch.manual_seed(data.draw(st.integers(0, 1000), label="seed"))
    module = disturbed(spec.build(config))
    unit = segment_length(module)
    x = drawn_input(module, data.draw(st.integers(1, 3 * max(unit, 5)), label="time"))
    cuts = data.draw(st.lists(st.integers(1, 3 if unit > 1 else 7), min_size=1, max_size=4), label="cuts")

    oracle = importlib.import_module(f"tests.oracles.{CASES[name][0]}")
    parameters = {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}
    reference = oracle.run(parameters, config, each(x, Tensor.numpy))
    with torch.no_grad():
        assert relative_error(module(x), reference) <= TOLERANCE
        assert relative_error(scan(module, x, sizes=[cut * unit for cut in cuts])[0], reference) <= TOLERANCE
        assert relative_error(scan(module, x, sizes=[unit])[0], reference) <= TOLERANCE
    assert extent(x)[1] == reference.shape[1]
