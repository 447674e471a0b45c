"""Qwen3-Next: gated delta networks, and gated attention in every fourth layer (`Qwen3NextForCausalLM`).

Yang, Kautz & Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", ICLR 2025.

    u = silu(conv(W_qkv x))        q, k, v of u, q and k of length 1        g = -exp(A_log) softplus(W_a x + b)
    S = exp(g) S_{t-1}             S_t = S + k (sigmoid(W_b x) (v - S^T k))^T         y = S_t^T q / sqrt(key width)
    out = W_o (norm(y) * silu(W_z x))                                                 S [heads, key width, value width]

Caches of the attention layers are bounded (`edgemem.export.hf.bounded`). A mixture of experts computes all of them, and
weighs those that were not chosen with nothing: a step graph has no branches. The model's own cache holds keys and
values, the last inputs of each convolution, the current one among them, and S.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from edgemem.export.hf.bounded import BoundedSettings, cache_states, seen_state
from edgemem.export.hf.convolution import convolved
from edgemem.export.hf.decoder import Attend, BoundedStream, Mix, head_width, heads
from edgemem.export.hf.registry import streams
from edgemem.export.hf.stream import REACH
from edgemem.module import State
from edgemem.state import StateTensor

LENGTH_EPS = 1e-6  # as the model adds it to the square of a key's length


@streams("qwen3_next")
class Qwen3NextStream(BoundedStream):
    """States of each layer: the convolution's tail and the memory S, or keys and values of the bounded cache."""

    @classmethod
    def states(cls, config: Any, settings: BoundedSettings) -> tuple[StateTensor, ...]:
        settings.check(config.max_position_embeddings, "max_position_embeddings")
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        values = config.linear_num_value_heads * config.linear_value_head_dim
        memory = (config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
        found: list[StateTensor] = []
        for layer in range(config.num_hidden_layers):
            if layer in cls.attention_layers(config):
                found += cache_states(f"layers.{layer}", config.num_key_value_heads, head_width(config), settings)
            else:
                tail = (2 * keys + values, config.linear_conv_kernel_dim - 1)
                found += [
                    StateTensor(f"layers.{layer}.tail", tail, role="tail", low=-REACH, high=REACH),
                    StateTensor(f"layers.{layer}.memory", memory, wide=True),
                ]
        return (*found, seen_state(settings))

    def flow(self, x: Tensor, state: State, attend: Attend, mix: Mix) -> Tensor:
        decoder, width = self.model.model, head_width(self.model.config)
        hidden = decoder.embed_tokens(x)
        for index, layer in enumerate(decoder.layers):
            u = layer.input_layernorm(hidden)
            if layer.layer_type == "full_attention":
                attention = layer.self_attn
                query, gate = heads(attention.q_proj(u), 2 * width).chunk(2, dim=-1)
                query, key = attention.q_norm(query), attention.k_norm(heads(attention.k_proj(u), width))
                y = attend(index, query, key, heads(attention.v_proj(u), width))
                y = attention.o_proj(y * torch.sigmoid(gate.flatten(-2)))
            else:
                y = mix(index, u)
            hidden = hidden + y
            hidden = hidden + fed(layer.mlp, layer.post_attention_layernorm(hidden))
        logits: Tensor = self.model.lm_head(decoder.norm(hidden))
        return logits

    def mixed(self, layer: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        net = self.model.model.layers[layer].linear_attn
        parts = net.fix_query_key_value_ordering(net.in_proj_qkvz(x)[:, None], net.in_proj_ba(x)[:, None])
        q, k, v, z, b, a = (part[:, 0] for part in parts)
        u, tail = convolved(net.conv1d, torch.cat([q.flatten(1), k.flatten(1), v.flatten(1)], dim=1), state["tail"])
        q, k, v = torch.split(functional.silu(u), [net.key_dim, net.key_dim, net.value_dim], dim=1)
        shared = net.num_v_heads // net.num_k_heads
        q, k = (of_length_one(heads(part, net.head_k_dim)).repeat_interleave(shared, dim=1) for part in (q, k))
        keep = torch.exp(-torch.exp(net.A_log) * functional.softplus(a + net.dt_bias))
        memory = keep[:, :, None, None] * state["memory"]
        known = (k[:, :, None] @ memory)[:, :, 0]
        change = torch.sigmoid(b)[:, :, None] * (heads(v, net.head_v_dim) - known)
        memory = memory + k[:, :, :, None] * change[:, :, None]
        y = (q[:, :, None] @ memory)[:, :, 0] * net.head_k_dim**-0.5  # [batch, heads, value width]
        return net.out_proj(net.norm(y, z).flatten(1)), {"tail": tail, "memory": memory}

    def mixed_whole(self, layer: int, x: Tensor) -> Tensor:
        y: Tensor = self.model.model.layers[layer].linear_attn(x)
        return y

    def remembered(self, cache: Any) -> State:
        found = super().remembered(cache)
        for state in self.state:
            layer, _, name = state.name.removeprefix("layers.").partition(".")
            if name == "tail":
                found[state.name] = cache.conv_states[int(layer)][:, :, 1:].clone()
            elif name == "memory":
                found[state.name] = cache.recurrent_states[int(layer)].clone()
        return found


def of_length_one(x: Tensor) -> Tensor:
    """Rows [..., width] divided by their length."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + LENGTH_EPS)


def fed(feed: Any, x: Tensor) -> Tensor:
    """The feed-forward part of a layer: dense, or a mixture of experts."""
    if not hasattr(feed, "experts"):
        y: Tensor = feed(x)
        return y
    weights = torch.softmax(feed.gate(x), dim=-1)
    ahead = (weights[..., None, :] > weights[..., :, None]).to(x.dtype).sum(dim=-1)  # experts with more weight, of each
    shares = torch.where(ahead < feed.top_k, weights, torch.zeros_like(weights))
    if feed.norm_topk_prob:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    y = torch.sigmoid(feed.shared_expert_gate(x)) * feed.shared_expert(x)
    for number, expert in enumerate(feed.experts):
        y = y + shares[..., number : number + 1] * expert(x)
    return y
