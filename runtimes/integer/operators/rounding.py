"""QuantizeLinear: the rounding of whatever waits, one operation. DequantizeLinear: what integers stand for, none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import attribute
from edgemem.runtimes.integer.operation import LIMITS, Out
from edgemem.runtimes.integer.operators import wide
from edgemem.runtimes.integer.values import Array, Fixed, Ints, Rows, Terms, Value, Whole, Wide

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering


def quantize_linear(lowering: Lowering, node: Any) -> Value:
    value, (scale, zero, dtype) = lowering.value(node.input[0]), quantizer(lowering, node)
    if isinstance(value, Ints) and (value.scale, value.zero, value.dtype) == (scale, zero, dtype):
        return value
    if isinstance(value, Fixed):
        low, high = LIMITS[dtype]
        return Fixed((np.clip(np.rint(value.real / scale) + zero, low, high) - zero) * scale, scale)
    if isinstance(value, Whole):
        raise NotInteger("QuantizeLinear of a count")
    columns = isinstance(value, Ints) and len(value.shape) > 1 and lowering.only_right_factor(node)
    if isinstance(value, Ints):
        places = np.swapaxes(value.places, -1, -2) if columns else value.places  # as a product reads it: by column
        value = Terms(tuple(places.shape), ((value.scale, (value.moved(places),)),))
    made = rounded(lowering, value, scale, zero, dtype).reshape(value.shape)
    return Ints(np.swapaxes(made, -1, -2) if columns else made, dtype, scale, zero)


def rounded(lowering: Lowering, value: Any, scale: float, zero: int, dtype: str) -> Array:
    """The operation that computes and rounds a value; its elements."""
    low, high = LIMITS[dtype]
    relu = not isinstance(value, (Wide, Rows)) and value.relu
    out = Out(dtype, zero, max(low, zero) if relu else low, high)
    if isinstance(value, Wide):
        tensor, at = lowering.stretch(value.places)
        return lowering.add(wide.quantize(tensor, at, lowering.result(value.shape, dtype), scale, out))
    return lowering.round(value, scale, out)


def quantizer(lowering: Lowering, node: Any) -> tuple[float, int, str]:
    """Scale, zero and type of a QuantizeLinear or DequantizeLinear of one scale; uint8 as int8."""
    scale, zero = lowering.plain.get(node.input[1]), np.zeros((), np.int16)
    if len(node.input) > 2:
        zero = lowering.plain[node.input[2]]
    if scale is None or scale.size != 1 or zero.size != 1:
        raise NotInteger(f"{node.op_type} with scales by channel, of what is no constant,")
    kind = str(zero.dtype)
    if kind == "uint8":
        return float(scale), int(zero) - 128, "int8"
    if kind not in LIMITS:
        raise NotInteger(f"{node.op_type} to {kind}")
    return float(scale), int(zero), kind


def dequantize_linear(lowering: Lowering, node: Any) -> Value:
    if node.input[0] in lowering.plain:
        return stored(lowering, node)
    value = lowering.value(node.input[0])
    if isinstance(value, Fixed):
        return value
    scale, zero, dtype = quantizer(lowering, node)
    return Ints(lowering.ints(value).places, dtype, scale, zero)


def stored(lowering: Lowering, node: Any) -> Fixed:
    """A constant that is stored as integers, with one scale or one along an axis."""
    q, scales = lowering.plain[node.input[0]].astype(np.float64), lowering.fixed(node.input[1])
    zeros = lowering.plain[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(())
    if scales.size == 1:
        return Fixed((q - zeros) * scales.reshape(()), float(scales.reshape(())))
    axis, shape = attribute(node, "axis", 1) % q.ndim, [1] * q.ndim
    shape[axis] = -1
    real = (q - zeros.reshape(-1 if zeros.size == 1 else shape)) * scales.reshape(shape)
    return Fixed(real, None, scales.reshape(-1) if q.ndim == 2 else None, axis)


RULES = {"QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear}
