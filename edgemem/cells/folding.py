"""Folding attention in a streaming Transformer encoder: small weight matrices, each used several times per frame.

Li, Lai, Shangguan, Iandola, Ni, Chang, Shi & Chandra, "Folding Attention: Memory and Power Optimization for On-Device
Transformer-based Streaming Speech Recognition", 2023.

    fold      a frame [width] is N sub-tokens [width / N]: frames [n, width] are sub-tokens [n N, width / N]
    attend    q, k, v = W_q u, W_k u, W_v u for every sub-token u, W [width / N, width / N], split into heads
              y_i = W_o sum_j softmax_j(q_i . k_j / sqrt(d) + b[frame of j - frame of i]) v_j
    feed      W_2 relu(W_1 u) for every sub-token u, W_1 [ffn / N, width / N]
    unfold    the sub-tokens of a frame side by side again

Every sub-token sees all sub-tokens of every frame that its frame sees. Weights shrink by N^2, their multiplications
by N; scores grow by N. N = 1 is the ordinary encoder layer; attention and feed-forward may differ in N. Norms and
residual paths are of whole frames.

Frames come in segments of C; each is encoded with L frames to its left and R to its right (block processing, as in
the Emformer of Shi et al. 2021, whose summary memory this is without):

    window    [L cached keys and values | C centre frames | R right frames]
    queries   centre and right frames; the right ones are encoded afresh with every segment, so that a stack of
              layers looks ahead R frames, not R per layer
    cache     keys and values of the last L centre frames, for the next segment; [L, width] at any N

A step takes C frames and its centre lies R frames before them: the last R frames (`tail`) wait for their right
context. `real` says of the L cached frames and the R waiting ones which are frames of the stream: none at the
start. What is not real is never attended, before the stream, behind its end, or in a gap. Places are known by
distance alone (b, learned, by head), so a stream has no end.

No key has a bias: it would shift all scores of a query alike and cancel in the softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemem.cells.attention import CACHE_REACH, MASKED, linear, merged, split
from edgemem.cells.padding import real_frames
from edgemem.errors import InputError
from edgemem.module import State, StreamingModule, part, prefixed
from edgemem.state import StateTensor

TAIL_REACH = 3.0  # standard deviations of an embedded frame


def folded(x: Tensor, factor: int) -> Tensor:
    """Frames x [batch, n, width] as sub-tokens [batch, n * factor, width / factor]."""
    return x.reshape(x.shape[0], x.shape[1] * factor, x.shape[2] // factor)


def unfolded(x: Tensor, factor: int) -> Tensor:
    """The inverse of `folded`."""
    return x.reshape(x.shape[0], x.shape[1] // factor, x.shape[2] * factor)


def windows(x: Tensor, size: int, stride: int, count: int) -> Tensor:
    """`count` overlapping cuts of x [batch, time, ...]: [batch * count, size, ...], cut i from row i * stride on."""
    if count == 1:
        return x[:, :size]
    cuts = torch.stack([x[:, i * stride : i * stride + size] for i in range(count)], dim=1)
    return cuts.reshape(x.shape[0] * count, size, *x.shape[2:])


class FoldedAttention(nn.Module):
    """Attention of the sub-tokens of one window, for many windows at once; keys and values of the left are state."""

    def __init__(self, width: int, heads: int, fold: int, segment: int, left: int, right: int, queries: int) -> None:
        """The first `queries` of the `segment + right` rows of a window ask."""
        super().__init__()
        sub = width // fold
        self.heads, self.fold, self.segment, self.left, self.queries = heads, fold, segment, left, queries
        self.rows = left + segment + right  # of a window
        self.query = linear(sub, sub)
        self.key = linear(sub, sub, bias=False)
        self.value = linear(sub, sub)
        self.out = linear(sub, sub)
        self.distance = nn.Parameter(0.1 * torch.randn(heads, self.rows + queries - 1))  # b, the farthest left first
        self.state = tuple(
            StateTensor(name, (left, width), role="cache", low=-CACHE_REACH, high=CACHE_REACH)
            for name in ("keys", "values")
        )

    def forward(self, x: Tensor, visible: Tensor, state: State) -> tuple[Tensor, State]:
        """x [batch * segments, segment + right, width] with the cache of each stream to [batch * segments, queries,
        width]; `visible` [batch * segments, left + segment + right] is true at the rows that may be attended."""
        u = folded(x, self.fold)
        keys, cached_keys = self.with_left(unfolded(self.key(u), self.fold), state["keys"])
        values, cached_values = self.with_left(unfolded(self.value(u), self.fold), state["values"])
        asked = self.query(folded(x[:, : self.queries], self.fold))
        q, k, v = (split(rows, self.heads) for rows in (asked, keys, values))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        y = self.out(merged(self.weights(scores, visible) @ v))
        return unfolded(y, self.fold), {"keys": cached_keys, "values": cached_values}

    def with_left(self, rows: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [batch * segments, segment + right, width] behind those to their left, folded; and the next cache."""
        count = rows.shape[0] // cache.shape[0]
        if count == 1:  # one step: what is attended and what is kept are cuts of one tensor
            known = torch.cat([cache, rows], dim=1)
            return folded(known, self.fold), known[:, self.segment : self.segment + self.left]
        centre = rows[:, : self.segment].reshape(cache.shape[0], count * self.segment, rows.shape[2])
        known = torch.cat([cache, centre], dim=1)
        left = windows(known, self.left, self.segment, count)
        return folded(torch.cat([left, rows], dim=1), self.fold), known[:, count * self.segment :]

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        """Softmax of scores [batch, heads, queries * fold, rows * fold] with the distance bias, 0 where not visible."""
        shape = scores.shape
        bias = torch.where(visible[:, None, None], self.distance_bias(), MASKED)  # of frames, not of sub-tokens
        paired = scores.reshape(shape[0], self.heads, self.queries, self.fold, self.rows, self.fold)
        return torch.softmax((paired + bias[:, :, :, None, :, None]).reshape(shape), dim=-1)

    def distance_bias(self) -> Tensor:
        """[heads, queries, rows], by the distance in frames from query to key."""
        key = torch.arange(self.rows, device=self.distance.device)
        query = torch.arange(self.queries, device=self.distance.device)
        place = key[None, :] - query[:, None] + self.queries - 1
        return self.distance.index_select(1, place.reshape(-1)).reshape(self.heads, self.queries, self.rows)


