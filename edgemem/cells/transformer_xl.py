"""Transformer-XL: segments of attention that also see the segment before, through its cached hidden rows.

Dai, Yang, Yang, Carbonell, Le & Salakhutdinov, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length
Context", ACL 2019.

    X [length, width] one segment at a layer's input, H [memory, width] the last rows that were there before it.
    Z   = N [H; X]                                                  no gradient through H
    q   = W_q N X        k, v = W_k Z, W_v Z        r = W_r R        split into heads of width d
    A   = ((q_i + u) . k_j + (q_i + w) . r_(i - j)) / sqrt(d)       u, w learned, by head; i - j >= 0, H included
    X <- X + W_o softmax(A) v        X <- X + W_2 relu(W_1 N X)
    H <- the last `memory` rows of [H; X], X being the layer's input

R are sinusoids of the distance, so places are relative and cached rows stay good. Every layer has its H; a stack
reaches `layers * memory` frames back. N is layer normalisation before each part. Keys have no bias: u and w do its
work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemem.cells.attention import RelativeAttention
from edgemem.cells.feedforward import FeedForward
from edgemem.cells.padding import cleared, rows_from
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor

MEMORY_REACH = 2.0  # standard deviations of a hidden row


class XLLayer(nn.Module):
    """Attention over memory and segment, then feed-forward; each normalised before and added."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attend_norm, self.attend = nn.LayerNorm(width), RelativeAttention(width, heads)
        self.feed_norm, self.feed = nn.LayerNorm(width), FeedForward(width, inner)

    def forward(self, x: Tensor, known: Tensor, visible: Tensor) -> Tensor:
        """x [batch, length, width], `known` [batch, memory + length, width] with x at its end; as x."""
        x = x + self.attend(self.attend_norm(known), x.shape[1], visible)
        y: Tensor = x + self.feed(self.feed_norm(x))
        return y


class SegmentMemory(StreamingModule):
    """A stack of layers over embedded segments; a state [memory, width] per layer and a count of real rows."""

    unit = "segment"
    causal = True

    def __init__(self, layers: int, width: int, heads: int, memory: int, segment: int, inner: int) -> None:
        super().__init__()
        self.segment_length, self.memory = segment, memory
        self.layers = nn.ModuleList(XLLayer(width, heads, inner) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.state = (
            *(
                StateTensor(f"hidden{index}", (memory, width), role="cache", low=-MEMORY_REACH, high=MEMORY_REACH)
                for index in range(layers)
            ),
            StateTensor("real", (1,), role="counter", low=0.0, high=float(memory), wide=True),
        )

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment x [batch, length <= segment, width], of which the first `valid` [batch] frames are real."""
        x, length = cleared(x, valid), x.shape[1]
        seen = length if valid is None else valid[:, None].to(x.dtype)
        after = {"real": torch.clamp(state["real"] + seen, max=float(self.memory))}
        visible = self.visible(length, state["real"])
        for index, layer in enumerate(self.layers):
            old = state[f"hidden{index}"]
            known = torch.cat([old.detach() if self.training else old, x], dim=1)
            x = layer(x, known, visible)
            after[f"hidden{index}"] = rows_from(known, valid, self.memory)
        return self.norm(x), {name: after[name] for name in state}

    def visible(self, length: int, real: Tensor) -> Tensor:
        """[batch, 1, length, memory + length] true where a row may look, `real` [batch, 1] rows being in the memory."""
        row = torch.arange(self.memory + length, device=real.device)
        earlier = row[None, :] <= row[self.memory :, None]
        there = row[None, :].to(real.dtype) >= self.memory - real
        return (earlier[None] & there[:, None])[:, None]
