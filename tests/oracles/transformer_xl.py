"""Transformer-XL (Dai et al. 2019), row by row: every layer keeps its last inputs, places are distances.

A_ij = ((q_i + u) . k_j + (q_i + w) . W_r R_(i - j)) / sqrt(d)
R_n  = sines, then cosines, of n / 10000^(c / columns)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, linear, softmax, sub
from tests.oracles.transformer import feed_forward, norm


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Logits [batch, time, vocab] of tokens x [batch, time]."""
    return np.stack([one_stream(parameters, config, tokens) for tokens in x])


def one_stream(parameters: Parameters, config: Any, tokens: np.ndarray) -> np.ndarray:
    part = sub(parameters, "encoder")
    memories: list[list[np.ndarray]] = [[] for _ in range(config.layers)]
    logits = []
    for begin in range(0, len(tokens), config.segment):
        rows = [parameters["embed.weight"][token] for token in tokens[begin : begin + config.segment]]
        for index in range(config.layers):
            known = memories[index] + rows
            rows = encoded(sub(part, f"layers.{index}"), config, known, len(memories[index]))
            memories[index] = known[-config.memory :]
        logits += [linear(sub(parameters, "head"), norm(part, "norm", x)) for x in rows]
    return np.stack(logits)


def encoded(layer: Parameters, config: Any, known: list[np.ndarray], old: int) -> list[np.ndarray]:
    """One layer on the rows of `known` from `old` on; the ones before are its memory."""
    normed = [norm(layer, "attend_norm", x) for x in known]
    rows = [known[i] + attended(sub(layer, "attend"), config, normed, i) for i in range(old, len(known))]
    return [x + feed_forward(sub(layer, "feed"), norm(layer, "feed_norm", x)) for x in rows]


def attended(part: Parameters, config: Any, rows: list[np.ndarray], i: int) -> np.ndarray:
    """What row i gathers from the rows up to itself."""
    query = np.split(part["query.weight"] @ rows[i], config.heads)
    gathered = []
    for head in range(config.heads):
        by_content = query[head] + part["content_bias"][head, 0]
        by_place = query[head] + part["place_bias"][head, 0]
        scores, values = [], []
        for j in range(i + 1):
            key = np.split(part["key.weight"] @ rows[j], config.heads)[head]
            place = np.split(part["distance.weight"] @ sinusoid(i - j, config.width), config.heads)[head]
            scores.append(float(by_content @ key + by_place @ place) / np.sqrt(key.size))
            values.append(np.split(linear(sub(part, "value"), rows[j]), config.heads)[head])
        gathered.append(sum(w * value for w, value in zip(softmax(scores), values, strict=True)))
    return linear(sub(part, "out"), np.concatenate(gathered))


def sinusoid(distance: int, width: int) -> np.ndarray:
    columns = (width + 1) // 2
    angle = distance / 10_000.0 ** (np.arange(columns) / columns)
    return np.concatenate([np.sin(angle), np.cos(angle)])[:width]