class FoldedFeedForward(nn.Module):
    """W_2 relu(W_1 u) on each sub-token u of x [batch, n, width]."""

    def __init__(self, width: int, inner: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        self.expand = linear(width // fold, inner // fold)
        self.reduce = linear(inner // fold, width // fold)

    def forward(self, x: Tensor) -> Tensor:
        return unfolded(self.reduce(torch.relu(self.expand(folded(x, self.fold)))), self.fold)


class FoldingLayer(nn.Module):
    """One encoder layer on windows: attention, then feed-forward, each normalised before and added."""

    def __init__(
        self,
        width: int,
        heads: int,
        inner: int,
        fold: int,
        feed_fold: int,
        segment: int,
        left: int,
        right: int,
        last: bool,
    ) -> None:
        """The `last` layer leaves out the right frames, which no other layer asks for."""
        super().__init__()
        self.queries = segment if last else segment + right
        self.attend_norm = nn.LayerNorm(width)
        self.attend = FoldedAttention(width, heads, fold, segment, left, right, self.queries)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = FoldedFeedForward(width, inner, feed_fold)

    def forward(self, x: Tensor, visible: Tensor, state: State) -> tuple[Tensor, State]:
        """As `FoldedAttention.forward`."""
        y, after = self.attend(self.attend_norm(x), visible, part(state, "attend"))
        x = x[:, : self.queries] + y
        return x + self.feed(self.feed_norm(x)), prefixed("attend", after)


class FoldingEncoder(StreamingModule):
    """Embedded frames [batch, time, width] to encoded ones, a segment per step, `right` frames late."""

    unit = "segment"
    causal = False  # the first frame of a centre sees as far right as the last

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        inner: int,
        fold: int,
        segment: int,
        left: int,
        right: int,
        feed_fold: int | None = None,
    ) -> None:
        """`fold` and `heads` together divide `width`; `feed_fold` divides `width` and `inner`; `left` is at least 1.

        `feed_fold` is N of the feed-forward parts where it is not that of attention.
        """
        super().__init__()
        self.segment_length, self.look_ahead, self.left = segment, right, left
        self.layers = nn.ModuleList(
            FoldingLayer(width, heads, inner, fold, feed_fold or fold, segment, left, right, last=index == layers - 1)
            for index in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        tail = StateTensor("tail", (right, width), role="tail", low=-TAIL_REACH, high=TAIL_REACH)
        real = StateTensor("real", (left + right,), role="counter", low=0.0, high=1.0, wide=True)
        self.state = (tail, real) if right else (real,)

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment x [batch, segment, width], of which the first `valid` [batch] frames are real."""
        return self.chunk(x, state, valid)

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Whole segments x [batch, time, width], all at once: row t of the result is of frame t - look_ahead.

        Frames after the first `valid` [batch] are padding; they end the stream, or leave a gap that nothing attends.
        Rows of frames that are not real mean nothing, but are finite.

        Raises:
            InputError: `time` is not a whole number of segments.
        """
        batch, time = x.shape[0], x.shape[1]
        count, rest = divmod(time, self.segment_length)
        if rest or not count:
            raise InputError(
                f"segments of {self.segment_length} frames were wanted, {time} frames came; pad them and pass `valid`"
            )
        now = real_frames(x, torch.full((batch,), time, device=x.device) if valid is None else valid)
        x = torch.where(now[:, :, None], x, 0.0)  # padding may be NaN
        rows = torch.cat([state["tail"], x], dim=1) if self.look_ahead else x
        real = torch.cat([state["real"], now.to(x.dtype)], dim=1)
        size = self.segment_length + self.look_ahead
        visible = windows(real, self.left + size, self.segment_length, count) > 0.5
        after = {"tail": rows[:, time:], "real": real[:, time:]} if self.look_ahead else {"real": real[:, time:]}
        y = windows(rows, size, self.segment_length, count)
        for index, layer in enumerate(self.layers):
            name = f"layers.{index}"
            y, cache = layer(y, visible, part(state, name))
            after.update(prefixed(name, cache))
        return self.norm(y).reshape(batch, time, y.shape[2]), after

    def forward(self, x: Tensor) -> Tensor:
        """The whole sequence x [batch, time, width], any time: all segments side by side, layer by layer."""
        batch, time, width = x.shape
        whole = -(-(time + self.look_ahead) // self.segment_length) * self.segment_length
        padded = torch.cat([x, x.new_zeros(batch, whole - time, width)], dim=1)
        state = {name: tensor.to(x.device) for name, tensor in self.start(batch).items()}
        y, _ = self.chunk(padded, state, torch.full((batch,), time, device=x.device))
        return y[:, self.look_ahead : self.look_ahead + time]
