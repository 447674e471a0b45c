"""Mamba-2: state spaces with one decay per head (`Mamba2ForCausalLM`).

Dao & Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
ICML 2024.

    z, u, d = W_in x         c, B, C = silu(conv u)      D = clamp(softplus(d + bias))      one per head
    h_t = exp(D A) h_{t-1} + D c B^T     y = C h + skip c     out = W_out norm(y, z)        h [heads, head width, order]

B and C are shared by the heads of a group. The model's own cache holds the last inputs of the convolution, the current
one among them, and h, both stacked over the layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgemem.export.hf.convolution import convolved
from edgemem.export.hf.mamba import SpaceStream
from edgemem.export.hf.registry import streams
from edgemem.module import State


@streams("mamba2")
class Mamba2Stream(SpaceStream):
    """The state space is [heads, head width, order]."""

    @classmethod
    def sizes(cls, config: Any) -> tuple[int, tuple[int, ...]]:
        mixed = int(config.expand * config.hidden_size) + 2 * config.n_groups * config.state_size
        return mixed, (config.num_heads, config.head_dim, config.state_size)

    def mixed(self, mixer: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
        return dual(mixer, x, state)


def dual(mixer: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One frame x [batch, width] through a mixer."""
    inner, shared, heads = mixer.intermediate_size, mixer.n_groups * mixer.ssm_state_size, mixer.num_heads
    # some checkpoints project more in front, which the model leaves unused
    z, u, d = mixer.in_proj(x)[:, -(inner + mixer.conv_dim + heads) :].split([inner, mixer.conv_dim, heads], dim=1)
    c, tail = convolved(mixer.conv1d, u, state["tail"])
    c, b, read = mixer.act(c).split([inner, shared, shared], dim=1)
    c = c.reshape(-1, heads, mixer.head_dim)
    b, read = (by_head(v, mixer.n_groups, heads) for v in (b, read))
    delta = limited(functional.softplus(d + mixer.dt_bias), *mixer.time_step_limit)[:, :, None]  # [batch, heads, 1]
    keep = torch.exp(-torch.exp(mixer.A_log)[:, None] * delta)[:, :, :, None]
    space = keep * state["space"] + (delta * c)[:, :, :, None] * b[:, :, None]
    y = (space @ read[:, :, :, None])[:, :, :, 0] + c * mixer.D[:, None]
    return mixer.out_proj(mixer.norm(y.reshape(-1, inner), z)), {"tail": tail, "space": space}


def by_head(shared: Tensor, groups: int, heads: int) -> Tensor:
    """[batch, groups * order] as [batch, heads, order], a group's row for each of its heads."""
    rows = shared.reshape(shared.shape[0], groups, 1, -1)
    return rows.expand(-1, -1, heads // groups, -1).reshape(shared.shape[0], heads, -1)


def limited(delta: Tensor, low: float, high: float) -> Tensor:
    """delta between its limits, of which the upper one is often none."""
    return delta.clamp(min=low) if math.isinf(high) else delta.clamp(min=low, max=high)
