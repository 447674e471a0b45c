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

import math

import torch
from torch import Tensor, nn

from edgemem.cells.folding import linear
from edgemem.cells.legendre import cleared
from edgemem.cells.memformer import MASKED, FeedForward, merged, split
from edgemem.cells.transformer import rows_from
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor

MEMORY_REACH = 2.0  # standard deviations of a hidden row


def sinusoids(distance: Tensor, width: int) -> Tensor:
    """R [n, width] of distances [n] in frames: sines, then cosines, of wavelengths 2 pi to 2 pi 10000."""
    place = torch.arange((width + 1) // 2, device=distance.device).to(distance.dtype)
    angle = distance[:, None] * torch.exp(place * (-math.log(10_000.0) / max(1, (width + 1) // 2)))
    return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)[:, :width]


def by_distance(scores: Tensor) -> Tensor:
    """Scores [batch, heads, length, memory + length] by distance, the farthest first, as scores by row.

    Row i sees key j at the distance memory + i - j. Entries of keys later than their row mean nothing.
    """
    batch, heads, length, rows = scores.shape
    moved = torch.cat([scores.new_zeros(batch, heads, length, 1), scores], dim=3)
    return moved.reshape(batch, heads, rows + 1, length)[:, :, 1:].reshape(batch, heads, length, rows)


class RelativeAttention(nn.Module):
    """Attention from the rows of a segment to those of its memory and to its own earlier ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = linear(width, width, bias=False), linear(width, width, bias=False)
        self.value, self.distance = linear(width, width), linear(width, width, bias=False)  # W_v, W_r
        self.out = linear(width, width)
        self.content_bias = nn.Parameter(0.1 * torch.randn(heads, 1, width // heads))  # u
        self.place_bias = nn.Parameter(0.1 * torch.randn(heads, 1, width // heads))  # w

    def forward(self, z: Tensor, length: int, visible: Tensor) -> Tensor:
        """z [batch, memory + length, width], `visible` [batch, length, memory + length]; [batch, length, width]."""
        rows = z.shape[1]
        q = split(self.query(z[:, rows - length :]), self.heads)
        k, v = split(self.key(z), self.heads), split(self.value(z), self.heads)
        far_to_near = torch.arange(rows - 1, -1, -1, device=z.device).to(z.dtype)
        r = split(self.distance(sinusoids(far_to_near, z.shape[2]))[None], self.heads)
        placed = by_distance((q + self.place_bias) @ r.transpose(2, 3))
        scores = ((q + self.content_bias) @ k.transpose(2, 3) + placed) / math.sqrt(q.shape[3])
        weights = torch.softmax(torch.where(visible[:, None], scores, MASKED), dim=-1)
        y: Tensor = self.out(merged(weights @ v))
        return y


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
        """[batch, length, memory + length] true where a row may look, `real` [batch, 1] rows being in the memory."""
        row = torch.arange(self.memory + length, device=real.device)
        earlier = row[None, :] <= row[self.memory :, None]
        there = row[None, :].to(real.dtype) >= self.memory - real
        return earlier[None] & there[:, None]
