"""GPT-2: a decoder Transformer with learned positions (`GPT2LMHeadModel`).

    x = emb[token] + place[t]       x = x + W_o attend(norm x)       x = x + feed(norm x)       logits = head(norm x)

A position is added to a token when it comes, not where it lies in the cache, and there are `n_positions` of them: all
tokens after that take the last one. Up to there, as long as no token has left a cache, the model computes what it
always did.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgemem.export.hf.bounded import BoundedSettings, cache_states, seen_state
from edgemem.export.hf.decoder import Attend, BoundedStream, Mix, head_width, heads
from edgemem.export.hf.registry import streams
from edgemem.module import State
from edgemem.state import StateTensor


@streams("gpt2")
class GPT2Stream(BoundedStream):
    """States of each layer: keys and values of the bounded cache; of all: their real rows, and the position."""

    @classmethod
    def states(cls, config: Any, settings: BoundedSettings) -> tuple[StateTensor, ...]:
        settings.check(config.n_positions, "n_positions")
        found: list[StateTensor] = []
        for layer in range(config.n_layer):
            found += cache_states(f"layers.{layer}", config.n_head, head_width(config), settings)
        place = StateTensor("place", (1,), role="counter", low=0.0, high=float(config.n_positions - 1), wide=True)
        return (*found, seen_state(settings), place)

    @staticmethod
    def rotary(model: Any) -> Any:
        return None

    @staticmethod
    def scaling(model: Any) -> float:
        return head_width(model.config) ** -0.5 if model.config.scale_attn_weights else 1.0

    def flow(self, x: Tensor, state: State, attend: Attend, mix: Mix) -> Tensor:
        decoder, config = self.model.transformer, self.model.config
        if state:
            place = torch.clamp(state["place"][:, 0], min=0.0, max=float(config.n_positions - 1)).to(torch.int64)
        else:
            place = torch.arange(x.shape[1]).clamp(max=config.n_positions - 1)
        hidden = decoder.wte(x) + decoder.wpe(place)
        for index, block in enumerate(decoder.h):
            rows = block.attn.c_attn(block.ln_1(hidden)).chunk(3, dim=-1)
            query, key, value = (heads(row, head_width(config)) for row in rows)
            if config.scale_attn_by_inverse_layer_idx:
                query = query / (index + 1)
            hidden = hidden + block.attn.c_proj(attend(index, query, key, value))
            hidden = hidden + block.mlp(block.ln_2(hidden))
        logits: Tensor = self.model.lm_head(decoder.ln_f(hidden))
        return logits

    def beyond_layers(self, state: State) -> State:
        return {"place": torch.clamp(state["place"] + 1, max=float(self.model.config.n_positions - 1))}

    def remembered(self, cache: Any) -> State:
        found = super().remembered(cache)
        return {**found, "place": found["seen"].clone()}
