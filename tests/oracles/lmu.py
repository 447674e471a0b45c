"""Legendre Memory Unit networks, step by step (Voelker et al. 2019; the parallel layer of Liu et al. 2024).

The delay system is held exactly over one step: Ad = e^{A/theta}, Bd = A^{-1} (Ad - I) B (A is invertible).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, linear, relu, sub


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """y [batch, time, outputs] of x [batch, time, features]."""
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    rows = frames
    for i in range(config.layers):
        layer = sub(parameters, f"layers.{i}")
        if config.parallel:
            rows = feed_forward_lmu(layer, config.order, config.window, config.channels, rows)
        else:
            rows = recurrent_lmu(layer, config.order, config.window, rows)
    return np.stack([linear(sub(parameters, "head"), row) for row in rows])


def recurrent_lmu(part: Parameters, order: int, window: float, rows: np.ndarray) -> np.ndarray:
    """h_t = tanh(Wx x_t + Wh h_{t-1} + Wm m_t), u_t = ex . x_t + eh . h_{t-1} + em . m_{t-1}."""
    a, b = held(order, window)
    h, m, outputs = np.zeros(part["hidden_kernel"].shape[0]), np.zeros(order), []
    for x in rows:
        u = dot(part["input_encoder"], x) + dot(part["hidden_encoder"], h) + dot(part["memory_encoder"], m)
        m = a @ m + b * u
        h = np.tanh(part["input_kernel"] @ x + part["hidden_kernel"] @ h + part["memory_kernel"] @ m)
        outputs.append(h)
    return np.stack(outputs)


def feed_forward_lmu(part: Parameters, order: int, window: float, channels: int, rows: np.ndarray) -> np.ndarray:
    """u = relu(Wu x + bu), one memory for each of its channels; h = relu(Wh [m; x] + bh)."""
    a, b = held(order, window)
    m, outputs = np.zeros((channels, order)), []
    for x in rows:
        u = relu(linear(sub(part, "encode"), x))
        for c in range(channels):
            m[c] = a @ m[c] + b * u[c]
        outputs.append(relu(linear(sub(part, "mix"), np.concatenate([m.reshape(-1), x]))))
    return np.stack(outputs)


def dot(weights: np.ndarray, x: np.ndarray) -> float:
    return float(weights.reshape(-1) @ x)


def held(order: int, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Ad [order, order], Bd [order] for a window of theta steps."""
    a, b = np.zeros((order, order)), np.zeros(order)
    for i in range(order):
        b[i] = (2 * i + 1) * (-1.0) ** i
        for j in range(order):
            a[i, j] = (2 * i + 1) * (-1.0 if i < j else (-1.0) ** (i - j + 1))
    held_a = exponential(a / window)
    return held_a, np.linalg.solve(a, (held_a - np.eye(order)) @ b)


def exponential(a: np.ndarray) -> np.ndarray:
    """e^a by its series, on a matrix halved until it is small, then squared back."""
    halvings = 0
    while np.abs(a).sum() > 0.5:
        a, halvings = a / 2.0, halvings + 1
    total, term = np.eye(len(a)), np.eye(len(a))
    for n in range(1, 25):
        term = term @ a / n
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total
