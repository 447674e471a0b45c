"""RWKV-4 (Peng et al. 2023, equations 11 to 18), token by token, wkv as the sum over all earlier tokens.

wkv_t = (sum_{i<t} e^{-(t-1-i) w + k_i} v_i + e^{u+k_t} v_t) / (the same without v)     w = e^{time_decay}
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.oracles.common import Parameters, layer_norm, relu, sigmoid, sub


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Logits [batch, time, vocab] of tokens x [batch, time]."""
    return np.stack([one_stream(parameters, config, tokens) for tokens in x])


def one_stream(parameters: Parameters, config: Any, tokens: np.ndarray) -> np.ndarray:
    table = parameters["emb.weight"]
    head = parameters.get("head.weight", table)
    blocks = [sub(parameters, f"blocks.{i}") for i in range(config.layers)]
    zero = np.zeros(config.width)
    before_att = [zero] * config.layers  # what time mixing saw of the token before
    before_ffn = [zero] * config.layers
    history: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(config.layers)]  # (k, v) of each token
    rows = []
    for token in tokens:
        h = norm(blocks[0], "ln0", table[token])
        for i, block in enumerate(blocks):
            u = norm(block, "ln1", h)
            h = h + time_mixing(sub(block, "att"), u, before_att[i], history[i])
            before_att[i] = u
            u = norm(block, "ln2", h)
            h = h + channel_mixing(sub(block, "ffn"), u, before_ffn[i])
            before_ffn[i] = u
        rows.append(head @ norm(parameters, "ln_out", h))
    return np.stack(rows)


def norm(parameters: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return layer_norm(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def mixed(part: Parameters, name: str, x: np.ndarray, before: np.ndarray) -> np.ndarray:
    """This token and the one before, in shares that each channel has learned."""
    share = part[f"time_mix_{name}"].reshape(-1)
    return share * x + (1.0 - share) * before


def time_mixing(
    part: Parameters, x: np.ndarray, before: np.ndarray, history: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    r = sigmoid(part["receptance.weight"] @ mixed(part, "r", x, before))
    k = part["key.weight"] @ mixed(part, "k", x, before)
    v = part["value.weight"] @ mixed(part, "v", x, before)
    decay, bonus = np.exp(part["time_decay"]).reshape(-1), part["time_first"].reshape(-1)
    top, bottom = np.exp(bonus + k) * v, np.exp(bonus + k)
    for i, (old_k, old_v) in enumerate(history):
        age = len(history) - 1 - i
        top = top + np.exp(-age * decay + old_k) * old_v
        bottom = bottom + np.exp(-age * decay + old_k)
    history.append((k, v))
    return part["output.weight"] @ (r * top / bottom)


def channel_mixing(part: Parameters, x: np.ndarray, before: np.ndarray) -> np.ndarray:
    r = sigmoid(part["receptance.weight"] @ mixed(part, "r", x, before))
    k = part["key.weight"] @ mixed(part, "k", x, before)
    return r * (part["value.weight"] @ relu(k) ** 2)
