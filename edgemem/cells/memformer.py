"""Memformer: an external memory of a few slots, read in every encoder layer and rewritten once per segment.

Wu, Lan, Qian, Gu, Geramifard & Yu, "Memformer: A Memory-Augmented Transformer for Sequence Modeling", 2020.

    X [length, width] one segment, M [slots, width] the memory before it, E [length, width] the encoder's output.
    Q, K, V are split into heads of width d; every softmax below is per head.

    layer   X <- X + A(N X)                    self-attention inside the segment
            X <- X + R(N X, M)                 reading: Q = X W_Q, K = M W_K, V = M W_V
            X <- X + W_2 relu(W_1 N X)
    E       N X after the last layer
    write   a_i  = softmax([q_i . k_i, q_i . K_E] / (sqrt(d) tau))         q_i = M_i W_Q, k_i = M_i W_K, K_E = E W_K
            M'_i = a_i [M_i; V_E]                                          V_E = E W_V
    forget  M_i <- (M'_i + v_i) / |M'_i + v_i|                             v [slots, width] learned
    start   M_i  = v_i / |v_i|

A slot attends itself and the segment, never another slot; where it attends only itself it keeps what it holds. The
value it offers to itself is the slot (no projection), so that keeping is the identity.

N is layer normalisation before each part (pre-norm): the gradient through time crosses all layers once per segment,
and an unnormalised residual path carries it without a warm-up. Slots have unit norm, so the projections that read
them start with unit variance, and V_E with rows of about unit norm.

Where the encoder is causal, self-attention is by default Transformer-XL's (`edgemem.cells.attention`): places are
distances, which a language model learns from sooner than from places in the segment. Else X starts with learned places
added.

No key has a bias: it would shift all scores of a query alike and cancel in the softmax.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgemem.cells.attention import MASKED, RelativeAttention, merged, split
from edgemem.cells.feedforward import FeedForward
from edgemem.cells.padding import cleared, real_frames
from edgemem.module import State, StreamingModule, kept
from edgemem.state import StateTensor


def causal_mask(x: Tensor) -> Tensor:
    """[1, 1, length, length] true where a frame of x [batch, length, ...] may look."""
    place = torch.arange(x.shape[1], device=x.device)
    return (place[None, :] <= place[:, None])[None, None]


def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Two masks in one; None masks nothing."""
    if first is None or second is None:
        return first if second is None else second
    return first & second


