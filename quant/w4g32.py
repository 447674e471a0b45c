"""Weights as 4-bit integers, with one scale for 32 consecutive inputs of an output; activations stay float32.

    group w [32]    q = clip(round(w / s), -8, 7)      s as float16, the best of several by squared error

    before                       after
    MatMul(x, W)                 MatMul(x, DequantizeLinear(W.q, Cast(W.scale), axis=0, block_size=32))
                                                                      W.q int4 [in, out], W.scale [in / 32, out]
    MatMul(W, x), Transpose(W)   the same with axis=1                 W.q int4 [out, in], W.scale [out, in / 32]
    Gather(W, i)                 p = Gather(W.packed, i)              W.packed uint8 [out, in / 2]
                                 h = Concat(And(p, 15), Shift(p, 4))  inputs 0 .. in/2-1, then in/2 .. in-1
                                 Reshape((Cast(h) - 8) as [..., in / 32, 32] * Gather(Cast(W.scale.rows), i))
    Conv(x, W); a table whose rows are no multiple of 32              as in `w8`

A squared error weighs every input by its second moment, where calibration data is given.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgemem.program import Array
from edgemem.quant import w8
from edgemem.quant.graph import FLOAT, Builder, Weight, as_float32, narrow_scales, replace
from edgemem.quant.scheme import Job, Scheme

GROUP = 32
LOW, HIGH = -8, 7
SHRINKING = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79)  # of the largest scale: clip a little, round finer
UINT8 = ir.DataType.UINT8


def apply(job: Job) -> None:
    """Rewrite every matrix."""
    for weight in job.weights():
        rows = weight.rows
        if weight.array.ndim > 2 or (weight.gathers and rows.shape[1] % GROUP):
            w8.quantize(job, weight)
            continue
        q, scale = quantized(rows, job.second_moments(weight))
        before, after = weight.array, weight.stored(dequantized(q, scale))
        size = lookups(job.model, weight, q, scale) + products(job.model, weight, q, scale)
        job.record(weight.name, before, after, f"int4, scale per {GROUP} inputs", size)


def quantized(rows: Array, moments: Array | None = None) -> tuple[Array, Array]:
    """[outputs, inputs] -> int8 of -8..7 in the same shape, and scales [outputs, groups] as they will be stored.

    `moments` [inputs] weigh the squared errors. The last group of a row may be short.
    """
    groups, weights = grouped(rows), grouped(np.ones((1, rows.shape[1])) if moments is None else moments[None])
    largest = np.abs(groups).max(axis=-1)
    best_error, best = np.full(largest.shape, np.inf), np.ones(largest.shape)
    for shrinking in SHRINKING:
        scale = narrow_scales(np.where(largest > 0, largest / HIGH * shrinking, 1.0)).astype(np.float64)
        error = (weights * (rounded(groups, scale) * scale[..., None] - groups) ** 2).sum(axis=-1)
        best = np.where(error < best_error, scale, best)
        best_error = np.minimum(error, best_error)
    q = rounded(groups, best).astype(np.int8)
    return q.reshape(len(rows), -1)[:, : rows.shape[1]], narrow_scales(best)


def rounded(groups: Array, scale: Array) -> Array:
    """Whole numbers of -8..7."""
    return np.asarray(np.clip(np.rint(groups / scale[..., None]), LOW, HIGH))


def grouped(rows: Array) -> Array:
    """[outputs, inputs] -> float64 [outputs, groups, 32], filled up with zeros."""
    short = -rows.shape[1] % GROUP
    return np.pad(rows.astype(np.float64), ((0, 0), (0, short))).reshape(len(rows), -1, GROUP)


def dequantized(q: Array, scale: Array) -> Array:
    """The matrix [outputs, inputs] that is computed with."""
    return q * np.repeat(scale.astype(np.float32), GROUP, axis=1)[:, : q.shape[1]]


def products(model: ir.Model, weight: Weight, q: Array, scale: Array) -> int:
    """Let products read the dequantized matrix; returns the bytes that are stored for them."""
    if not weight.others:
        return 0
    packed = weight.stored(q).astype(ml_dtypes.int4)
    stored = Builder(model, weight.name).constant("q", packed, ir.DataType.INT4)
    factors = as_float32(model, f"{weight.name}.scale", scale if weight.by_row else scale.T)
    first = next(node for node in model.graph if any(node is reader for reader, _ in weight.others))
    value = Builder(model, weight.name, first).op(
        "DequantizeLinear", stored, factors, suffix="dequantized", axis=1 - weight.output_axis, block_size=GROUP
    )
    value.shape = weight.value.shape
    for node, index in weight.others:
        node.replace_input_with(index, value)
    return -(-q.size // 2) + scale.nbytes


def lookups(model: ir.Model, weight: Weight, q: Array, scale: Array) -> int:
    """Let lookups unpack the rows that they take; returns the bytes that are stored for them."""
    if not weight.gathers:
        return 0
    half = q.shape[1] // 2
    bits = (q - LOW).astype(np.uint8)
    packed = Builder(model, weight.name).constant("packed", bits[:, :half] | (bits[:, half:] << 4))
    table = as_float32(model, f"{weight.name}.scale.rows", scale[..., None])
    for node in weight.gathers:
        unpack(Builder(model, node.outputs[0].name or weight.name, node), node, packed, table, q.shape[1])
    return q.size // 2 + scale.nbytes


def unpack(build: Builder, node: ir.Node, packed: ir.Value, table: ir.Value, width: int) -> None:
    """The float32 rows of one lookup."""
    rows, index = node.outputs[0], node.inputs[1]
    taken = build.op("Gather", packed, index, suffix="packed", dtype=UINT8, axis=0)
    low = build.op("BitwiseAnd", taken, build.constant("mask", np.array(15, np.uint8)), suffix="low", dtype=UINT8)
    four = build.constant("four", np.array(4, np.uint8))
    high = build.op("BitShift", taken, four, suffix="high", dtype=UINT8, direction="RIGHT")
    bits = build.op("Concat", low, high, suffix="bits", dtype=UINT8, axis=-1)
    steps = build.op("Sub", build.op("Cast", bits, suffix="steps", to=int(FLOAT)),
                     build.constant("zero", np.array(-LOW, np.float32)), suffix="whole")  # fmt: skip
    shape: list[Any] = list(rows.shape or ())[:-1]
    groups = build.op("Reshape", steps, build.constant("groups.shape", np.array([*shape, -1, GROUP])), suffix="groups")
    scaled = build.op("Mul", groups, build.op("Gather", table, index, suffix="scale", axis=0), suffix="scaled")
    value = build.op("Reshape", scaled, build.constant("rows.shape", np.array([*shape, width])), suffix="rows")
    replace(build.model, rows, value)


SCHEME = Scheme("w4g32", "4-bit weights, one scale for 32 inputs", apply, uses_data=True)
