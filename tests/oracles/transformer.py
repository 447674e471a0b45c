"""A causal Transformer (Vaswani et al. 2017) with linear distance biases (Press et al. 2022), frame by frame.

y_t = W_o sum_{t-C <= j <= t} softmax_j(q_t . k_j / sqrt(d) - m_h (t - j)) v_j
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, layer_norm, linear, relu, softmax, sub


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Logits [batch, time, vocab] of tokens x [batch, time]."""
    return np.stack([one_stream(parameters, config, tokens) for tokens in x])


def one_stream(parameters: Parameters, config: Any, tokens: np.ndarray) -> np.ndarray:
    rows = [parameters["embed.weight"][token] for token in tokens]
    for index in range(config.layers):
        layer = sub(parameters, f"layers.{index}")
        normed = [norm(layer, "attend_norm", x) for x in rows]
        rows = [x + attended(sub(layer, "attend"), config, normed, t) for t, x in enumerate(rows)]
        rows = [x + feed_forward(sub(layer, "feed"), norm(layer, "feed_norm", x)) for x in rows]
    return np.stack([linear(sub(parameters, "head"), norm(parameters, "norm", x)) for x in rows])


def norm(part: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return layer_norm(x, part[f"{name}.weight"], part[f"{name}.bias"])


def attended(part: Parameters, config: Any, rows: list[np.ndarray], t: int) -> np.ndarray:
    """What frame t gathers from the `context` frames before it and from itself."""
    seen = range(max(0, t - config.context), t + 1)
    query = np.split(linear(sub(part, "query"), rows[t]), config.heads)
    gathered = []
    for head in range(config.heads):
        keys = [np.split(linear(sub(part, "key"), rows[j]), config.heads)[head] for j in seen]
        values = [np.split(linear(sub(part, "value"), rows[j]), config.heads)[head] for j in seen]
        scores = [
            float(query[head] @ key) / np.sqrt(key.size) - part["slope"][head] * (t - j)
            for j, key in zip(seen, keys, strict=True)
        ]
        gathered.append(sum(w * value for w, value in zip(softmax(scores), values, strict=True)))
    return linear(sub(part, "out"), np.concatenate(gathered))


def feed_forward(part: Parameters, x: np.ndarray) -> np.ndarray:
    return linear(sub(part, "reduce"), relu(linear(sub(part, "expand"), x)))
