"""int8 products, but for the few input features that are far larger than the rest: those stay float (LLM.int8()).

Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022. A single feature of
size 60 among others of size 1 makes the int8 step of a row so coarse that the others vanish. Here the set of such
features is found in calibration and is the same in every step.

    outliers O    max |x[k]| >= 6 over the calibration data, and >= 6 times the median of all features;
                  the largest `percent` of the features at most

    before          after
    MatMul(x, W)    Add(int8 product of Gather(x, R) and W[R], MatMul(Gather(x, O), Cast(W[O])))
                    R, O int32: the regular features and the outliers; W.q int8 [R, out], W.outliers float16 [O, out]
    no outliers     as in `w8a8-dynamic`; lookups and other products as in `w8`

The int8 product is the one of `w8a8-dynamic`: vector-wise, one scale per row of x and one per output of W.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.program import Array
from edgemem.quant import w8, w8a8_dynamic
from edgemem.quant.graph import Builder, Weight, as_float32, constant, fits_float16, replace
from edgemem.quant.scheme import Job, Scheme

THRESHOLD = 6.0  # of the paper
MOST_SHARE = 0.25  # of the features: more outliers than these are no outliers


def check(settings: Mapping[str, int | str]) -> None:
    """Refuse a share that is none."""
    percent = int(settings["percent"])
    if not 0 < percent <= 100:
        raise UsageError(f"scheme w8a8-outlier: percent must lie in 1 to 100, got {percent}")


def apply(job: Job) -> None:
    """Rewrite every product of activations and a matrix; the other weights as `w8` does."""
    percent = float(job.settings["percent"])
    for weight in job.weights():
        if not weight.is_plain:
            w8.quantize(job, weight)
            continue
        split(job, weight, outliers(job, weight, percent))


def outliers(job: Job, weight: Weight, percent: float) -> Array:
    """Indices of the features that stay float."""
    assert job.calibration is not None
    names = [str(node.inputs[0].name) for node, _ in weight.others if node.inputs[0] is not None]
    seen = [job.calibration.products[name].channel_max for name in names if name in job.calibration.products]
    if not seen:
        return np.zeros(0, np.int64)
    largest = np.max(seen, axis=0)
    usual = float(np.median(largest))
    found = np.flatnonzero((largest >= THRESHOLD) & (largest >= THRESHOLD * usual))
    most = max(1, int(len(largest) * min(percent / 100, MOST_SHARE)))
    return np.sort(found[np.argsort(-largest[found], kind="stable")][:most])


def split(job: Job, weight: Weight, found: Array) -> None:
    """One matrix as an int8 part and a float16 part."""
    before, model = weight.array, job.model
    regular = np.setdiff1d(np.arange(len(before)), found)
    q, scale = w8.quantized(before[regular].T)
    kept = before[found].astype(np.float16 if fits_float16(before[found]) else np.float32)
    after = np.empty_like(before)
    after[regular], after[found] = (q * scale[:, None].astype(np.float32)).T, kept.astype(np.float32)
    for node, _ in weight.others:
        product(model, node, weight, q.T, scale, kept, (regular, found))
    choice = "int8 times int8 by row" + (f", {len(found)} features float" if len(found) else "")
    size = q.nbytes + scale.nbytes + kept.nbytes + (4 * len(before) if len(found) else 0)
    job.record(weight.name, before, after, choice, size)


def product(
    model: ir.Model, node: ir.Node, weight: Weight, q: Array, scale: Array, kept: Array, parts: tuple[Array, Array]
) -> None:
    """Both parts of one product, and their sum."""
    regular, found = parts
    x = node.inputs[0]
    assert x is not None
    build = Builder(model, node.outputs[0].name or weight.name, node)
    stored = constant(model, f"{weight.name}.q", q)
    steps = as_float32(model, f"{weight.name}.scale", scale)
    if not len(found):
        replace(model, node.outputs[0], w8a8_dynamic.integer_product(build, x, stored, steps))
        return
    places = [
        constant(model, f"{weight.name}.{name}", part.astype(np.int32))
        for name, part in (("regular", regular), ("outlier", found))
    ]
    taken = [build.op("Gather", x, place, suffix="features", axis=-1) for place in places]
    for value, part in zip(taken, parts, strict=True):
        value.shape = ir.Shape([*list(x.shape or ())[:-1], len(part)])
    whole = w8a8_dynamic.integer_product(build, taken[0], stored, steps)
    floats = build.op("MatMul", taken[1], as_float32(model, f"{weight.name}.outliers", kept), suffix="outliers")
    replace(model, node.outputs[0], build.op("Add", whole, floats, suffix="sum"))


SCHEME = Scheme(
    "w8a8-outlier",
    "int8 products, the few outlier features of each in float16 (LLM.int8())",
    apply,
    {"percent": 5},
    needs_data=True,
    uses_data=True,
    check=check,
)
