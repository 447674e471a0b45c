"""Attention whose cache does not grow: a fixed number of earlier tokens, and a rule for which one leaves.

    window   the tokens longest in the cache leave, but for the first ones, the sinks: Xiao et al., "Efficient Streaming
             Language Models with Attention Sinks", ICLR 2024 (StreamingLLM)
    tova     the token with the lowest attention from the current one leaves, averaged over the heads: Oren et al.,
             "Transformers are Multi-State RNNs", EMNLP 2024; the sinks stay, with sinks=0 as published

A token attends to `sinks + window` tokens, itself among them. Rotary positions are places in the cache, not in the
text, as StreamingLLM has it (section 3.2 there): keys are kept unrotated and rotated by their row. So no position lies
beyond those that the model was trained for, and while nothing has left, the model computes what it always did.

    rows     0 .. size - 2 the cache, oldest first, of which the last `seen` are real; size - 1 the current token
    leaves   row 0 while the cache is not full (it is empty); then row `sinks`, or the least attended from there on
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgemem.cells.attention import CACHE_REACH, MASKED
from edgemem.errors import ConfigError
from edgemem.module import State
from edgemem.state import StateTensor

EVICTIONS = ("window", "tova")


@dataclass(frozen=True)
class BoundedSettings:
    """How much of the past attention keeps: see above."""

    window: int = 256
    sinks: int = 4
    eviction: str = "window"

    def __post_init__(self) -> None:
        if self.window < 2 or self.sinks < 0:
            raise ConfigError(f"window must be at least 2 and sinks at least 0, got {self.window} and {self.sinks}")
        if self.eviction not in EVICTIONS:
            raise ConfigError(f"eviction must be one of {', '.join(EVICTIONS)}, got {self.eviction!r}")

    @property
    def size(self) -> int:
        """Tokens that one attends to, itself among them."""
        return self.window + self.sinks

    def check(self, most: int | None, what: str) -> None:
        """Refuse more tokens than a model can attend to.

        Raises:
            ConfigError: with the number that it can.
        """
        if most is not None and self.size > most:
            raise ConfigError(f"window + sinks = {self.size} is more than {what} = {most}; lower it by --set window=")


def cache_states(layer: str, heads: int, width: int, settings: BoundedSettings) -> list[StateTensor]:
    """Keys and values [heads, size - 1, width] of one layer."""
    shape = (heads, settings.size - 1, width)
    return [
        StateTensor(f"{layer}.{name}", shape, role="cache", low=-CACHE_REACH, high=CACHE_REACH)
        for name in ("keys", "values")
    ]


def seen_state(settings: BoundedSettings) -> StateTensor:
    """How many rows of the caches are real: the same in every layer."""
    return StateTensor("seen", (1,), role="counter", low=0.0, high=float(settings.size - 1), wide=True)


def seen_after(seen: Tensor, settings: BoundedSettings) -> Tensor:
    return torch.clamp(seen + 1, max=float(settings.size - 1))


class Rotation:
    """Rotary positions as two tables [places, rotated width]; a head's width beyond that passes as it is."""

    def __init__(self, embedding: Any, places: int) -> None:
        """`embedding` is the model's own, called as it is; nothing is rotated where it is None."""
        self.cos = self.sin = None
        self.embedding = embedding
        if embedding is not None:
            self.cos, self.sin = self.tables(places)

    def tables(self, places: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            cos, sin = self.embedding(torch.zeros(1), torch.arange(places)[None])
        return cos[0], sin[0]

    def __call__(self, x: Tensor, places: slice) -> Tensor:
        """x [..., rows, width] with its rows at these places."""
        if self.cos is None or self.sin is None:
            return x
        return rotated(x, self.cos[places], self.sin[places])

    def undone(self, x: Tensor) -> Tensor:
        """x [..., rows, width], rotated by its rows from 0 on, as it was before."""
        if self.embedding is None:
            return x
        cos, sin = self.tables(x.shape[-2])
        return rotated(x, cos, -sin, scale=1.0 / (cos**2 + sin**2)[..., :1])


def rotated(x: Tensor, cos: Tensor, sin: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Pairs (i, i + half) of the first `cos.shape[-1]` elements turned by their angle."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    half = width // 2
    quarter = torch.cat([-turned[..., half:], turned[..., :half]], dim=-1)
    y = (turned * cos + quarter * sin) * scale
    return y if rest.shape[-1] == 0 else torch.cat([y, rest], dim=-1)


def attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: State,
    seen: Tensor,
    settings: BoundedSettings,
    rotation: Rotation,
    scale: float,
) -> tuple[Tensor, State]:
    """One token through attention: query [batch, heads, width], key and value [batch, key heads, width].

    Gives [batch, heads * width] and the cache after it. `seen` [batch, 1] counts its real rows before it.
    """
    size, batch = settings.size, query.shape[0]
    keys = torch.cat([state["keys"], key[:, :, None]], dim=2)  # [batch, key heads, size, width]
    values = torch.cat([state["values"], value[:, :, None]], dim=2)
    grouped = query.reshape(batch, key.shape[1], -1, query.shape[2])  # [batch, key heads, heads of each, width]
    turned = rotation(grouped, slice(size - 1, size))  # the row of the current token, for every head
    scores = turned @ rotation(keys, slice(0, size)).transpose(2, 3) * scale
    row = torch.arange(size)
    real = row >= size - 1 - seen  # [batch, size]
    weights = torch.softmax(torch.where(real[:, None, None], scores, MASKED), dim=3)
    y = (weights @ values).reshape(batch, -1)
    leaves = leaving(weights, seen, settings)
    return y, {"keys": without(keys, leaves), "values": without(values, leaves)}


def leaving(weights: Tensor, seen: Tensor, settings: BoundedSettings) -> Tensor:
    """The row [batch, 1] that leaves, by attention weights [batch, key heads, heads of each, size]."""
    if settings.eviction == "tova":
        least = weights.mean(dim=(1, 2))[:, settings.sinks :].argmin(dim=1, keepdim=True) + settings.sinks
    else:
        least = torch.full_like(seen, settings.sinks, dtype=torch.int64)
    return torch.where(seen < settings.size - 1, torch.zeros_like(least), least)


def without(rows: Tensor, place: Tensor) -> Tensor:
    """rows [batch, heads, size, width] without the one at `place` [batch, 1]."""
    before = torch.arange(rows.shape[2] - 1) < place  # [batch, size - 1]
    return torch.where(before[:, None, :, None], rows[:, :, :-1], rows[:, :, 1:])


def windowed(
    query: Tensor, key: Tensor, value: Tensor, settings: BoundedSettings, rotation: Rotation, scale: float
) -> Tensor:
    """All tokens at once, under `window`: query [batch, time, heads, width], key and value with their heads.

    A token at time t meets recent keys at their own distance, and the sinks at the distance that they have in the
    cache: as if it stood at place min(t, size - 1).
    """
    batch, time, heads, width = query.shape
    q, k, v = (u.transpose(1, 2) for u in (query, key, value))
    place, last = torch.arange(time), settings.size - 1
    if rotation.embedding is not None:
        cos, sin = rotation.tables(time)
        near = place.clamp(max=last)
        q_far, q, k = rotated(q, cos[near], sin[near]), rotated(q, cos, sin), rotated(k, cos, sin)
    else:
        q_far = q
    k, v = (u.repeat_interleave(heads // key.shape[2], dim=1) for u in (k, v))
    sink = place[None, :] < settings.sinks
    scores = torch.where(sink, q_far @ k.transpose(2, 3), q @ k.transpose(2, 3)) * scale
    age = place[:, None] - place[None, :]
    # as long as nothing has left, all is visible
    visible = (age >= 0) & (sink | (age < settings.window) | (place[:, None] <= last))
    weights = torch.softmax(torch.where(visible, scores, -torch.inf), dim=3)
    return (weights @ v).transpose(1, 2).reshape(batch, time, heads * width)


def recalled(
    query: Tensor, key: Tensor, value: Tensor, settings: BoundedSettings, rotation: Rotation, scale: float
) -> Tensor:
    """Token by token with a list of what is kept, under `tova`; shapes as in `windowed`."""
    batch, time, heads, width = query.shape
    group = heads // key.shape[2]
    y = torch.zeros(batch, time, heads * width)
    for stream in range(batch):
        kept: list[int] = []
        for now in range(time):
            kept.append(now)
            places = slice(0, len(kept))
            k = rotation(key[stream, kept].transpose(0, 1), places).repeat_interleave(group, dim=0)
            v = value[stream, kept].transpose(0, 1).repeat_interleave(group, dim=0)
            q = rotation(query[stream, now][:, None], slice(len(kept) - 1, len(kept)))
            weights = torch.softmax((q @ k.transpose(1, 2))[:, 0] * scale, dim=1)  # [heads, kept]
            y[stream, now] = torch.einsum("hk,hkw->hw", weights, v).flatten()
            if len(kept) == settings.size:
                kept.pop(settings.sinks + int(weights.mean(dim=0)[settings.sinks :].argmin()))
    return y
