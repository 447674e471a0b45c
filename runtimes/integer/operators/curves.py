"""Sigmoid, Tanh, Exp, Erf, Softplus: tables between whose entries results lie on straight lines.

A table is as short as keeps every one of the 65,536 results as near the true one as int16 allows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.operation import LIMITS, Array, Operand, Operation, Out, elementwise
from edgemem.runtimes.integer.operators import wide
from edgemem.runtimes.integer.values import Curve, Fixed, Value, Wide

if TYPE_CHECKING:
    from edgemem.runtimes.integer.lower import Lowering

WIDEST, NARROWEST = 12, 4  # bits of x between two entries: tables of 17 to 4097
NEAR = 1.25  # steps of the result: half of one for an entry, half for the result, and the bend of the curve
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "Sigmoid": lambda x: 0.5 * (1.0 + np.tanh(0.5 * x)),
    "Tanh": np.tanh,
    "Exp": lambda x: np.exp(np.minimum(x, 700.0)),
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "Softplus": lambda x: np.logaddexp(0.0, x),
}


def curve(x: Operand, table: Tensor, y: Tensor, bits: int, shift: int, out: Out) -> Operation:
    """Between entry x >> bits of a table of int16 and the next, counted from the least x."""

    def line(given: Array, entries: Array) -> Array:
        from_least = given.astype(np.int64) - LIMITS["int16"][0]
        low, high = (entries.astype(np.int64)[(from_least >> bits) + more] for more in (0, 1))
        return out.put((low << bits) + (high - low) * (from_least & ((1 << bits) - 1)), shift)

    def run(given: Sequence[Array]) -> Array:
        return line(given[0][x.index()], given[1])

    def statement(reads: Sequence[str]) -> str:
        return f"edgemem_put(w, i, edgemem_line({reads[0]}, r1, {bits}), {shift}, &out);"

    base = elementwise("curve", [x], y, statement, lambda given: given[0], [out.c()])
    return Operation("curve", (x.tensor, table), y, base.c, run, base.in_place)


def tabled(function: Callable[[Array], Array], bits: int, scale: float, out: Out) -> tuple[Array, int]:
    """A table with an entry every 2^bits steps, and the shift of what lies on its lines; results are in steps."""
    at = np.arange(0, 2**16 + 1, 2**bits) + LIMITS["int16"][0]
    real = np.clip(function(at * scale), out.low - out.zero - 1, out.high - out.zero + 1)
    more = 0
    while np.abs(real).max() * 2 ** (more + 1) <= LIMITS["int16"][1] and more < bits:
        more += 1
    return np.clip(np.rint(real * 2.0**more), *LIMITS["int16"]).astype(np.int16), bits + more


def rounded_curve(lowering: Lowering, value: Curve, scale: float, out: Out) -> Operation:
    def steps(x: Array) -> Array:
        found: Array = value.function(x - value.x.scale * value.x.zero) / scale
        return found

    every = np.arange(*LIMITS["int16"]).astype(np.int16)
    true = np.clip(steps(every * value.x.scale) + out.zero, out.low, out.high)
    x = lowering.operand(value.x.places, value.shape)
    all_x = Operand(Tensor(0, "input", "", every.shape, "int16"), np.arange(every.size))
    all_y = Tensor(1, "call", "", every.shape, out.dtype)
    for bits in range(WIDEST, NARROWEST - 1, -1):
        table, shift = tabled(steps, bits, value.x.scale, out)
        trial = curve(all_x, Tensor(2, "constant", "", table.shape, "int16"), all_y, bits, shift, out)
        if np.abs(trial.run([every, table]) - true).max() <= NEAR:
            target = lowering.result(value.shape, out.dtype)
            return curve(x, lowering.constant(table), target, bits, shift, out)
    raise NotInteger(f"{value.name} is too steep for a table: steps of {value.x.scale:g} to steps of {scale:g}")


def rule(lowering: Lowering, node: Any) -> Value:
    value, name = lowering.value(node.input[0]), node.op_type
    if isinstance(value, Fixed):
        return Fixed(FUNCTIONS[name](value.real))
    if isinstance(value, Wide):
        if name != "Exp":
            raise NotInteger(f"{name} of a wide number")
        tensor, at = lowering.stretch(value.places)
        return Wide(lowering.add(wide.exponential(tensor, at, lowering.result(value.shape, "float32"))))
    x = lowering.ints(value)
    if x.dtype != "int16":
        raise NotInteger(f"{name} of {x.dtype}")
    return Curve(x, name, FUNCTIONS[name])


RULES = dict.fromkeys(FUNCTIONS, rule)
ROUNDED: dict[type, Any] = {Curve: rounded_curve}
