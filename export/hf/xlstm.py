"""xLSTM: matrix memories with exponential gates (`xLSTMForCausalLM`).

Beck et al., "xLSTM: Extended Long Short-Term Memory", NeurIPS 2024; "xLSTM 7B", 2025 (arXiv:2503.13427).

    i, f = cap(W_i x), cap(W_f x)          l = log sigmoid(f) + m_{t-1}          m_t = max(l, i)
    C_t = exp(l - m_t) C_{t-1} + exp(i - m_t) k v^T      n_t = exp(l - m_t) n_{t-1} + exp(i - m_t) k
    y = C_t^T q / (max(|n_t . q|, exp(-m_t)) + eps)      out = W_o (sigmoid(o) * norm y)     q over sqrt(key width)

The model's own cache holds C [heads, key width, value width], n [heads, key width] and m [heads, 1] of each layer.

Of the two kernels that transformers 4.57 has for whole sequences, the one for chunks of `chunk_size` fails on any
input; so its forward goes through the other one, frame by frame, which is the same sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgemem.export.hf.decoder import heads
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import CausalStream, Settings
from edgemem.module import State, part, prefixed
from edgemem.state import StateTensor

NO_CHUNKS = 1 << 30  # longer than any sequence
CACHE = ("memory", "norm", "max")  # in the order of the model's own cache


@streams("xlstm")
class XlstmStream(CausalStream):
    """States of each layer: C, n and m."""

    def __init__(self, model: Any, settings: Settings, encoding: str | None = None) -> None:
        super().__init__(model, settings, encoding)
        model.config.chunk_size = NO_CHUNKS
        for block in model.backbone.blocks:  # a backend reads the configuration when it is made
            block.mlstm_layer.mlstm_backend = type(block.mlstm_layer.mlstm_backend)(model.config)

    @classmethod
    def states(cls, config: Any, settings: Any) -> tuple[StateTensor, ...]:
        count = config.num_heads
        keys = int(config.hidden_size * config.qk_dim_factor) // count
        values = int(config.hidden_size * config.v_dim_factor) // count
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            found += [
                StateTensor(f"layers.{layer}.memory", (count, keys, values), wide=True),
                StateTensor(f"layers.{layer}.norm", (count, keys), wide=True),
                StateTensor(f"layers.{layer}.max", (count, 1), wide=True),
            ]
        return tuple(found)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        backbone, after = self.model.backbone, {}
        hidden = backbone.embeddings(x)
        for index, block in enumerate(backbone.blocks):
            y, states = matrix_memory(block.mlstm_layer, block.norm_mlstm(hidden), part(state, f"layers.{index}"))
            hidden = hidden + y
            hidden = hidden + block.ffn(block.norm_ffn(hidden))
            after.update(prefixed(f"layers.{index}", states))
        logits: Tensor = self.model.lm_head(backbone.out_norm(hidden))
        return capped(logits, self.model.config.output_logit_soft_cap), after

    def remembered(self, cache: Any) -> State:
        return {
            f"layers.{layer}.{name}": value.clone()
            for layer, values in cache.rnn_state.items()
            for name, value in zip(CACHE, values, strict=True)
        }


def matrix_memory(layer: Any, x: Tensor, state: State) -> tuple[Tensor, State]:
    """One frame x [batch, width] through a layer's memory."""
    config, count = layer.config, layer.config.num_heads
    if config.weight_mode == "fused":
        sizes = [layer.qk_dim, layer.qk_dim, layer.v_dim, layer.v_dim]
        q, k, v, o = layer.qkv_opreact(x).split(sizes, dim=1)
        enter, keep = layer.ifgate_preact(x).chunk(2, dim=1)
    else:
        q, k, v, o = layer.q(x), layer.k(x), layer.v(x), layer.ogate_preact(x)
        enter, keep = layer.igate_preact(x), layer.fgate_preact(x)
    enter, keep = (capped(gate, config.gate_soft_cap)[:, :, None] for gate in (enter, keep))  # [batch, heads, 1]
    q, k, v = heads(q, layer.qk_dim // count), heads(k, layer.qk_dim // count), heads(v, layer.v_dim // count)
    carried = functional.logsigmoid(keep) + state["max"]
    top = torch.maximum(carried, enter)
    old, new = torch.exp(carried - top), torch.exp(enter - top)
    memory = old[:, :, :, None] * state["memory"] + new[:, :, :, None] * (k[:, :, :, None] * v[:, :, None])
    norm = old * state["norm"] + new * k
    q = q * q.shape[2] ** -0.5
    scale = torch.maximum((norm * q).sum(dim=2, keepdim=True).abs(), torch.exp(-top)) + config.eps
    y = layer.multihead_norm(((q[:, :, None] @ memory)[:, :, 0] / scale)[:, None])[:, 0]
    return layer.out_proj(torch.sigmoid(o) * y), {"memory": memory, "norm": norm, "max": top}


def capped(x: Tensor, cap: float | None) -> Tensor:
    """x within -cap .. cap, smoothly."""
    return x if cap is None else cap * torch.tanh(x / cap)
