"""LFM2: short gated convolutions, and attention in some layers (`Lfm2ForCausalLM`).

    x = x + mix(norm x)     x = x + feed(norm x)     mix: B, C, u = W_in x;  y = W_out (C * conv(B * u)), or attention

The convolution's state is its last inputs; caches of the attention layers are bounded (`edgemem.export.hf.bounded`).
The model's own cache holds keys and values, and the last inputs of each convolution, the current one among them.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edgemem.export.hf.bounded import BoundedSettings, cache_states, seen_state
from edgemem.export.hf.convolution import convolved
from edgemem.export.hf.decoder import Attend, BoundedStream, Mix, head_width, heads
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import REACH
from edgemem.module import State
from edgemem.state import StateTensor


@streams("lfm2")
class Lfm2Stream(BoundedStream):
    """States of each layer: the convolution's tail [width, taps - 1], or keys and values of the bounded cache."""

    @classmethod
    def states(cls, config: Any, settings: BoundedSettings) -> tuple[StateTensor, ...]:
        settings.check(config.max_position_embeddings, "max_position_embeddings")
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            if layer in cls.attention_layers(config):
                found += cache_states(f"layers.{layer}", config.num_key_value_heads, head_width(config), settings)
            else:
                tail = (config.hidden_size, config.conv_L_cache - 1)
                found.append(StateTensor(f"layers.{layer}.tail", tail, role="tail", low=-REACH, high=REACH))
        return (*found, seen_state(settings))

    def flow(self, x: Tensor, state: State, attend: Attend, mix: Mix) -> Tensor:
        decoder, width = self.model.model, head_width(self.model.config)
        hidden = decoder.embed_tokens(x)
        for index, layer in enumerate(decoder.layers):
            u = layer.operator_norm(hidden)
            if layer.is_attention_layer:
                attention = layer.self_attn
                query = attention.q_layernorm(heads(attention.q_proj(u), width))
                key = attention.k_layernorm(heads(attention.k_proj(u), width))
                y = attention.out_proj(attend(index, query, key, heads(attention.v_proj(u), width)))
            else:
                y = mix(index, u)
            hidden = hidden + y
            hidden = hidden + layer.feed_forward(layer.ffn_norm(hidden))
        logits: Tensor = self.model.lm_head(decoder.embedding_norm(hidden))
        return logits

    def mixed(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        convolution = self.model.model.layers[layer].conv
        b, c, u = convolution.in_proj(x).chunk(3, dim=1)
        y, tail = convolved(convolution.conv, b * u, state["tail"])
        return convolution.out_proj(c * y), {"tail": tail}

    def mixed_whole(self, layer: int, x: Tensor) -> Tensor:
        y: Tensor = self.model.model.layers[layer].conv(x)
        return y

    def remembered(self, cache: Any) -> State:
        found = super().remembered(cache)
        for state in self.state:
            if state.role == "tail":
                found[state.name] = cache.conv_cache[int(state.name.split(".")[1])][:, :, 1:].clone()
        return found
