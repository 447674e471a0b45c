"""Gather of a row by an index that the step computes: a token's embedding.

Mul(Cast(Gather(q, i)), Gather(scales, i))    int8 rows, one whole factor for each
Gather(W, i)                                  rows rounded beforehand to what the step keeps
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import FACTOR_BITS, SUM_BITS, whole_numbers
from edgemem.runtimes.integer.operation import LIMITS, Array, Operand, Operation, Out, elementwise
from edgemem.runtimes.integer.values import Fixed, Ints, Rows, Whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgemem.runtimes.integer.lower import Lowering


def take(index: Operand, table: Tensor, y: Tensor) -> Operation:
    """Rows of a table as they are."""
    width, count = table.shape[1], index.places.size

    def run(given: Sequence[Array]) -> Array:
        taken: Array = given[1].reshape(-1, width)[given[0][index.index()]]
        return taken.reshape(-1)

    def statement(reads: Sequence[str]) -> str:
        return f"memcpy(w + i * {width}, r1 + {reads[0]} * {width}, {width} * sizeof *w);"

    c = elementwise("take", [index], y, statement, lambda given: given[0]).c
    assert count * width == int(np.prod(y.shape))
    return Operation("take", (index.tensor, table), y, c, run)


def take_scaled(index: Operand, table: Tensor, factors: Tensor, y: Tensor, shift: int, out: Out) -> Operation:
    """Rows of int8, each times its factor."""
    width = table.shape[1]

    def run(given: Sequence[Array]) -> Array:
        which = given[0][index.index()]
        chosen = given[1].reshape(-1, width)[which].astype(np.int64) * given[2][which].astype(np.int64)[:, None]
        return out.put(chosen, shift).reshape(-1)

    def statement(reads: Sequence[str]) -> str:
        return (
            f"edgemem_row(r1 + {reads[0]} * {width}, r2[{reads[0]}], w, i * {width}, {width}, {shift}, &out);"
        )  # fmt: skip

    c = elementwise("take", [index], y, statement, lambda given: given[0], [out.c()]).c
    return Operation("take", (index.tensor, table, factors), y, c, run)


def looked_up(table: Fixed, index: Whole) -> Rows:
    """The value of a Gather over the first axis."""
    if table.real.ndim != 2:
        raise NotInteger(f"Gather by a computed index from a table of {table.real.ndim} axes")
    return Rows(table.real, index, scale=table.scale)


def scaled(left: Rows, right: Rows) -> Rows:
    """Rows times a factor of the same row."""
    if left.table.shape[1] == 1:
        left, right = right, left
    same = left.index.places.shape == right.index.places.shape and (left.index.places == right.index.places).all()
    if right.table.shape[1] != 1 or left.factors is not None or not same:
        raise NotInteger("Mul of two different rows of tables")
    return Rows(left.table, left.index, right.table[:, 0])


def rounded_rows(lowering: Lowering, value: Rows, scale: float, out: Out) -> Operation:
    index = lowering.operand(value.index.places, value.index.shape)
    target = lowering.result(value.shape, out.dtype)
    if value.factors is not None and np.abs(value.table).max(initial=0) <= LIMITS["int8"][1]:
        factors, shift = whole_numbers(value.factors / scale, min(FACTOR_BITS, SUM_BITS - 8))
        table = lowering.constant(value.table.astype(np.int8))
        return take_scaled(index, table, lowering.constant(factors.astype(np.int32)), target, shift, out)
    real = value.table if value.factors is None else value.table * value.factors[:, None]
    q = np.clip(np.rint(real / scale) + out.zero, out.low, out.high).astype(out.dtype)
    return take(index, lowering.constant(q), target)


def as_ints(lowering: Lowering, value: Rows) -> Ints:
    """Rows of a table that is stored as integers, without another rounding."""
    if value.scale is None or value.factors is not None:
        raise NotInteger("rows of a float table are used before they are rounded")
    low, high = LIMITS["int16"]
    places = lowering.round(value, value.scale, Out("int16", 0, low, high))
    return Ints(places.reshape(value.shape), "int16", value.scale, 0)


ROUNDED: dict[type, Any] = {Rows: rounded_rows}
