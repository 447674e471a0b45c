"""Memory probes, frame by frame: an embedding, the family's body (from its own oracle), a head.

block    x <- x + cell(N x), x <- x + W2 relu(W1 N x)        around a Legendre memory or a gated recurrent unit
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.oracles import folding, memformer, rwkv4
from tests.oracles.common import Parameters, layer_norm, linear, relu, sigmoid, sub
from tests.oracles.lmu import feed_forward_lmu

Rows = list[np.ndarray]
SPANS = {"recall": 48, "copy": 72, "delay": 128, "mackey-glass": 48, "narma": 12, "digits": 64, "digits-permuted": 64}


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """y [batch, time, outputs] of symbols [batch, time] or numbers [batch, time, 1]."""
    return np.stack([one_stream(parameters, config, frames) for frames in x])


def one_stream(parameters: Parameters, config: Any, frames: np.ndarray) -> np.ndarray:
    embed, body = sub(parameters, "embed"), sub(parameters, "body")
    rows = [embed["weight"][int(x)] if frames.ndim == 1 else linear(embed, x) for x in frames]
    if hasattr(config, "slots"):
        rows = with_slots(body, config, rows)
    elif hasattr(config, "fold"):
        rows = sliding(body, config, rows)
    else:
        for i in range(config.layers):
            rows = block(sub(body, f"blocks.{i}"), config, rows)
        rows = [norm(body, "norm", x) for x in rows]
    return np.stack([linear(sub(parameters, "head"), x) for x in rows])


def norm(part: Parameters, name: str, x: np.ndarray) -> np.ndarray:
    return layer_norm(x, part[f"{name}.weight"], part[f"{name}.bias"])


def block(part: Parameters, config: Any, rows: Rows) -> Rows:
    if "att.time_decay" in part:
        return rwkv4_block(part, rows)
    normed, cell = [norm(part, "cell_norm", x) for x in rows], sub(part, "cell")
    if "gru.weight_ih_l0" in cell:
        seen = gated_recurrent_unit(cell, normed)
    else:
        window = config.window or SPANS[config.probe]
        seen = list(feed_forward_lmu(cell, config.order, window, config.channels, np.stack(normed)))
    rows = [x + y for x, y in zip(rows, seen, strict=True)]
    return [x + linear(sub(part, "down"), relu(linear(sub(part, "up"), norm(part, "mix_norm", x)))) for x in rows]


def gated_recurrent_unit(part: Parameters, rows: Rows) -> Rows:
    """r, z, n stacked in the weights; h = (1 - z) n + z h."""
    h, outputs = np.zeros(part["gru.weight_hh_l0"].shape[1]), []
    for x in rows:
        i_r, i_z, i_n = np.split(part["gru.weight_ih_l0"] @ x + part["gru.bias_ih_l0"], 3)
        h_r, h_z, h_n = np.split(part["gru.weight_hh_l0"] @ h + part["gru.bias_hh_l0"], 3)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        h = (1.0 - z) * np.tanh(i_n + r * h_n) + z * h
        outputs.append(h)
    return outputs


def rwkv4_block(part: Parameters, rows: Rows) -> Rows:
    """The first block normalises its input."""
    if "ln0.weight" in part:
        rows = [norm(part, "ln0", x) for x in rows]
    history: list[tuple[np.ndarray, np.ndarray]] = []
    before_att = before_ffn = np.zeros(len(rows[0]))
    outputs = []
    for x in rows:
        u = norm(part, "ln1", x)
        x = x + rwkv4.time_mixing(sub(part, "att"), u, before_att, history)
        before_att, u = u, norm(part, "ln2", x)
        x = x + rwkv4.channel_mixing(sub(part, "ffn"), u, before_ffn)
        before_ffn = u
        outputs.append(x)
    return outputs


def with_slots(part: Parameters, config: Any, rows: Rows) -> Rows:
    memory, outputs = [memformer.unit(v) for v in part["write.bias"]], []
    for begin in range(0, len(rows), config.segment):
        segment = rows[begin : begin + config.segment]
        encoded, memory = memformer.encode(part, config, segment, memory, bidirectional=False)
        outputs += encoded
    return outputs


def sliding(part: Parameters, config: Any, rows: Rows) -> Rows:
    """Segments of one frame, nothing to their right."""
    sizes = SimpleNamespace(fold=config.fold, heads=config.heads, left=config.left, segment=1, look_ahead=0)
    caches, outputs = [folding.Cache() for _ in range(config.layers)], []
    for t, x in enumerate(rows):
        here = {t: x}
        for i, cache in enumerate(caches):
            here = folding.encoder_layer(sub(part, f"layers.{i}"), sizes, here, [t], t, cache)
            cache.keep([t])
        outputs.append(norm(part, "norm", here[t]))
    return outputs
