"""Hugging Face models with attention: bounded caches, against transformers and against lists of what is kept."""

from __future__ import annotations

import pytest
import torch

from edgemem.errors import ConfigError
from edgemem.export.hf import bounded, loading
from edgemem.export.hf.bounded import BoundedSettings
from edgemem.export.hf.decoder import BoundedStream
from edgemem.module import scan
from tests import hf_models as hf

NAMES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "lfm2", "qwen3_next")
ROOMY = {"window": 252, "sinks": 4}  # nothing leaves
SMALL = [
    {"window": 9, "sinks": 3},
    {"window": 12, "sinks": 0},
    {"window": 9, "sinks": 3, "eviction": "tova"},
    {"window": 12, "sinks": 0, "eviction": "tova"},
]


def stream_of(name: str, **settings: object) -> BoundedStream:
    found = hf.stream_of(name, **settings)
    assert isinstance(found, BoundedStream)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_step_equals_forward_of_transformers_while_nothing_leaves(name: str) -> None:
    hf.check_step_equals_forward(stream_of(name, **ROOMY))


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_of_transformers_goes_on_as_a_stream(name: str) -> None:
    stream = stream_of(name, **ROOMY)
    x = hf.tokens(hf.WARM + 20)
    with torch.no_grad():
        cache = stream.model(input_ids=x[:, : hf.WARM], use_cache=True).past_key_values
        _, state = scan(stream, x[:, : hf.WARM], sizes=[1])
        known = stream.remembered(cache)
        assert set(known) == set(state)
        empty = stream.settings.size - 1 - hf.WARM  # rows of the cache that hold nothing yet, whatever is in them
        for value, wanted in ((known[name], state[name]) for name in state):
            real = (value[:, :, empty:], wanted[:, :, empty:]) if value.dim() == 4 else (value, wanted)
            torch.testing.assert_close(*real, rtol=1e-4, atol=1e-5)
        rest, _ = scan(stream, x[:, hf.WARM :], known, sizes=[1])
        hf.close(rest, stream(x)[:, hf.WARM :])
    with pytest.raises(ConfigError, match=r"the cache holds 40 tokens, a stream of window \+ sinks keeps 11"):
        stream_of(name, **SMALL[0]).remembered(cache)


@pytest.mark.parametrize("settings", SMALL)
@pytest.mark.parametrize("name", ["llama", "gpt2", "lfm2", "qwen3_next"])
def test_a_full_cache_keeps_what_its_rule_says(name: str, settings: dict[str, object]) -> None:
    stream = stream_of(name, **settings)
    hf.check_step_equals_forward(stream)
    x = hf.tokens(64)
    with torch.no_grad():
        assert float((stream(x) - stream.model(input_ids=x).logits)[:, 40:].abs().max()) > 1e-2  # something has left


@pytest.mark.parametrize("name", ["llama", "gpt2", "lfm2", "qwen3_next"])
def test_every_state_matters(name: str) -> None:
    hf.check_every_state_matters(stream_of(name, window=64, sinks=2))  # not full: `seen` matters while it counts


@pytest.mark.parametrize("window", [0, 12])
def test_local_attention_is_that_of_the_model(window: int) -> None:
    stream = stream_of("recurrent_gemma", window=window)
    hf.check_step_equals_forward(stream)
    if window == 0:  # not full: `seen` matters while it counts
        hf.check_every_state_matters(stream)
    x = hf.tokens(64)
    with torch.no_grad():
        assert window == 0 or float((stream(x) - stream_of("recurrent_gemma")(x)).abs().max()) > 1e-2
    with pytest.raises(ConfigError, match="window = 251 is more than attention_window_size = 250"):
        stream_of("recurrent_gemma", window=251)


def test_the_whole_form_of_a_window_is_that_of_a_list() -> None:
    """Two ways to say the same, none of them the step: a mask over all tokens, and what a list keeps."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 50, heads, 8, generator=draw) for heads in (4, 2, 2))
    rotation = bounded.Rotation(lambda x, places: turn(places, 8), 12)
    masked = bounded.windowed(query, key, value, BoundedSettings(9, 3), rotation, 0.4)
    y = torch.zeros_like(masked)
    for now in range(50):
        kept = list(range(now + 1)) if now < 12 else [0, 1, 2, *range(now - 8, now + 1)]
        q = rotation(query[:, now, :, None], slice(len(kept) - 1, len(kept)))
        k = rotation(key[:, kept].transpose(1, 2), slice(0, len(kept))).repeat_interleave(2, dim=1)
        v = value[:, kept].transpose(1, 2).repeat_interleave(2, dim=1)
        y[:, now] = (torch.softmax(q @ k.transpose(2, 3) * 0.4, dim=3) @ v).flatten(1)
    torch.testing.assert_close(masked, y, rtol=1e-5, atol=1e-5)


def turn(places: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary tables of a width, as transformers gives them."""
    angles = places[..., None] * 100.0 ** (-torch.arange(width // 2) / (width // 2))
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def test_settings_that_cannot_work_are_refused() -> None:
    for settings, message in (
        ({"window": 1}, "window must be at least 2"),
        ({"sinks": -1}, "sinks at least 0"),
        ({"eviction": "lru"}, "eviction must be one of window, tova, got 'lru'"),
        ({"window": 4000}, r"window \+ sinks = 4004 is more than max_position_embeddings = 2048; lower it by --set"),
        ({"windows": 4}, "llama has no setting 'windows'"),
    ):
        with pytest.raises(ConfigError, match=message):
            stream_of("llama", **settings)


def test_a_window_of_the_models_own_bounds_ours() -> None:
    config = loading.configuration(hf.fields("mistral", sliding_window=16), "here")
    from edgemem.export.hf.decoder import DecoderStream

    with pytest.raises(ConfigError, match="is more than the model's own sliding_window = 16"):
        DecoderStream.states(config, BoundedSettings(window=14, sinks=4))
    assert DecoderStream.states(config, BoundedSettings(window=12, sinks=4))[-1].name == "seen"
