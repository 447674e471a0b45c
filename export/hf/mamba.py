"""Mamba: selective state spaces (`MambaForCausalLM`).

Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", COLM 2024.

    u, z = W_in x            c = silu(conv u)            d, B, C = W_x c            D = softplus(W_d d + b)
    h_t = exp(D A) h_{t-1} + D B c       y = (C h + skip c) silu(z)                 h [inner, order], A = -exp(A_log)

The model's own cache holds the last inputs of the convolution, the current one among them, and h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgemem.export.hf.convolution import convolved
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import REACH, CausalStream
from edgemem.module import State, part, prefixed
from edgemem.state import StateTensor


class SpaceStream(CausalStream):
    """What the two Mambas share. States of each layer: the convolution's tail [mixed, taps - 1] and the state space."""

    @classmethod
    def states(cls, config: Any, settings: Any) -> tuple[StateTensor, ...]:
        mixed, space = cls.sizes(config)
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            tail = (mixed, config.conv_kernel - 1)
            found += [
                StateTensor(f"layers.{layer}.tail", tail, role="tail", low=-REACH, high=REACH),
                StateTensor(f"layers.{layer}.space", space, wide=True),
            ]
        return tuple(found)

    @classmethod
    def sizes(cls, config: Any) -> tuple[int, tuple[int, ...]]:
        """Channels of the convolution, and the shape of the state space."""
        raise NotImplementedError(f"{cls.__name__} declares no sizes")

    def mixed(self, mixer: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One frame x [batch, width] through a layer's mixer."""
        raise NotImplementedError(f"{type(self).__name__} mixes nothing")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        backbone, after = self.model.backbone, {}
        hidden = backbone.embeddings(x)
        for index, layer in enumerate(backbone.layers):
            y, states = self.mixed(layer.mixer, layer.norm(hidden), part(state, f"layers.{index}"))
            hidden = hidden + y
            after.update(prefixed(f"layers.{index}", states))
        return self.model.lm_head(backbone.norm_f(hidden)), after

    def remembered(self, cache: Any) -> State:
        return {
            name: value.clone()
            for layer in range(self.model.config.num_hidden_layers)
            for name, value in (
                (f"layers.{layer}.tail", cache.conv_states[layer][:, :, 1:]),
                (f"layers.{layer}.space", cache.ssm_states[layer]),
            )
        }


@streams("mamba")
class MambaStream(SpaceStream):
    """The state space is [inner, order]."""

    @classmethod
    def sizes(cls, config: Any) -> tuple[int, tuple[int, ...]]:
        return config.intermediate_size, (config.intermediate_size, config.state_size)

    def mixed(self, mixer: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        return selective(mixer, x, state)


def selective(mixer: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One frame x [batch, width] through a mixer."""
    u, z = mixer.in_proj(x).chunk(2, dim=1)
    c, tail = convolved(mixer.conv1d, u, state["tail"])
    c = mixer.act(c)
    sizes = [mixer.time_step_rank, mixer.ssm_state_size, mixer.ssm_state_size]
    d, b, read = mixer.x_proj(c).split(sizes, dim=1)
    delta = functional.softplus(mixer.dt_proj(d))[:, :, None]  # [batch, inner, 1]
    space = torch.exp(-torch.exp(mixer.A_log) * delta) * state["space"] + delta * b[:, None] * c[:, :, None]
    y = (space @ read[:, :, None])[:, :, 0] + c * mixer.D
    return mixer.out_proj(y * mixer.act(z)), {"tail": tail, "space": space}
