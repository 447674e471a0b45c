"""Hugging Face models as streams: recurrent architectures, against transformers' own forward and cache."""

from __future__ import annotations

import pytest
import torch

from edgemem.errors import ConfigError
from edgemem.export.hf import loading, registry
from edgemem.export.hf.stream import CausalStream
from tests import hf_models as hf

NAMES = ("rwkv", "mamba", "mamba2", "xlstm")


@pytest.fixture(params=NAMES)
def stream(request: pytest.FixtureRequest) -> CausalStream:
    return hf.stream_of(request.param)


def cache_of(stream: CausalStream) -> object:
    """The model's own cache after the first tokens."""
    with torch.no_grad():
        found = stream.model(input_ids=hf.tokens(hf.WARM + 20)[:, : hf.WARM], use_cache=True)
    return next(found[key] for key in ("state", "cache_params", "past_key_values") if found.get(key) is not None)


def test_step_equals_forward(stream: CausalStream) -> None:
    hf.check_step_equals_forward(stream)


def test_a_cache_of_transformers_goes_on_as_a_stream(stream: CausalStream) -> None:
    hf.check_cache_goes_on(stream, cache_of(stream))


def test_every_state_matters(stream: CausalStream) -> None:
    hf.check_every_state_matters(stream)


def test_every_architecture_has_a_small_model_here() -> None:
    assert {name.partition(":")[0] for name in hf.CONFIGS} == set(registry.model_types())


def test_optimum_knows_the_states_of_a_configuration() -> None:
    from optimum.exporters.tasks import TasksManager

    config = loading.configuration(hf.fields("rwkv"), "here")
    tasks = TasksManager.get_supported_tasks_for_model_type("rwkv", "edgemem", library_name="transformers")
    known = tasks["text-generation"](config)
    assert list(known.inputs)[:2] == ["tokens", "layers.0.channel.shift_in"] and len(known.inputs) == 1 + 2 * 5
    assert [name.replace("_out", "_in") for name in known.outputs][1:] == list(known.inputs)[1:]


def test_what_cannot_stream_is_named() -> None:
    config = loading.configuration(hf.fields("rwkv"), "here")
    with pytest.raises(ConfigError, match="task 'fill-mask' cannot stream; text-generation"):
        registry.config_of(config, "fill-mask")
    with pytest.raises(ConfigError, match=r"here: model_type 'bert' has no streaming form here; there are .*rwkv"):
        loading.configuration({"model_type": "bert"}, "here")


def test_an_architecture_of_ones_own_joins_by_a_line() -> None:
    @registry.streams("mine")
    class Mine(CausalStream):
        pass

    try:
        assert "mine" in registry.model_types()
    finally:
        registry.known.pop("mine")
