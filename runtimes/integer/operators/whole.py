"""Counts and masks: Less, Greater, Equal, Not, And, Or, Clip, Cast, Where. A mask is int8, 1 where true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.operation import LIMITS, Array, Operand, Operation, Out, elementwise
from edgemem.runtimes.integer.values import Fixed, Ints, Rows, Terms, Value, Whole, Wide

if TYPE_CHECKING:
    from edgemem.runtimes.aot.graph import Tensor
    from edgemem.runtimes.integer.lower import Lowering

COMPARISONS: dict[str, tuple[str, Callable[[Array, Array], Array]]] = {
    "Less": ("<", np.less),
    "LessOrEqual": ("<=", np.less_equal),
    "Greater": (">", np.greater),
    "GreaterOrEqual": (">=", np.greater_equal),
    "Equal": ("==", np.equal),
    "And": ("&", np.logical_and),
    "Or": ("|", np.logical_or),
}


def compare(sign: str, function: Callable[[Array, Array], Array], left: Operand, right: Operand,
            y: Tensor) -> Operation:  # fmt: skip
    """1 where it holds."""

    def statement(reads: Sequence[str]) -> str:
        return f"w[i] = (int8_t)({reads[0]} {sign} {reads[1]});"

    return elementwise("compare", [left, right], y, statement, lambda g: function(g[0], g[1]).astype(np.int8))


def select(mask: Operand, one: Operand, other: Operand, y: Tensor) -> Operation:
    """One where the mask holds, else the other."""

    def statement(reads: Sequence[str]) -> str:
        return f"w[i] = {reads[0]} ? {reads[1]} : {reads[2]};"

    return elementwise("select", [mask, one, other], y, statement, lambda g: np.where(g[0] != 0, g[1], g[2]))


def clip(x: Operand, low: int, high: int, y: Tensor) -> Operation:
    """Not less than `low`, not more than `high`."""

    def statement(reads: Sequence[str]) -> str:
        return f"w[i] = {reads[0]} < {low} ? {low} : {reads[0]} > {high} ? {high} : {reads[0]};"

    return elementwise("clip", [x], y, statement, lambda given: np.clip(given[0], low, high))


def as_float(x: Operand, y: Tensor) -> Operation:
    """Whole numbers as float32."""
    return elementwise("cast", [x], y, lambda r: f"w[i] = (float){r[0]};", lambda g: g[0].astype(np.float32))


# The least integer that is at least a bound, or the largest that is at most: comparisons of steps with a bound.
BOUNDS: dict[str, Callable[[Array], Array]] = {
    "Less": np.ceil, "GreaterOrEqual": np.ceil, "LessOrEqual": np.floor, "Greater": np.floor,
}  # fmt: skip


def total(left: Operand, right: Operand, sign: int, y: Tensor) -> Operation:
    """A sum or a difference of counts."""

    def statement(reads: Sequence[str]) -> str:
        return f"w[i] = (int64_t){reads[0]} {'+' if sign > 0 else '-'} {reads[1]};"

    return elementwise(
        "count", [left, right], y, statement, lambda g: g[0].astype(np.int64) + sign * g[1].astype(np.int64)
    )


# --- rules -----------------------------------------------------------------------------------------------------------


def comparison(lowering: Lowering, node: Any) -> Value:
    sign, function = COMPARISONS[node.op_type]
    values = [lowering.value(name) for name in node.input]
    if all(isinstance(value, Fixed) for value in values):
        return Fixed(function(values[0].real, values[1].real).astype(np.float64))  # type: ignore[union-attr]
    if isinstance(values[0], Ints) and isinstance(values[1], Fixed) and node.op_type in BOUNDS:
        x = values[0]
        bound = BOUNDS[node.op_type](values[1].real / x.scale + x.zero)
        places = [x.places, lowering.places(np.clip(bound, -(2**31), 2**31 - 1).astype(np.int32))]
    elif any(isinstance(value, Wide) for value in values):
        places = [lowering.as_wide(value).places for value in values]
    else:
        places = [counted(lowering, value) for value in values]
    shape = np.broadcast_shapes(*(value.shape for value in values))
    left, right = (lowering.operand(p, shape) for p in places)
    return Whole(lowering.add(compare(sign, function, left, right, lowering.result(shape, "int8"))), "int8")


def added(lowering: Lowering, left: Value, right: Value, sign: int) -> Whole:
    """Add or Sub of counts."""
    shape = np.broadcast_shapes(left.shape, right.shape)
    a, b = (lowering.operand(counted(lowering, value), shape) for value in (left, right))
    return Whole(lowering.add(total(a, b, sign, lowering.result(shape, "int64"))), "int64")


def counted(lowering: Lowering, value: Value) -> Array:
    """The elements of a count or a mask; of a constant, in the narrowest integers that hold it."""
    if isinstance(value, Whole):
        return value.places
    if not isinstance(value, Fixed) or (value.real != np.rint(value.real)).any():
        raise NotInteger("a comparison of rounded numbers")
    return lowering.places(narrow(value.real))


def narrow(real: Array) -> Array:
    """Whole numbers as int8, int16 or int32, whichever is the first to hold all."""
    kinds = ("int8", "int16", "int32")
    return real.astype(next(k for k in kinds if np.abs(real).max(initial=0) <= np.iinfo(k).max or k == kinds[-1]))


def negation(lowering: Lowering, node: Any) -> Value:
    value = lowering.value(node.input[0])
    if isinstance(value, Fixed):
        return Fixed((value.real == 0).astype(np.float64))
    zero = lowering.operand(counted(lowering, Fixed(np.zeros(1))), value.shape)
    mask = lowering.operand(counted(lowering, value), value.shape)
    return Whole(lowering.add(compare("==", np.equal, mask, zero, lowering.result(value.shape, "int8"))), "int8")


def clamp(lowering: Lowering, node: Any) -> Value:
    value = lowering.value(node.input[0])
    if not isinstance(value, Whole):
        raise NotInteger("Clip of numbers that are not whole")
    kind = np.iinfo(value.dtype)
    limits = [int(lowering.fixed(name)) if name else None for name in (*node.input[1:3], "", "")[:2]]
    low, high = (
        default if limit is None else limit for limit, default in zip(limits, (kind.min, kind.max), strict=True)
    )
    x = lowering.operand(value.places, value.shape)
    return value.moved(lowering.add(clip(x, low, high, lowering.result(value.shape, value.dtype))))


def cast(lowering: Lowering, node: Any) -> Value:
    from onnx import TensorProto, helper

    value, to = lowering.value(node.input[0]), next(a.i for a in node.attribute if a.name == "to")
    if isinstance(value, (Fixed, Rows)):
        return value
    if isinstance(value, Wide) and to == TensorProto.FLOAT:
        return value
    if not isinstance(value, Whole):
        raise NotInteger(f"Cast of rounded numbers to {helper.tensor_dtype_to_np_dtype(to)}")
    if to == TensorProto.FLOAT and value.dtype == "int8":
        return Ints(value.places, "int8", 1.0, 0)
    if to == TensorProto.FLOAT:
        x = lowering.operand(value.places, value.shape)
        return Wide(lowering.add(as_float(x, lowering.result(value.shape, "float32"))))
    if to == TensorProto.BOOL and value.dtype != "int8":
        x = lowering.operand(value.places, value.shape)
        zero = lowering.operand(counted(lowering, Fixed(np.zeros(1))), value.shape)
        return Whole(lowering.add(compare("!=", np.not_equal, x, zero, lowering.result(value.shape, "int8"))), "int8")
    return value


def where(lowering: Lowering, node: Any) -> Value:
    mask, one, other = (lowering.value(name) for name in node.input)
    shape = np.broadcast_shapes(mask.shape, one.shape, other.shape)
    if isinstance(mask, Fixed) and isinstance(one, Fixed) and isinstance(other, Fixed):
        return Fixed(np.where(mask.real != 0, one.real, other.real), one.scale)
    if isinstance(one, Wide) or isinstance(other, Wide):
        a, b = lowering.as_wide(one).places, lowering.as_wide(other).places
        return Wide(chosen(lowering, mask, a, b, shape, "float32"))
    like = next((v for v in (one, other) if isinstance(v, Ints)), None) or lowering.ints(one)
    a, b = (in_steps(lowering, value, like).places for value in (one, other))
    return like.moved(chosen(lowering, mask, a, b, shape, like.dtype))


def in_steps(lowering: Lowering, value: Value, like: Ints) -> Ints:
    """A value in the steps of another."""
    if isinstance(value, Fixed):
        low, high = LIMITS[like.dtype]
        q = np.clip(np.rint(value.real / like.scale) + like.zero, low, high).astype(like.dtype)
        return like.moved(lowering.places(q))
    found = lowering.ints(value)
    if (found.dtype, found.zero) == (like.dtype, like.zero) and np.isclose(found.scale, like.scale):
        return found
    if like.dtype != "int16":
        raise NotInteger("Where or Concat of different scales of int8")
    low, high = LIMITS[like.dtype]
    terms = Terms(found.shape, ((found.scale, (found,)),))
    return like.moved(lowering.round(terms, like.scale, Out(like.dtype, like.zero, low, high)).reshape(found.shape))


def chosen(lowering: Lowering, mask: Value, one: Array, other: Array, shape: tuple[int, ...], dtype: str) -> Array:
    """The elements of a Where."""
    if isinstance(mask, Fixed):
        return np.where(*np.broadcast_arrays(mask.real != 0, one, other))
    if not isinstance(mask, Whole):
        raise NotInteger("Where of a mask that is no comparison")
    when, a, b = (lowering.operand(places, shape) for places in (mask.places, one, other))
    return lowering.add(select(when, a, b, lowering.result(shape, dtype)))


RULES = {
    **dict.fromkeys(COMPARISONS, comparison), "Not": negation, "Clip": clamp, "Cast": cast, "Where": where,
}  # fmt: skip
