"""What the attention of several cells shares: projections, heads, masks, and places told by distance.

Relative attention is that of Dai, Yang, Yang, Carbonell, Le & Salakhutdinov, "Transformer-XL: Attentive Language Models
Beyond a Fixed-Length Context", ACL 2019.

    q, k, v = W_q x, W_k z, W_v z        r = W_r R        R [n, width] sinusoids of the distances n - 1 .. 0
    A_ij    = ((q_i + u) . k_j + (q_i + w) . r_(i - j)) / sqrt(d)        u, w learned, by head
    y       = W_o softmax(A) v

x are the last rows of z. No key has a bias: u and w do its work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Finite, so that a row with nothing to attend stays finite; a score added to it changes nothing, and its exp is 0.
MASKED = -1e30
CACHE_REACH = 2.0  # of cached keys and values, in standard deviations of a projected, normalised row


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A projection that keeps unit variance."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=1.0 / math.sqrt(inputs))
    return layer


def split(x: Tensor, heads: int) -> Tensor:
    """x [batch, n, width] as [batch, heads, n, width / heads]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """The inverse of `split`."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])


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
        """z [batch, memory + length, width] to [batch, length, width], the rows at its end.

        `visible` [batch or 1, 1, length, memory + length] is true where a row may look.
        """
        rows = z.shape[1]
        q = split(self.query(z[:, rows - length :]), self.heads)
        k, v = split(self.key(z), self.heads), split(self.value(z), self.heads)
        far_to_near = torch.arange(rows - 1, -1, -1, device=z.device).to(z.dtype)
        r = split(self.distance(sinusoids(far_to_near, z.shape[2]))[None], self.heads)
        placed = by_distance((q + self.place_bias) @ r.transpose(2, 3))
        scores = ((q + self.content_bias) @ k.transpose(2, 3) + placed) / math.sqrt(q.shape[3])
        weights = torch.softmax(torch.where(visible, scores, MASKED), dim=-1)
        y: Tensor = self.out(merged(weights @ v))
        return y