def weights(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of scores over the last axis, exactly 0 where the mask is false."""
    return torch.softmax(scores if mask is None else torch.where(mask, scores, MASKED), dim=-1)


class Attention(nn.Module):
    """Multi-head attention from x [batch, n, width] to the rows of another tensor [batch, m, width]."""

    def __init__(self, width: int, heads: int, source_norm: float | None = None) -> None:
        """`source_norm`: the norm of a row of what is attended; that of a layer-normalised row if None."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        for projection in (self.key, self.value):
            nn.init.normal_(projection.weight, std=1.0 / (source_norm or math.sqrt(width)))

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [batch or 1, 1, n or 1, m] is true where a row of x may look; the result is [batch, n, width]."""
        q, k, v = (split(u, self.heads) for u in (self.query(x), self.key(source), self.value(source)))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
        y: Tensor = self.out(merged(weights(scores, mask) @ v))
        return y


class EncoderLayer(nn.Module):
    """Self-attention inside the segment, memory reading, feed-forward; each normalised before and added."""

    attend: Attention | RelativeAttention

    def __init__(self, width: int, heads: int, inner: int, relative: bool = False) -> None:
        super().__init__()
        self.attend_norm = nn.LayerNorm(width)
        self.attend = RelativeAttention(width, heads) if relative else Attention(width, heads)
        self.read_norm, self.read = nn.LayerNorm(width), Attention(width, heads, source_norm=1.0)
        self.feed_norm, self.feed = nn.LayerNorm(width), FeedForward(width, inner)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """x [batch, length, width], memory [batch, slots, width]; `mask` as for `Attention`, of the segment."""
        u = self.attend_norm(x)
        x = x + (self.attend(u, u, mask) if isinstance(self.attend, Attention) else self.attend(u, u.shape[1], mask))
        x = x + self.read(self.read_norm(x), memory)
        y: Tensor = x + self.feed(self.feed_norm(x))
        return y


class DecoderLayer(nn.Module):
    """Causal self-attention over the target, attention to the encoder's output, feed-forward; pre-norm."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attend_norm, self.attend = nn.LayerNorm(width), Attention(width, heads)
        self.cross_norm, self.cross = nn.LayerNorm(width), Attention(width, heads)
        self.feed_norm, self.feed = nn.LayerNorm(width), FeedForward(width, inner)

    def forward(self, x: Tensor, encoded: Tensor, real: Tensor | None) -> Tensor:
        """x, encoded [batch, length, width]; `real` [batch, 1, 1, length] is true at the real rows of both."""
        u = self.attend_norm(x)
        x = x + self.attend(u, u, both(causal_mask(u), real))
        x = x + self.cross(self.cross_norm(x), encoded, real)
        y: Tensor = x + self.feed(self.feed_norm(x))
        return y


class SlotWriter(nn.Module):
    """Memory slot attention, then forgetting by biased memory normalisation (write, forget and start above)."""

    def __init__(self, slots: int, width: int, heads: int, temperature: float) -> None:
        super().__init__()
        self.heads, self.temperature = heads, temperature
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.randn(slots, width) / math.sqrt(width))  # v
        nn.init.normal_(self.query.weight, std=1.0)
        nn.init.normal_(self.key.weight, std=1.0 / math.sqrt(width))
        nn.init.normal_(self.value.weight, std=1.0 / width)

    def attention(self, memory: Tensor, encoded: Tensor, real: Tensor | None) -> Tensor:
        """Weights [batch, heads, slots, 1 + length]: each slot's on itself, then on every frame of the segment."""
        q, own, keys = (split(u, self.heads) for u in (self.query(memory), self.key(memory), self.key(encoded)))
        itself = (q * own).sum(dim=3, keepdim=True)
        scores = torch.cat([itself, q @ keys.transpose(2, 3)], dim=3) / (math.sqrt(q.shape[3]) * self.temperature)
        if real is None:
            return weights(scores, None)
        visible = torch.cat([torch.ones_like(real[:, :1]), real], dim=1)
        return weights(scores, visible[:, None, None, :])

    def written(self, memory: Tensor, encoded: Tensor, real: Tensor | None = None) -> Tensor:
        """M' [batch, slots, width], before forgetting."""
        a = self.attention(memory, encoded, real)
        return merged(a[..., :1] * split(memory, self.heads) + a[..., 1:] @ split(self.value(encoded), self.heads))

    def forward(self, memory: Tensor, encoded: Tensor, real: Tensor | None = None) -> Tensor:
        """The next memory [batch, slots, width], from `encoded` [batch, length, width] at its `real` frames."""
        return normalised(self.written(memory, encoded, real) + self.bias)


def normalised(x: Tensor) -> Tensor:
    """Each row of x over its Euclidean norm."""
    return x / torch.sqrt((x * x).sum(dim=-1, keepdim=True))


class MemoryEncoder(StreamingModule):
    """The encoder with its memory: embedded segments in, encoded segments out, one [slots, width] state.

    `looks_back` makes self-attention causal inside the segment; the memory is of earlier segments anyway. Places are
    distances if `relative` (by default where it looks back), else learned ones of the segment.
    """

    unit = "segment"

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        slots: int,
        segment: int,
        inner: int,
        temperature: float,
        looks_back: bool = False,
        relative: bool | None = None,
    ) -> None:
        super().__init__()
        relative = looks_back if relative is None else relative
        self.segment_length, self.looks_back = segment, looks_back
        self.causal = looks_back
        self.positions = None if relative else nn.Parameter(torch.randn(segment, width) / math.sqrt(width))
        self.layers = nn.ModuleList(EncoderLayer(width, heads, inner, relative) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.write = SlotWriter(slots, width, heads, temperature)
        reach = min(1.0, 4.0 / math.sqrt(width))  # components of a unit vector, four standard deviations wide
        self.state = (StateTensor("memory", (slots, width), start="initial_memory", low=-reach, high=reach),)

    @property
    def initial_memory(self) -> Tensor:
        """Start value [slots, width]: the forgetting bias, normalised."""
        return normalised(self.write.bias)

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment x [batch, length <= segment, width], of which the first `valid` [batch] frames are real."""
        memory, real = state["memory"], None if valid is None else real_frames(x, valid)
        x = cleared(x, valid)
        mask = both(causal_mask(x) if self.looks_back else None, None if real is None else real[:, None, None, :])
        if self.positions is not None:
            x = x + self.positions[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, memory, mask)
        encoded: Tensor = self.norm(x)
        after: Tensor = self.write(memory, encoded, real)
        return encoded, {"memory": after if valid is None else kept(valid > 0, after, memory)}
