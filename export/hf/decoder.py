"""Decoder Transformers with rotary positions: Llama, Mistral, Qwen2, Qwen3; and what all with a bounded cache share.

    x = x + W_o attend(norm x)        x = x + feed(norm x)        logits = head(norm x)

`flow` is written once for tokens [batch] and [batch, time] alike: its layers act on the last axis, and what looks at
other tokens is passed in. `forward` is transformers' own as long as no token has left a cache, and the same flow with
attention over all tokens at once from there on (`edgemem.export.hf.bounded`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from edgemem.errors import ConfigError
from edgemem.export.hf.bounded import (
    BoundedSettings,
    Rotation,
    attended,
    cache_states,
    recalled,
    seen_after,
    seen_state,
    windowed,
)
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import CausalStream
from edgemem.module import State, part, prefixed
from edgemem.state import StateTensor

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # layer, query, key, value [..., heads, width] to [..., rows]
Mix = Callable[[int, Tensor], Tensor]  # layer, x [..., width] to [..., width]: what remembers otherwise


ATTENTION = ("full_attention", "sliding_attention")  # what configurations call layers that attend


class BoundedStream(CausalStream):
    """A model with attention in some of its layers, the caches of which are bounded."""

    settings_type: ClassVar[type] = BoundedSettings

    def __init__(self, model: Any, settings: BoundedSettings, encoding: str | None = None) -> None:
        super().__init__(model, settings, encoding)
        self.rotation = Rotation(self.rotary(model), settings.size)
        self.scale = self.scaling(model)

    @staticmethod
    def rotary(model: Any) -> Any:
        """The model's rotary embedding, None if it has none."""
        return model.model.rotary_emb

    @staticmethod
    def scaling(model: Any) -> float:
        """What scores are multiplied with."""
        return float(head_width(model.config) ** -0.5)

    def flow(self, x: Tensor, state: State, attend: Attend, mix: Mix) -> Tensor:
        """Tokens x [batch] or [batch, time] to logits; `state` holds what is not of a layer."""
        raise NotImplementedError

    def mixed(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """A frame x [batch, width] through a layer without attention, and its states after it; `seen` is there too."""
        raise NotImplementedError(f"layer {layer} of {type(self).__name__} has no attention")

    def mixed_whole(self, layer: int, x: Tensor) -> Tensor:
        """All frames x [batch, time, width] through a layer without attention: the model's own forward."""
        raise NotImplementedError(f"layer {layer} of {type(self).__name__} has no attention")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after: State = {}

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            before = part(state, f"layers.{layer}")
            y, cache = attended(query, key, value, before, state["seen"], self.settings, self.rotation, self.scale)
            after.update(prefixed(f"layers.{layer}", cache))
            return y

        def mix(layer: int, u: Tensor) -> Tensor:
            y, states = self.mixed(layer, u, {**part(state, f"layers.{layer}"), "seen": state["seen"]})
            after.update(prefixed(f"layers.{layer}", states))
            return y

        logits = self.flow(x, state, attend, mix)
        return logits, {**after, "seen": seen_after(state["seen"], self.settings), **self.beyond_layers(state)}

    def beyond_layers(self, state: State) -> State:
        """The next value of states that are of no layer, but for `seen`."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= self.settings.size:
            return super().forward(x)
        whole = windowed if self.settings.eviction == "window" else recalled

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return whole(query, key, value, self.settings, self.rotation, self.scale)

        return self.flow(x, {}, attend, self.mixed_whole)

    def remembered(self, cache: Any) -> State:
        """A DynamicCache of fewer tokens than leave room for the next one.

        Raises:
            ConfigError: more tokens than a stream keeps; transformers has attended to all of them.
        """
        found: State = {}
        for layer in self.attention_layers(self.model.config):
            keys, values = cached(cache, layer)
            seen, rows = keys.shape[2], self.settings.size - 1
            if seen > rows:
                raise ConfigError(f"the cache holds {seen} tokens, a stream of window + sinks keeps {rows}")
            for name, value in (("keys", self.rotation.undone(keys)), ("values", values)):
                room = value.new_zeros(*value.shape[:2], rows - seen, value.shape[3])
                found[f"layers.{layer}.{name}"] = torch.cat([room, value], dim=2)
            found["seen"] = keys.new_full((keys.shape[0], 1), float(seen))
        return found

    @staticmethod
    def attention_layers(config: Any) -> list[int]:
        """The layers that attend: all, but where a configuration says that some do something else."""
        kinds = getattr(config, "layer_types", None) or [ATTENTION[0]] * config.num_hidden_layers
        return [layer for layer, kind in enumerate(kinds) if kind in ATTENTION]


def cached(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values [batch, heads, time, width] of a layer in one of transformers' caches."""
    if hasattr(cache, "layers"):
        return cache.layers[layer].keys, cache.layers[layer].values
    return cache.key_cache[layer], cache.value_cache[layer]


def head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def heads(x: Tensor, width: int) -> Tensor:
    """[..., heads * width] to [..., heads, width]."""
    return x.reshape(*x.shape[:-1], -1, width)


@streams("llama", "mistral", "qwen2", "qwen3")
class DecoderStream(BoundedStream):
    """States of each layer: keys and values of the bounded cache; of all: how many of their rows are real."""

    @classmethod
    def states(cls, config: Any, settings: BoundedSettings) -> tuple[StateTensor, ...]:
        settings.check(config.max_position_embeddings, "max_position_embeddings")
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        slides = "sliding_attention" in kinds and getattr(config, "sliding_window", None)
        settings.check(config.sliding_window if slides else None, "the model's own sliding_window")
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            found += cache_states(f"layers.{layer}", config.num_key_value_heads, head_width(config), settings)
        return (*found, seen_state(settings))

    def flow(self, x: Tensor, state: State, attend: Attend, mix: Mix) -> Tensor:
        decoder, width = self.model.model, head_width(self.model.config)
        hidden = decoder.embed_tokens(x)
        for index, layer in enumerate(decoder.layers):
            attention, u = layer.self_attn, layer.input_layernorm(hidden)
            query, key = heads(attention.q_proj(u), width), heads(attention.k_proj(u), width)
            if hasattr(attention, "q_norm"):
                query, key = attention.q_norm(query), attention.k_norm(key)
            hidden = hidden + attention.o_proj(attend(index, query, key, heads(attention.v_proj(u), width)))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits: Tensor = self.model.lm_head(decoder.norm(hidden))
        return logits
