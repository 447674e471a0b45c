"""The gated recurrent keyword spotter, row by row (Cho et al. 2014, reset gate after the recurrent product)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, linear, sigmoid, sub
from tests.oracles.kws_lmuformer import average


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Averaged logits [batch, time, labels] of x [batch, time, features]."""
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    rows = [(x - parameters["center"]) * parameters["scale"] for x in frames]
    for i in range(config.layers):
        hidden, outputs = np.zeros(config.width), []
        for x in rows:
            hidden = unit(sub(parameters, f"layers.{i}.gru"), x, hidden)
            outputs.append(hidden)
        rows = outputs
    scores = [linear(sub(parameters, "head"), x) for x in rows]
    return np.stack([average(scores[: t + 1], config.forget) for t in range(len(scores))])


def unit(part: Parameters, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """One step; the rows of each weight are those of the reset, the update and the new gate."""
    from_x = np.split(part["weight_ih_l0"] @ x + part["bias_ih_l0"], 3)
    from_h = np.split(part["weight_hh_l0"] @ hidden + part["bias_hh_l0"], 3)
    reset, update = (sigmoid(from_x[g] + from_h[g]) for g in (0, 1))
    new = np.tanh(from_x[2] + reset * from_h[2])
    return (1.0 - update) * new + update * hidden
