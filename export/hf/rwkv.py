"""RWKV-4 as transformers has it (`RwkvForCausalLM`).

Equations in `edgemem.cells.rwkv4`. The model's own cache is a list of five tensors [batch, width, layers]: the inputs
of channel mixing and of time mixing one token before, numerator, denominator and largest exponent of the average.

`rescale_every` halves weights and activations every so many layers, for float16; in float32 it changes nothing but
rounding, and is off here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgemem.cells.rwkv4 import mixed
from edgemem.cells.wkv import EMPTY
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import REACH, CausalStream, Settings
from edgemem.module import State, part, prefixed
from edgemem.state import StateTensor

CACHE = ("channel.shift", "time.shift", "time.num", "time.den", "time.max")  # in the order of the model's own cache


@streams("rwkv")
class RwkvStream(CausalStream):
    """States of each layer: the last inputs of both mixings [width], and the average [attention width]."""

    def __init__(self, model: Any, settings: Settings, encoding: str | None = None) -> None:
        model.config.rescale_every = 0
        super().__init__(model, settings, encoding)

    @classmethod
    def states(cls, config: Any, settings: Any) -> tuple[StateTensor, ...]:
        width, inner = config.hidden_size, config.attention_hidden_size
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            found += [
                StateTensor(f"layers.{layer}.channel.shift", (width,), low=-REACH, high=REACH),
                StateTensor(f"layers.{layer}.time.shift", (width,), low=-REACH, high=REACH),
                StateTensor(f"layers.{layer}.time.num", (inner,), wide=True),
                StateTensor(f"layers.{layer}.time.den", (inner,), low=0.5, high=8.0, wide=True),
                StateTensor(f"layers.{layer}.time.max", (inner,), start=EMPTY, low=-4.0, high=4.0, wide=True),
            ]
        return tuple(found)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        rwkv, after = self.model.rwkv, {}
        hidden = rwkv.embeddings(x)
        for index, block in enumerate(rwkv.blocks):
            if index == 0:
                hidden = block.pre_ln(hidden)
            before, now = part(state, f"layers.{index}"), {}
            y, now["time"] = time_mixing(block.attention, block.ln1(hidden), part(before, "time"))
            hidden = hidden + y
            y, now["channel"] = channel_mixing(block.feed_forward, block.ln2(hidden), part(before, "channel"))
            hidden = hidden + y
            for name, states in now.items():
                after.update(prefixed(f"layers.{index}.{name}", states))
        return self.model.head(rwkv.ln_out(hidden)), after

    def remembered(self, cache: list[Tensor]) -> State:
        return {
            f"layers.{layer}.{name}": cache[place][:, :, layer].clone()
            for layer in range(self.model.config.num_hidden_layers)
            for place, name in enumerate(CACHE)
        }


def time_mixing(attention: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One frame x [batch, width] through a layer's average, and its states after it."""
    before = state["shift"]
    k = attention.key(mixed(x, before, attention.time_mix_key))
    v = attention.value(mixed(x, before, attention.time_mix_value))
    r = torch.sigmoid(attention.receptance(mixed(x, before, attention.time_mix_receptance)))
    num, den, top = state["num"], state["den"], state["max"]
    q = torch.maximum(top, attention.time_first + k)
    old, new = torch.exp(top - q), torch.exp(attention.time_first + k - q)
    average = (old * num + new * v) / (old * den + new)
    decayed = top - torch.exp(attention.time_decay)
    q = torch.maximum(decayed, k)
    old, new = torch.exp(decayed - q), torch.exp(k - q)
    after = {"shift": x, "num": old * num + new * v, "den": old * den + new, "max": q}
    return attention.output(r * average), after


def channel_mixing(feed: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One frame x [batch, width] through a layer's squared rectified units."""
    k = torch.relu(feed.key(mixed(x, state["shift"], feed.time_mix_key)))
    r = torch.sigmoid(feed.receptance(mixed(x, state["shift"], feed.time_mix_receptance)))
    return r * feed.value(k * k), {"shift": x}
