"""A streaming encoder with folding attention, frame by frame and sub-token by sub-token (Li et al. 2023).

Segment j asks for the frames j C - R .. j C - R + C - 1, with the R frames behind them as right context: that is what
is known when j C + C frames have come. Keys and values of earlier frames are those that were made when the frames
were at the centre of a segment.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, layer_norm, linear, relu, softmax, sub

Rows = dict[int, np.ndarray]  # by frame


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Rows [batch, time, width], or logits [batch, time, vocab], of x [batch, time, features]."""
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    if "center" in parameters:
        frames = np.stack([(x - parameters["center"]) * parameters["scale"] for x in frames])
    embedded = [linear(sub(parameters, "embed"), x) for x in frames]
    layers = [sub(parameters, f"encoder.layers.{i}") for i in range(config.layers)]
    caches: list[Cache] = [Cache() for _ in layers]
    outputs: Rows = {}
    first = -config.look_ahead
    while first < len(frames):
        centre = [t for t in range(first, first + config.segment) if 0 <= t < len(frames)]
        right = range(first + config.segment, first + config.segment + config.look_ahead)
        rows = {t: embedded[t] for t in [*centre, *right] if 0 <= t < len(frames)}
        for i, layer in enumerate(layers):
            asked = centre if i == len(layers) - 1 else list(rows)
            rows = encoder_layer(layer, config, rows, asked, first, caches[i])
            caches[i].keep(centre)
        outputs.update({t: rows[t] for t in centre})
        first += config.segment
    normed = [norm(sub(parameters, "encoder.norm"), outputs[t]) for t in range(len(frames))]
    return np.stack([linear(sub(parameters, "head"), y) for y in normed] if config.vocab else normed)


class Cache:
    """Keys and values of one layer: those of centre frames for good, those of the segment at hand."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
        self.now: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}

    def keep(self, centre: list[int]) -> None:
        self.kept.update({t: self.now[t] for t in centre})
        self.now = {}


def encoder_layer(part: Parameters, config: Any, rows: Rows, asked: list[int], first: int, cache: Cache) -> Rows:
    """The rows of the frames `asked`, of a segment whose centre starts at frame `first`."""
    attend, feed = sub(part, "attend"), sub(part, "feed")
    normed = {t: norm(sub(part, "attend_norm"), x) for t, x in rows.items()}
    for t, x in normed.items():
        tokens = np.split(x, config.fold)
        cache.now[t] = (
            [linear(sub(attend, "key"), u) for u in tokens],
            [linear(sub(attend, "value"), u) for u in tokens],
        )
    seen = {t: cache.kept[t] for t in range(first - config.left, first) if t in cache.kept} | cache.now
    after = {}
    for t in asked:
        y = rows[t] + np.concatenate([attention(attend, config, t, u, seen) for u in np.split(normed[t], config.fold)])
        tokens = np.split(norm(sub(part, "feed_norm"), y), getattr(config, "ffn_fold", 0) or config.fold)
        inner = [relu(linear(sub(feed, "expand"), u)) for u in tokens]
        after[t] = y + np.concatenate([linear(sub(feed, "reduce"), u) for u in inner])
    return after


def attention(
    part: Parameters,
    config: Any,
    frame: int,
    u: np.ndarray,
    seen: dict[int, tuple[list[np.ndarray], list[np.ndarray]]],
) -> np.ndarray:
    """What one sub-token u of `frame` gathers from all sub-tokens of the frames that are `seen`."""
    query = np.split(linear(sub(part, "query"), u), config.heads)
    gathered = []
    for head in range(config.heads):
        scores, values = [], []
        for other, (keys, vectors) in seen.items():
            for key, vector in zip(keys, vectors, strict=True):
                k, v = np.split(key, config.heads)[head], np.split(vector, config.heads)[head]
                scores.append(query[head] @ k / np.sqrt(k.size) + bias(part, config, head, other - frame))
                values.append(v)
        gathered.append(sum(w * v for w, v in zip(softmax(scores), values, strict=True)))
    return linear(sub(part, "out"), np.concatenate(gathered))


def bias(part: Parameters, config: Any, head: int, distance: int) -> float:
    """The learned bias of a distance in frames; the table runs from the farthest left to the farthest right."""
    table = part["distance"][head]
    farthest_right = config.segment + config.look_ahead - 1
    return float(table[len(table) - 1 - (farthest_right - distance)])


def norm(part: Parameters, x: np.ndarray) -> np.ndarray:
    return layer_norm(x, part["weight"], part["bias"])
