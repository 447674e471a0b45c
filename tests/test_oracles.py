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
from tests.cases import CASES

BATCH = 2
# float64 keeps 16 digits; sums of a few hundred terms in another order, over a few layers, lose at most six of them
TOLERANCE = 1e-10


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
