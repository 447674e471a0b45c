"""Weights as int8, symmetric, with one scale per output; activations stay float32.

    row of output n      q[n] = round(w[n] / s[n])      s[n] = max |w[n]| / 127, as float16 where that holds it

    before                          after
    MatMul(x, W)                    MatMul(x, DequantizeLinear(W.q, Cast(W.scale), axis=1))      W.q int8 [in, out]
    MatMul(W, x), Conv(x, W)        the same with axis=0                                         W.q int8 [out, ...]
    Gather(W, i)                    Mul(Cast(Gather(W.q, i)), Gather(Cast(W.scale.rows), i))     scale [out, 1]
    a vector v                      Cast(v.f16)

A lookup dequantizes the rows that it takes, never the whole table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemem.program import Array
from edgemem.quant.graph import FLOAT, Builder, Weight, as_float32, narrow_scales, replace
from edgemem.quant.scheme import Job, Scheme

LEVELS = 127
TINIEST = float(np.finfo(np.float32).tiny)  # rows without a larger weight are zeros


def apply(job: Job) -> None:
    """Rewrite every matrix."""
    for weight in job.weights():
        quantize(job, weight)


def quantize(job: Job, weight: Weight) -> None:
    """Rewrite one matrix, whatever reads it."""
    before = weight.array
    q, scale = quantized(weight.rows)
    after = weight.stored(q * scale[:, None].astype(np.float32))
    rewrite(job, weight, q, scale)
    job.record(weight.name, before, after, "int8, scale per output", q.nbytes + scale.nbytes)


def quantized(rows: Array, levels: int = LEVELS) -> tuple[Array, Array]:
    """[outputs, inputs] -> int8 of the same shape, and the scale of every output as it will be stored."""
    scale = np.abs(rows.astype(np.float64)).max(axis=1) / levels
    scale = narrow_scales(np.where(scale >= TINIEST, scale, 1.0))
    steps = np.rint(rows / scale[:, None].astype(np.float64))
    return np.clip(steps, -levels, levels).astype(np.int8), scale


def rewrite(job: Job, weight: Weight, q: Array, scale: Array) -> None:
    """Give every reader what it needs of the int8 matrix."""
    model = job.model
    stored = Builder(model, weight.name).constant("q", weight.stored(q))
    for node in weight.gathers:
        build = Builder(model, node.outputs[0].name or weight.name, node)
        table = as_float32(model, f"{weight.name}.scale.rows", scale[:, None])
        axis: dict[str, Any] = {"axis": 0}
        whole = build.op("Cast", build.op("Gather", stored, node.inputs[1], suffix="q", dtype=stored.dtype, **axis),
                         suffix="steps", to=int(FLOAT))  # fmt: skip
        rows = build.op("Mul", whole, build.op("Gather", table, node.inputs[1], suffix="scale", **axis), suffix="rows")
        replace(model, node.outputs[0], rows)
    if weight.others:
        vector = as_float32(model, f"{weight.name}.scale", scale)
        first = next(node for node in model.graph if any(node is reader for reader, _ in weight.others))
        value = Builder(model, weight.name, first).op(
            "DequantizeLinear", stored, vector, suffix="dequantized", axis=weight.output_axis
        )
        value.shape = weight.value.shape
        for node, index in weight.others:
            node.replace_input_with(index, value)


SCHEME = Scheme("w8", "int8 weights, one scale per output; embeddings row by row", apply)
