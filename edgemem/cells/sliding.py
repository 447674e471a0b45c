"""Folding attention over a sliding window: each frame attends itself and the `left` frames before it, and no other.

Layers as in `edgemem.cells.folding` (Li et al. 2023), one frame per step and nothing to its right. Keys and values of
the last `left` frames are the state of a layer; `real` says which of them are frames of the stream.

    step    y_t = attend x_t to the cache and itself
    chunk   blocks of up to `left` frames at once, each beside the block before it; a band of a mask does the rest
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from edgemem.cells.attention import MASKED, merged, split
from edgemem.cells.folding import FoldedAttention, FoldingEncoder, FoldingLayer, folded, unfolded, windows
from edgemem.cells.padding import cleared, taken
from edgemem.module import State, part, prefixed


class SlidingWindow(FoldingEncoder):
    """Folding attention frame by frame: x [batch, width] sees itself and the `left` frames before it."""

    unit = "frame"
    causal = True

    def __init__(self, layers: int, width: int, heads: int, inner: int, fold: int, left: int) -> None:
        super().__init__(layers, width, heads, inner, fold, segment=1, left=left, right=0)

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        y, after = self.chunk(x[:, None], state)
        return y[:, 0], after

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Blocks of at most `left` frames at once. Frames of x [batch, time, width] from `valid` on are padding."""
        time, size, x = x.shape[1], min(self.left, x.shape[1]), cleared(x, valid)
        count = -(-time // size)
        # padding counts as real here: only rows behind it see it, and those are padding too
        real = torch.cat([state["real"], torch.ones_like(x[:, :, 0])], dim=1)
        visible = windows(functional.pad(real, (0, count * size - time)), self.left + size, size, count) > 0.5
        after = {"real": taken(real[:, :, None], valid, self.left)[:, :, 0]}
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, FoldingLayer)
            name = f"layers.{index}.attend"
            y, cache = banded(layer.attend, layer.attend_norm(x), visible, part(state, name), valid)
            x = x + y
            x = x + layer.feed(layer.feed_norm(x))
            after.update(prefixed(name, cache))
        return self.norm(x), after

    def forward(self, x: Tensor) -> Tensor:
        return self.chunk(x, self.start(x.shape[0]))[0]


def banded(
    attend: FoldedAttention, x: Tensor, visible: Tensor, state: State, valid: Tensor | None
) -> tuple[Tensor, State]:
    """`attend` of every frame of x [batch, time, width] to itself and the `left` before it; and the next cache.

    `visible` [batch * blocks, left + size] says what of a block of `size` frames, and of the frames before, is real.
    """
    (batch, time, width), fold, left = x.shape, attend.fold, attend.left
    size = visible.shape[1] - left
    count = -(-time // size)
    u = folded(x, fold)
    rows = {"keys": attend.key(u), "values": attend.value(u)}
    known = {name: torch.cat([state[name], unfolded(row, fold)], dim=1) for name, row in rows.items()}
    filled = {name: functional.pad(row, (0, 0, 0, count * size - time)) for name, row in known.items()}
    k, v = (split(folded(windows(row, left + size, size, count), fold), attend.heads) for row in filled.values())
    q = functional.pad(unfolded(attend.query(u), fold), (0, 0, 0, count * size - time))
    q = split(folded(q.reshape(batch * count, size, width), fold), attend.heads)
    age = left + torch.arange(size)[:, None] - torch.arange(left + size)[None, :]  # of a key, in frames
    bias = attend.distance[:, (left - age).clamp(0, left)]  # [heads, size, left + size], the farthest first
    seen = visible[:, None, None, :] & ((age >= 0) & (age <= left))
    bias = torch.where(seen, bias, MASKED).repeat_interleave(fold, 2).repeat_interleave(fold, 3)
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[3]) + bias, dim=-1)
    y = attend.out(merged(weights @ v)).reshape(batch, count * size * fold, width // fold)
    return unfolded(y, fold)[:, :time], {name: taken(row, valid, left) for name, row in known.items()}
