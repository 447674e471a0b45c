"""Causal attention over a bounded past, its keys and values kept from step to step: what a Transformer streams with.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017; distances as in Press, Smith & Lewis, "Train Short, Test
Long: Attention with Linear Biases Enables Input Length Extrapolation", ICLR 2022.

    q, k, v = W_q x, W_k x, W_v x                                   x [batch, width], split into heads of width d
    y_t = W_o sum_{t-C <= j <= t} softmax_j(q_t . k_j / sqrt(d) - m (t - j)) v_j        m one learned slope per head

    step    keys and values [C, width] of the last C frames, the newest last, and how many of them are real
    chunk   all frames of a chunk at once, each attending the C frames before it, from the cache or from the chunk

The cache is the whole state: it grows with the context C, which is a setting and not a weight: one set of weights runs
at any. No key has a bias: it would shift all scores of a query alike and cancel in the softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemem.cells.attention import CACHE_REACH, MASKED, linear, merged, split
from edgemem.cells.padding import cleared, rows_from
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor


class CachedAttention(StreamingModule):
    """x [batch, width] to [batch, width], attending `context` earlier frames and the frame itself."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.query, self.key, self.value = linear(width, width), linear(width, width, bias=False), linear(width, width)
        self.out = linear(width, width)
        self.slope = nn.Parameter(2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads))  # m
        self.state = (
            StateTensor("keys", (context, width), role="cache", low=-CACHE_REACH, high=CACHE_REACH),
            StateTensor("values", (context, width), role="cache", low=-CACHE_REACH, high=CACHE_REACH),
            StateTensor("real", (1,), role="counter", low=0.0, high=float(context), wide=True),
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = self.chunk(x[:, None], state)
        return y[:, 0], after

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Frames of x [batch, time, width] from `valid` on are padding."""
        x = cleared(x, valid)
        keys = torch.cat([state["keys"], self.key(x)], dim=1)
        values = torch.cat([state["values"], self.value(x)], dim=1)
        q, k, v = (split(u, self.heads) for u in (self.query(x), keys, values))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        y: Tensor = self.out(merged(self.weights(scores, state["real"]) @ v))
        seen = x.shape[1] if valid is None else valid[:, None].to(x.dtype)
        after = {
            "keys": rows_from(keys, valid, self.context),
            "values": rows_from(values, valid, self.context),
            "real": torch.clamp(state["real"] + seen, max=float(self.context)),
        }
        return y, after

    def weights(self, scores: Tensor, real: Tensor) -> Tensor:
        """Softmax of scores [batch, heads, time, context + time], less slope times distance, 0 where not visible.

        `real` [batch, 1] counts the rows of the cache that hold frames, its last ones.
        """
        frame = torch.arange(scores.shape[2], device=scores.device)
        row = torch.arange(scores.shape[3], device=scores.device)
        distance = frame[:, None] + self.context - row[None, :]
        reached = ((distance >= 0) & (distance <= self.context))[None]
        there = row[None, None, :].to(real.dtype) >= self.context - real[:, :, None]  # in the cache; all of the chunk
        scores = scores - self.slope[:, None, None] * distance.to(scores.dtype)
        return torch.softmax(torch.where((reached & there)[:, None], scores, MASKED), dim=-1)
