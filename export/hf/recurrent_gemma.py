"""RecurrentGemma: gated linear recurrences, and local attention in every third layer (`RecurrentGemmaForCausalLM`).

De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language Models", 2024
(arXiv:2402.19427).

    u = conv(W_x x)      log a = -8 sigmoid(W_a u) softplus(L)      h_t = a h_{t-1} + sqrt(1 - a^2) sigmoid(W_i u) u
    out = W_o (h_t * gelu(W_y x))                        of the first token nothing is held back: h_1 = sigmoid(W_i u) u

Attention is local: a token sees `attention_window_size` tokens, itself among them. So does the model with its cache;
its forward over a whole text of more tokens sees all of them, and is no reference there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from edgemem.errors import ConfigError
from edgemem.export.hf.bounded import BoundedSettings, cache_states, seen_state
from edgemem.export.hf.convolution import convolved
from edgemem.export.hf.decoder import Attend, BoundedStream, Mix, heads
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import REACH
from edgemem.module import State
from edgemem.state import StateTensor

SHARPNESS = 8.0  # c of the paper, section 2.4


@dataclass(frozen=True)
class LocalSettings:
    """`window`: tokens that one sees, itself among them; 0 for the model's own `attention_window_size`."""

    window: int = 0

    def bounded(self, config: Any) -> BoundedSettings:
        """The same as a cache's settings.

        Raises:
            ConfigError: more tokens than the model was made for.
        """
        if self.window > config.attention_window_size:
            raise ConfigError(
                f"window = {self.window} is more than attention_window_size = {config.attention_window_size}"
            )
        return BoundedSettings(window=self.window or config.attention_window_size, sinks=0)


@streams("recurrent_gemma")
class RecurrentGemmaStream(BoundedStream):
    """States of each layer: the convolution's tail [width, taps - 1] and h [width], or the local cache."""

    settings_type: ClassVar[type] = LocalSettings

    def __init__(self, model: Any, settings: LocalSettings, encoding: str | None = None) -> None:
        super().__init__(model, settings.bounded(model.config), encoding)
        self.embedding_scale = float(model.model.normalizer)

    @classmethod
    def states(cls, config: Any, settings: LocalSettings | BoundedSettings) -> tuple[StateTensor, ...]:
        bounded = settings if isinstance(settings, BoundedSettings) else settings.bounded(config)
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            if layer in cls.attention_layers(config):
                found += cache_states(f"layers.{layer}", config.num_key_value_heads, config.head_dim, bounded)
            else:
                tail = (config.lru_width, config.conv1d_width - 1)
                found += [
                    StateTensor(f"layers.{layer}.tail", tail, role="tail", low=-REACH, high=REACH),
                    StateTensor(f"layers.{layer}.hidden", (config.lru_width,), low=-REACH, high=REACH),
                ]
        return (*found, seen_state(bounded))

    @staticmethod
    def attention_layers(config: Any) -> list[int]:
        return [layer for layer, kind in enumerate(config.layers_block_type) if kind == "attention"]

    @staticmethod
    def rotary(model: Any) -> Any:
        layers = RecurrentGemmaStream.attention_layers(model.config)
        return model.model.layers[layers[0]].temporal_block.rotary_emb if layers else None

    @staticmethod
    def scaling(model: Any) -> float:
        return float(model.config.head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.forget()
        return super().forward(x)

    def forget(self) -> None:
        """Empty what the model's own blocks keep in attributes of theirs."""
        for layer in self.model.model.layers:
            if hasattr(layer.temporal_block, "rg_lru"):
                layer.temporal_block.rg_lru.recurrent_states = None

    def flow(self, x: Tensor, state: State, attend: Attend, mix: Mix) -> Tensor:
        decoder, config = self.model.model, self.model.config
        hidden = decoder.embed_tokens(x) * self.embedding_scale
        for index, layer in enumerate(decoder.layers):
            u, block = layer.temporal_pre_norm(hidden), layer.temporal_block
            if hasattr(block, "rg_lru"):
                y = mix(index, u)
            else:
                rows = (heads(project(u), config.head_dim) for project in (block.q_proj, block.k_proj, block.v_proj))
                y = block.o_proj(attend(index, *rows))
            hidden = hidden + y
            hidden = hidden + layer.mlp_block(layer.channel_pre_norm(hidden))
        logits: Tensor = self.model.lm_head(decoder.final_norm(hidden))
        cap = float(config.logits_soft_cap)
        return torch.tanh(logits / cap) * cap

    def mixed(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        block = self.model.model.layers[layer].temporal_block
        u, tail = convolved(block.conv_1d, block.linear_x(x), state["tail"])
        unit = block.rg_lru
        enter = torch.sigmoid(by_block(u, unit.input_gate_weight, unit.input_gate_bias))
        keep = torch.sigmoid(by_block(u, unit.recurrent_gate_weight, unit.recurrent_gate_bias))
        log_keep = -SHARPNESS * keep * functional.softplus(unit.recurrent_param)
        first = state["seen"] == 0
        share = torch.where(first, torch.ones_like(u), torch.sqrt(1 - torch.exp(2 * log_keep)))
        kept = torch.where(first, torch.zeros_like(u), torch.exp(log_keep) * state["hidden"])
        hidden = kept + share * (u * enter)
        return block.linear_out(hidden * block.act_fn(block.linear_y(x))), {"tail": tail, "hidden": hidden}

    def mixed_whole(self, layer: int, x: Tensor) -> Tensor:
        block = self.model.model.layers[layer].temporal_block
        places = torch.arange(x.shape[1])
        y: Tensor = block(x, places[None], None, cache_position=places, use_cache=False)
        return y

    def remembered(self, cache: Any) -> State:
        raise ConfigError("recurrent_gemma keeps its cache in the model itself; there is none to read")


def by_block(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """u [batch, width] through one matrix for each block of it: weight [blocks, n, n], bias [blocks, n]."""
    rows = u.reshape(u.shape[0], weight.shape[0], 1, -1)
    return ((rows @ weight)[:, :, 0] + bias).flatten(1)
