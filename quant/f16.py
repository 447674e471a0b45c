"""Weights as float16; a runtime folds the Casts when it loads, or computes in half precision where it can.

before          after
MatMul(x, W)    MatMul(x, Cast(W.f16))
Gather(W, i)    Cast(Gather(W.f16, i))         the rows that are taken, not the whole table
a vector v      Cast(v.f16)
"""

from __future__ import annotations

import numpy as np

from edgemem.quant.graph import FLOAT, Builder, Weight, as_float32, fits_float16, replace
from edgemem.quant.scheme import Job, Scheme


def apply(job: Job) -> None:
    """Rewrite every matrix that float16 can hold; vectors follow by themselves."""
    for weight in job.weights():
        before = weight.array
        if not fits_float16(before):
            job.warnings.append(f"{weight.name} stays float32: float16 holds 6.1e-5 to 65504")
            continue
        rewrite(job, weight)
        after = before.astype(np.float16).astype(np.float32)
        job.record(weight.name, before, after, "float16", before.size * 2)


def rewrite(job: Job, weight: Weight) -> None:
    """Readers take the Cast, lookups cast what they took."""
    model = job.model
    stored = Builder(model, weight.name).constant("f16", weight.array.astype(np.float16))
    for node in weight.gathers:
        build = Builder(model, node.outputs[0].name or weight.name, node)
        taken = build.op("Gather", stored, node.inputs[1], suffix="f16", dtype=stored.dtype, axis=0)
        rows = build.op("Cast", taken, suffix="rows", to=int(FLOAT))
        replace(model, node.outputs[0], rows)
    if weight.others:
        cast = as_float32(model, f"{weight.name}.f16", weight.array.astype(np.float16))
        for node, index in weight.others:
            node.replace_input_with(index, cast)


SCHEME = Scheme("f16", "weights in half precision", apply)
