"""Memformer (Wu et al. 2020), frame by frame and slot by slot: memory reading, slot attention, forgetting.

read     each frame of every encoder layer attends all slots: Q = x W_Q, K = M W_K, V = M W_V
write    slot i attends itself and the encoded frames: softmax([q_i k_i, q_i K_x] / (sqrt(d) tau)) [M_i; V_x]
forget   M_i = (M'_i + v_i) / |M'_i + v_i|,  from v_i / |v_i| on
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles import transformer_xl
from tests.oracles.common import Parameters, layer_norm, linear, relu, softmax, sub

Vectors = list[np.ndarray]


def run(parameters: Parameters, config: Any, x: Any) -> np.ndarray:
    """Rows [batch, time, width] or logits [batch, time, vocab] of x [batch, time, features], of tokens [batch, time],
    or, for the encoder-decoder, of tokens by the names `source` and `target`."""
    if isinstance(x, dict):
        pairs = zip(x["source"], x["target"], strict=True)
        return np.stack([translated(parameters, config, source, target) for source, target in pairs])
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    """The encoder alone; the language model, whose configuration has no `features`, looks back only."""
    bidirectional = hasattr(config, "features")
    memory, rows = first_memory(parameters), []
    for begin in range(0, len(frames), config.segment):
        segment = [embedded(parameters, "embed", config, x) for x in frames[begin : begin + config.segment]]
        encoded, memory = encode(sub(parameters, "encoder"), config, segment, memory, bidirectional)
        rows += encoded
    return np.stack([linear(sub(parameters, "head"), y) for y in rows] if config.vocab else rows)


def translated(parameters: Parameters, config: Any, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The encoder-decoder: each segment of the target is decoded from the same segment of the source."""
    memory, rows = first_memory(parameters), []
    for begin in range(0, len(source), config.segment):
        here = slice(begin, begin + config.segment)
        segment = [embedded(parameters, "embed", config, x) for x in source[here]]
        encoded, memory = encode(sub(parameters, "encoder"), config, segment, memory, bidirectional=True)
        rows += decode(parameters, config, target[here], encoded)
    return np.stack([linear(sub(parameters, "head"), y) for y in rows])


def first_memory(parameters: Parameters) -> Vectors:
    return [unit(v) for v in parameters["encoder.write.bias"]]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).sum())


def embedded(parameters: Parameters, name: str, config: Any, x: np.ndarray) -> np.ndarray:
    """A token's vector, or a projected frame of features."""
    table = parameters[f"{name}.weight"]
    vector: np.ndarray = table[int(x)] if config.vocab else table @ x
    return vector


def norm(part: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return layer_norm(x, part[f"{name}.weight"], part[f"{name}.bias"])


def encode(
    part: Parameters, config: Any, segment: Vectors, memory: Vectors, bidirectional: bool
) -> tuple[Vectors, Vectors]:
    """The encoded frames of one segment, and the memory after it. Places are learned, or else distances."""
    placed = "positions" in part
    rows = [x + part["positions"][place] for place, x in enumerate(segment)] if placed else segment
    for i in range(config.layers):
        layer = sub(part, f"layers.{i}")
        normed = [norm(layer, "attend_norm", x) for x in rows]
        if placed:
            seen = [normed if bidirectional else normed[: t + 1] for t in range(len(rows))]
            rows = [x + attended(sub(layer, "attend"), config.heads, normed[t], seen[t]) for t, x in enumerate(rows)]
        else:
            rows = [x + transformer_xl.attended(sub(layer, "attend"), config, normed, t) for t, x in enumerate(rows)]
        rows = [x + attended(sub(layer, "read"), config.heads, norm(layer, "read_norm", x), memory) for x in rows]
        rows = [x + feed_forward(sub(layer, "feed"), norm(layer, "feed_norm", x)) for x in rows]
    encoded = [norm(part, "norm", x) for x in rows]
    return encoded, [remembered(sub(part, "write"), config, i, slot, encoded) for i, slot in enumerate(memory)]


def decode(parameters: Parameters, config: Any, tokens: np.ndarray, encoded: Vectors) -> Vectors:
    """Decoded rows of one segment of the target."""
    places = parameters["target_positions"]
    rows = [embedded(parameters, "target_embed", config, x) + places[place] for place, x in enumerate(tokens)]
    for i in range(config.layers):
        layer = sub(parameters, f"decoder.{i}")
        normed = [norm(layer, "attend_norm", x) for x in rows]
        rows = [
            x + attended(sub(layer, "attend"), config.heads, normed[t], normed[: t + 1]) for t, x in enumerate(rows)
        ]
        rows = [x + attended(sub(layer, "cross"), config.heads, norm(layer, "cross_norm", x), encoded) for x in rows]
        rows = [x + feed_forward(sub(layer, "feed"), norm(layer, "feed_norm", x)) for x in rows]
    return [norm(parameters, "norm", x) for x in rows]


def attended(part: Parameters, heads: int, x: np.ndarray, source: Vectors) -> np.ndarray:
    """What one row x gathers from the rows of `source`, by several heads."""
    query = np.split(linear(sub(part, "query"), x), heads)
    keys = [np.split(linear(sub(part, "key"), row), heads) for row in source]
    values = [np.split(linear(sub(part, "value"), row), heads) for row in source]
    gathered = []
    for head in range(heads):
        weights = softmax([float(query[head] @ key[head]) / np.sqrt(key[head].size) for key in keys])
        gathered.append(sum(weight * value[head] for weight, value in zip(weights, values, strict=True)))
    return linear(sub(part, "out"), np.concatenate(gathered))


def feed_forward(part: Parameters, x: np.ndarray) -> np.ndarray:
    return linear(sub(part, "reduce"), relu(linear(sub(part, "expand"), x)))


def remembered(part: Parameters, config: Any, index: int, slot: np.ndarray, encoded: Vectors) -> np.ndarray:
    """Slot `index` after the segment: written by the attention to itself and the frames, then forgotten a little."""
    query = np.split(linear(sub(part, "query"), slot), config.heads)
    written = []
    for head in range(config.heads):
        scale = np.sqrt(query[head].size) * config.temperature
        keys = [np.split(linear(sub(part, "key"), row), config.heads)[head] for row in [slot, *encoded]]
        values = [np.split(linear(sub(part, "value"), row), config.heads)[head] for row in encoded]
        values = [np.split(slot, config.heads)[head], *values]
        weights = softmax([float(query[head] @ key) / scale for key in keys])
        written.append(sum(weight * value for weight, value in zip(weights, values, strict=True)))
    return unit(np.concatenate(written) + part["bias"][index])
