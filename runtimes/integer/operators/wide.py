"""Numbers that no int16 holds: states that stay float32, and what is computed from them up to the next rounding.

A log-domain state starts at -1e30 and sums beside it grow as long as a stream does, so no scale is given for them. Add,
Sub, Mul, Div, Max and Min of float32 are exact to the bit wherever IEEE 754 holds, by instructions of an FPU or by the
integers of the compiler's own library; each result is stored, so that none is fused. Exp is made of integers here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer import powers
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.operation import Array, Operand, Operation, Out, elementwise, literal
from edgemem.runtimes.integer.values import Value, Wide

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering

ROUNDS = np.float32(12582912.0)  # 1.5 * 2^23
OPERATORS: dict[str, tuple[Callable[[Array, Array], Array], str]] = {
    "+": (np.add, "{0} + {1}"),
    "-": (np.subtract, "{0} - {1}"),
    "*": (np.multiply, "{0} * {1}"),
    "/": (np.divide, "{0} / {1}"),
    "max": (lambda a, b: np.where(a > b, a, b), "{0} > {1} ? {0} : {1}"),
    "min": (lambda a, b: np.where(a < b, a, b), "{0} < {1} ? {0} : {1}"),
}


# --- kernels ---------------------------------------------------------------------------------------------------------


def binary(sign: str, left: Operand, right: Operand, y: Tensor) -> Operation:
    """Two float32, element by element: each rounded by itself on every core."""
    function, text = OPERATORS[sign]

    def compute(given: Sequence[Array]) -> Array:
        with np.errstate(all="ignore"):
            return function(given[0], given[1]).astype(np.float32)

    return elementwise("wide", [left, right], y, lambda reads: f"w[i] = {text.format(*reads)};", compute)


def exponential(x: Tensor, at: int, y: Tensor) -> Operation:
    """e^x, see c/edgemem_power.c."""
    count = int(np.prod(y.shape))
    c = f"edgemem_exponential(r0 + {at}, w, {count});"
    return Operation("exponential", (x,), y, c, lambda given: powers.exponential(given[0][at : at + count]))


def quantize(x: Tensor, at: int, y: Tensor, scale: float, out: Out) -> Operation:
    """float32 to integers: the nearest, ties to even."""
    count, step = int(np.prod(y.shape)), np.float32(scale)

    def run(given: Sequence[Array]) -> Array:
        low, high = np.float32(out.low - out.zero), np.float32(out.high - out.zero)
        value = np.nan_to_num(given[0][at : at + count] / step, nan=float(low))
        rounded: Array = (np.clip(value, low, high) + ROUNDS) - ROUNDS
        return (rounded.astype(np.int32) + out.zero).astype(out.dtype)

    c = f"{out.c()}\nedgemem_quantize(r0 + {at}, w, {count}, {literal(step)}, &out);"
    return Operation("quantize", (x,), y, c, run)


def dequantize(x: Operand, y: Tensor, scale: float) -> Operation:
    """Integers to float32."""
    step = np.float32(scale)

    def compute(given: Sequence[Array]) -> Array:
        return (given[0].astype(np.int32) - x.zero).astype(np.float32) * step

    return elementwise("dequantize", [x], y, lambda reads: f"w[i] = (float){reads[0]} * {literal(step)};", compute)


def sum_of_rows(x: Tensor, at: int, y: Tensor, count: int) -> Operation:
    """The sum of every `count` neighbours, from the first to the last."""
    rows = int(np.prod(y.shape))

    def run(given: Sequence[Array]) -> Array:
        columns: Array = given[0][at : at + rows * count].reshape(rows, count).T
        total: Array = columns[0].copy()
        for column in columns[1:]:
            total += column
        return total

    c = f"""\
int32_t i, k;
for (i = 0; i < {rows}; ++i) {{
    float sum = r0[{at} + i * {count}];
    for (k = 1; k < {count}; ++k) sum += r0[{at} + i * {count} + k];
    w[i] = sum;
}}"""
    return Operation("wide_sum", (x,), y, c, run)


# --- rules -----------------------------------------------------------------------------------------------------------


def both(lowering: Lowering, sign: str, left: Value, right: Value) -> Wide:
    """An operator of two values, at least one of them wide."""
    a, b = lowering.as_wide(left), lowering.as_wide(right)
    shape = np.broadcast_shapes(a.shape, b.shape)
    operands = (lowering.operand(a.places, shape), lowering.operand(b.places, shape))
    return Wide(lowering.add(binary(sign, *operands, lowering.result(shape, "float32"))))


def extreme(lowering: Lowering, node: Any) -> Value:
    values = [lowering.value(name) for name in node.input]
    if not any(isinstance(value, Wide) for value in values):
        raise NotInteger(f"{node.op_type} of integers")
    found = values[0]
    for other in values[1:]:
        found = both(lowering, node.op_type.lower(), found, other)
    return found


RULES = {"Max": extreme, "Min": extreme}
