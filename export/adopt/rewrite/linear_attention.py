"""LinearAttention (opset 27) -> products, written out token by token.

S [batch, kv_heads, d_k, d_v]      q, k [batch, heads, 1, d_k]      v [batch, kv_heads, 1, d_v]
gated   S <- exp(g) S              g [batch, kv_heads, d_k or 1, 1]
delta   v <- beta (v - k S)        beta [batch, kv_heads or 1, 1, 1]
S <- S + k^T v                     o = scale q S, each head of S read by heads / kv_heads queries
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Builder, replace, sizes
from edgemem.export.adopt.freeze import Freezer, where

RULES = ("linear", "gated", "delta", "gated_delta")
MOST_TOKENS = 256  # of one step that are written out one by one


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the recurrence in the operator's place.

    Raises:
        ExportError: an update rule that this does not know, or too many tokens a step.
    """
    build = Builder(freezer.graph, node, node.name or "LinearAttention")
    query, key, value = (required(node, index) for index in range(3))
    past, decay, beta = (node.inputs[i] if i < len(node.inputs) else None for i in (3, 4, 5))
    batch, tokens, width = sizes(query)
    heads, kv = node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()
    d_k, d_v = width // heads, sizes(value)[2] // kv
    rule = node.attributes["update_rule"].as_string() if "update_rule" in node.attributes else "gated_delta"
    check(node, rule, decay, beta, tokens)
    given = node.attributes["scale"].as_float() if "scale" in node.attributes else 0.0
    scale = build.floats("scale", given or 1 / math.sqrt(d_k))
    state = build.floats("start", np.zeros((batch, kv, d_k, d_v))) if past is None else past
    outputs = []
    for t in range(tokens):
        q = token(build, query, t, [batch, kv, heads // kv, d_k])
        k, v = token(build, key, t, [batch, kv, 1, d_k]), token(build, value, t, [batch, kv, 1, d_v])
        if decay is not None:
            g = token(build, decay, t, [batch, kv, sizes(decay)[2] // kv, 1])
            state = build.op("Mul", state, build.op("Exp", g))
        if beta is not None:
            missing = build.op("Sub", v, build.op("MatMul", k, state))
            v = build.op("Mul", token(build, beta, t, [batch, sizes(beta)[2], 1, 1]), missing)
        column = build.reshape(k, [batch, kv, d_k, 1])
        state = build.op("Add", state, build.op("Mul", column, v))
        read = build.op("Mul", build.op("MatMul", q, state), scale)
        outputs.append(build.reshape(read, [batch, 1, heads * d_v]))
    replace(node.outputs[0], outputs[0] if tokens == 1 else build.op("Concat", *outputs, axis=1))
    if len(node.outputs) > 1:
        replace(node.outputs[1], state)
    freezer.graph.remove(node, safe=True)
    freezer.visit(build.nodes)


def token(build: Builder, x: ir.Value, t: int, shape: list[int]) -> ir.Value:
    """One token of [batch, tokens, width], by heads."""
    return build.reshape(x if sizes(x)[1] == 1 else build.slice(x, 1, t, t + 1), shape)


def required(node: ir.Node, index: int) -> ir.Value:
    found = node.inputs[index]
    assert found is not None
    return found


def check(node: ir.Node, rule: str, decay: ir.Value | None, beta: ir.Value | None, tokens: int) -> None:
    """Refuse what the operator's standard does, and steps that would be written out too long."""
    if rule not in RULES or ("gated" in rule) != (decay is not None) or ("delta" in rule) != (beta is not None):
        raise ExportError(
            f"{where(node)}: update rule {rule} does not fit its inputs; {', '.join(RULES)} are known, gated ones take "
            "a decay and delta ones a beta"
        )
    if tokens > MOST_TOKENS:
        raise ExportError(
            f"{where(node)} takes {tokens} tokens a step, which would be written out one by one, {MOST_TOKENS} at "
            "most; choose a shorter step by --chunk"
        )
