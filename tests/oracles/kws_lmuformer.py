"""The causal LMUFormer keyword spotter, row by row (Liu et al. 2024, with causal convolutions and layer norms)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, layer_norm, linear, relu, sub
from tests.oracles.lmu import feed_forward_lmu


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Averaged logits [batch, time, labels] of x [batch, time, features]."""
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    rows = np.stack([(x - parameters["center"]) * parameters["scale"] for x in frames])
    for i in range(config.convolutions):
        rows = convolution(sub(parameters, f"embed.{i}"), config.kernel, rows)
        rows = np.stack([relu(norm(sub(parameters, f"embed_norms.{i}"), x)) for x in rows])
    for i in range(config.layers):
        rows = block(sub(parameters, f"blocks.{i}"), config, rows)
    scores = [linear(sub(parameters, "head"), norm(sub(parameters, "norm"), x)) for x in rows]
    return np.stack([average(scores[: t + 1], config.forget) for t in range(len(scores))])


def norm(part: Parameters, x: np.ndarray) -> np.ndarray:
    return layer_norm(x, part["weight"], part["bias"])


def block(part: Parameters, config: Any, rows: np.ndarray) -> np.ndarray:
    """The memory, then the channel mixer, each on a residual path."""
    normed = np.stack([norm(sub(part, "memory_norm"), x) for x in rows])
    rows = rows + feed_forward_lmu(sub(part, "lmu"), config.order, config.window, config.channels, normed)
    wide = np.stack([linear(sub(part, "mixer.up"), norm(sub(part, "mixer_norm"), x)) for x in rows])
    wide = depthwise(sub(part, "mixer.conv"), config.kernel, wide)
    return rows + np.stack([linear(sub(part, "mixer.down"), relu(x)) for x in wide])


def tap(rows: np.ndarray, t: int, j: int, kernel: int) -> np.ndarray:
    """The row that tap j of a causal kernel sees at time t; zeros before the stream. The last tap sees t."""
    place = t - (kernel - 1 - j)
    return rows[place] if place >= 0 else np.zeros(rows.shape[1])


def convolution(part: Parameters, kernel: int, rows: np.ndarray) -> np.ndarray:
    """Causal convolution: weight [outputs, kernel * inputs], the oldest tap first."""
    inputs, outputs = rows.shape[1], []
    for t in range(len(rows)):
        y = part["bias"].copy()
        for j in range(kernel):
            y += part["weight"][:, j * inputs : (j + 1) * inputs] @ tap(rows, t, j, kernel)
        outputs.append(y)
    return np.stack(outputs)


def depthwise(part: Parameters, kernel: int, rows: np.ndarray) -> np.ndarray:
    """The same with one input for each output: weight [channels, kernel]."""
    outputs = []
    for t in range(len(rows)):
        y = part["bias"].copy()
        for j in range(kernel):
            y += part["weight"][:, j] * tap(rows, t, j, kernel)
        outputs.append(y)
    return np.stack(outputs)


def average(scores: list[np.ndarray], forget: float) -> np.ndarray:
    """The mean of all scores so far, one `age` rows old counting forget^age."""
    top, bottom = np.zeros_like(scores[0]), 0.0
    for i, score in enumerate(scores):
        age = len(scores) - 1 - i
        top, bottom = top + forget**age * score, bottom + forget**age
    return top / bottom
