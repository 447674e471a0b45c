"""LayerNormalization and Softmax over the last axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer import powers
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import FACTOR_BITS, SUM_BITS, attribute, whole_numbers
from edgemem.runtimes.integer.operation import Array, Operation, Out
from edgemem.runtimes.integer.values import Norm, Softmax, Value

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering

NORM_BITS = 24  # behind the point of a normalised element
WORD_BYTES = 4


# --- kernels ---------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, at: int, gain: Tensor, bias: Tensor, y: Tensor, epsilon: int, shift: int,
               out: Out) -> Operation:  # fmt: skip
    """See c/edgemem_integer.c for the arithmetic."""
    count = gain.shape[0]
    rows = int(np.prod(y.shape)) // count

    def run(given: Sequence[Array]) -> Array:
        result = []
        for row in given[0][at : at + rows * count].reshape(rows, count).astype(np.int64):
            apart = count * row - row.sum()
            spread, moved = int((row * row).sum() * count - row.sum() ** 2 + epsilon), 0
            while spread >> 60 == 0:
                spread, moved = spread << 2, moved + 1
            inverse = (1 << 62) // math.isqrt(spread)
            even = (apart * (inverse >> 2)) >> (60 - NORM_BITS - moved)
            result.append(out.put(((even * given[1]) >> NORM_BITS) + given[2], shift))
        return np.concatenate(result)

    c = f"{out.c()}\nedgemem_layer_norm(r0 + {at}, r1, r2, w, {rows}, {count}, INT64_C({epsilon}), {shift}, &out);"
    return Operation("layer_norm", (x, gain, bias), y, c, run)


def softmax(x: Tensor, at: int, y: Tensor, count: int, step: int, bits: int, factor: int, shift: int,
            out: Out) -> Operation:  # fmt: skip
    """See c/edgemem_power.c for the arithmetic; `step` * 2^-`bits` is what one step of x is to the power of two."""
    rows = int(np.prod(y.shape)) // count

    def run(given: Sequence[Array]) -> Array:
        result = []
        for row in given[0][at : at + rows * count].reshape(rows, count).astype(np.int64):
            down = ((row.max() - row) * step) >> (bits - powers.FRACTION)
            powers_of = powers.halved(down)
            total, moved = int(powers_of.sum()), 0
            while total >> 31:
                total, moved = total >> 1, moved + 1
            by = (((1 << 62) // total) * factor) >> 32
            result.append(out.put((powers_of >> 1) * by, shift + moved))
        return np.concatenate(result)

    c = (
        f"{out.c()}\nedgemem_softmax(r0 + {at}, w, (uint32_t *)t, {rows}, {count}, {step}u, {bits - powers.FRACTION}, "
        f"{factor}u, {shift}, &out);"
    )
    return Operation("softmax", (x,), y, c, run, work_bytes=WORD_BYTES * count)


# --- rounding --------------------------------------------------------------------------------------------------------


def rounded_norm(lowering: Lowering, value: Norm, scale: float, out: Out) -> Operation:
    tensor, at = lowering.stretch(value.x.places)
    count = value.x.shape[-1]
    epsilon = max(1, round(value.epsilon / value.x.scale**2 * count**2))
    both, shift = whole_numbers(np.stack([value.gain, value.bias]) / scale, FACTOR_BITS - 2)
    gain, bias = (lowering.constant(part.astype(np.int32)) for part in both)
    target = lowering.result(value.shape, out.dtype)
    return layer_norm(tensor, at, gain, bias, target, epsilon, shift, out)


def rounded_softmax(lowering: Lowering, value: Softmax, scale: float, out: Out) -> Operation:
    tensor, at = lowering.stretch(value.x.places)
    steps, bits = whole_numbers(np.array([value.x.scale / math.log(2)]), FACTOR_BITS)
    if bits < powers.FRACTION:
        raise NotInteger(f"Softmax of steps of {value.x.scale:g}")
    factor, shift = whole_numbers(np.array([1.0 / scale]), FACTOR_BITS)
    count, target = value.shape[-1], lowering.result(value.shape, out.dtype)
    shift += 29  # powers in 30 bits, times 2^62 / sum * factor / 2^32, where the sum is that of powers in 31 bits
    if shift + count.bit_length() + 1 > SUM_BITS:
        raise NotInteger(f"Softmax of {count} elements to steps of {scale:g}")
    return softmax(tensor, at, target, count, int(steps[0]), bits, int(factor[0]), shift, out)


# --- rules -----------------------------------------------------------------------------------------------------------


def layer_normalization(lowering: Lowering, node: Any) -> Value:
    x = lowering.ints(lowering.value(node.input[0]))
    if attribute(node, "axis", -1) not in (-1, len(x.shape) - 1) or x.dtype != "int16":
        raise NotInteger("LayerNormalization over other axes than the last, or of int8,")
    gain = lowering.fixed(node.input[1]).reshape(-1)
    bias = lowering.fixed(node.input[2]).reshape(-1) if len(node.input) > 2 and node.input[2] else np.zeros_like(gain)
    count = x.shape[-1]
    gain, bias = (np.broadcast_to(part, (count,)) for part in (gain, bias))
    return Norm(x, gain, bias, float(attribute(node, "epsilon", 1e-5)))


def softmax_rule(lowering: Lowering, node: Any) -> Value:
    x = lowering.ints(lowering.value(node.input[0]))
    if attribute(node, "axis", -1) not in (-1, len(x.shape) - 1) or x.dtype != "int16":
        raise NotInteger("Softmax over another axis than the last, or of int8,")
    return Softmax(x)


RULES = {"LayerNormalization": layer_normalization, "Softmax": softmax_rule}
ROUNDED: dict[type, Any] = {Norm: rounded_norm, Softmax: rounded_softmax}
