"""int8 weights times int8 activations, whose scale is found in every step, one for each row.

row x       q = round(x / s)       s = max |x| / 127           y[n] = s s[n] sum_k q[k] W.q[k, n]

before                          after
MatMul(x, W), one row           q, s, z = DynamicQuantizeLinear(x)
                                Mul(Cast(MatMulInteger(q, W.q, z)), Mul(s, W.scale))       W.q int8 [in, out]
MatMul(x, W), several rows      s = Max(ReduceMax(Abs(x), -1), tiny) / 127
                                q = Cast(Round(x / s), int8)
                                Mul(Mul(Cast(MatMulInteger(q, W.q)), s), W.scale)
lookups, other products         as in `w8`: int8 weights, float32 activations
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.program import Array
from edgemem.quant import w8
from edgemem.quant.graph import FLOAT, Builder, Weight, as_float32, replace
from edgemem.quant.scheme import Job, Scheme

TINY = np.float32(1e-20)  # the scale of a row of zeros must not be 0
INT32, INT8, UINT8 = ir.DataType.INT32, ir.DataType.INT8, ir.DataType.UINT8


def apply(job: Job) -> None:
    """Rewrite every product of activations and a matrix; the other weights as `w8` does."""
    for weight in job.weights():
        if not weight.is_plain:
            w8.quantize(job, weight)
            continue
        before = weight.array
        q, scale = w8.quantized(weight.rows)
        for node, _ in weight.others:
            rewrite(job.model, node, weight, q, scale)
        after = weight.stored(q * scale[:, None].astype(np.float32))
        job.record(weight.name, before, after, "int8 times int8 by row", q.nbytes + scale.nbytes)


def rewrite(model: ir.Model, node: ir.Node, weight: Weight, q: Array, scale: Array) -> None:
    """One product in integers."""
    x = node.inputs[0]
    assert x is not None
    stored = Builder(model, weight.name).constant("q", weight.stored(q))
    build = Builder(model, node.outputs[0].name or weight.name, node)
    product = integer_product(build, x, stored, as_float32(model, f"{weight.name}.scale", scale))
    replace(model, node.outputs[0], product)


def integer_product(build: Builder, x: ir.Value, stored: ir.Value, scale: ir.Value) -> ir.Value:
    """x @ (stored * scale), x quantized row by row."""
    lead: list[Any] = list(x.shape or [0])[:-1]
    if x.shape is not None and all(size == 1 for size in lead):
        q, step, zero = build.op("DynamicQuantizeLinear", x, suffix="x", dtype=UINT8, outputs=3)
        step.type = ir.TensorType(FLOAT)
        total = build.op("MatMulInteger", q, stored, zero, suffix="total", dtype=INT32)
        factor = build.op("Mul", step, scale, suffix="factor")
        return made(build.op("Mul", build.op("Cast", total, suffix="steps", to=int(FLOAT)), factor, suffix="value"))
    step = row_scales(build, x)
    whole = build.op("Round", build.op("Div", x, step, suffix="x.steps"), suffix="x.whole")
    q = build.op("Cast", whole, suffix="x", dtype=INT8, to=int(INT8))
    total = build.op("MatMulInteger", q, stored, suffix="total", dtype=INT32)
    value = build.op("Mul", build.op("Cast", total, suffix="steps", to=int(FLOAT)), step, suffix="rows")
    return made(build.op("Mul", value, scale, suffix="value"))


def row_scales(build: Builder, x: ir.Value) -> Any:
    """max |x| / 127 of every row, [..., 1]."""
    axes = build.constant("last", np.array([-1]))
    largest = build.op("ReduceMax", build.op("Abs", x, suffix="x.abs"), axes, suffix="x.largest", keepdims=1)
    safe = build.op("Max", largest, build.constant("tiny", np.array(TINY)), suffix="x.safe")
    return build.op("Mul", safe, build.constant("step", np.array(np.float32(1 / w8.LEVELS))), suffix="x.scale")


def made(value: Any) -> ir.Value:
    assert isinstance(value, ir.Value)
    return value


SCHEME = Scheme("w8a8-dynamic", "int8 weights times int8 activations, scaled row by row in every step", apply)
