"""The spiking LMUFormer keyword spotter, row by row and neuron by neuron (Liu et al. 2024, causal)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, linear, sub
from tests.oracles.kws_lmuformer import average, convolution, depthwise
from tests.oracles.lmu import held


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Averaged logits [batch, time, labels] of x [batch, time, features]."""
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    rows = np.stack([(x - parameters["center"]) * parameters["scale"] for x in frames])
    for i in range(config.convolutions):
        currents = convolution(sub(parameters, f"embed.{i}"), config.kernel, rows)
        rows = spikes(sub(parameters, f"embed_neurons.{i}"), config.decay, currents)
    for i in range(config.layers):
        rows = block(sub(parameters, f"blocks.{i}"), config, rows)
    scores = [linear(sub(parameters, "head"), x) for x in rows]
    return np.stack([average(scores[: t + 1], config.forget) for t in range(len(scores))])


def spikes(part: Parameters, decay: float, currents: np.ndarray) -> np.ndarray:
    """One neuron per column of currents [time, width], each on its own."""
    norm, fired = sub(part, "norm"), np.zeros_like(currents)
    deviation = np.sqrt(norm["variance"] + 1e-5)
    for neuron in range(currents.shape[1]):
        potential = 0.0
        for t in range(len(currents)):
            centred = (currents[t, neuron] - norm["mean"][neuron]) / deviation[neuron]
            potential = decay * potential + norm["gain"][neuron] * centred + norm["bias"][neuron]
            if potential >= 1.0:
                fired[t, neuron], potential = 1.0, 0.0
    return fired


def block(part: Parameters, config: Any, rows: np.ndarray) -> np.ndarray:
    """The memory, then the channel mixer; both add their spikes to what came in."""
    lmu, mixer = sub(part, "lmu"), sub(part, "mixer")
    u = spikes(sub(lmu, "encode_neurons"), config.decay, each(sub(lmu, "encode"), rows))
    both = np.concatenate([memory(config, u), rows], axis=1)
    rows = rows + spikes(sub(lmu, "mix_neurons"), config.decay, each(sub(lmu, "mix"), both))
    wide = spikes(sub(mixer, "up_neurons"), config.decay, each(sub(mixer, "up"), rows))
    wide = depthwise(sub(mixer, "conv"), config.kernel, wide)
    wide = spikes(sub(mixer, "conv_neurons"), config.decay, wide)
    return rows + spikes(sub(mixer, "down_neurons"), config.decay, each(sub(mixer, "down"), wide))


def each(part: Parameters, rows: np.ndarray) -> np.ndarray:
    return np.stack([linear(part, x) for x in rows])


def memory(config: Any, u: np.ndarray) -> np.ndarray:
    """Legendre coefficients [time, channels * order] of spikes u [time, channels]."""
    a, b = held(config.order, config.window)
    m, rows = np.zeros((u.shape[1], config.order)), []
    for now in u:
        m = np.stack([a @ m[c] + b * now[c] for c in range(u.shape[1])])
        rows.append(m.reshape(-1))
    return np.stack(rows)
