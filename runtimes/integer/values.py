"""What a tensor of the ONNX graph stands for while it is lowered.

    Ints      elements of integer buffers: real = scale * (integer - zero)
    Wide      elements of float32 buffers: states that stay wide, and what is computed from them up to the next rounding
    Whole     elements of buffers of plain integers: counts, indices, masks (int8: 1 where true)
    Fixed     a constant, as the real numbers that it stands for
    Rows      rows of a constant table, looked up by an index that the step computes

    waiting   computed where it is rounded, by one operation: Terms, Quotient, RowSum, Root, Product, Pair, Norm,
              Softmax, Curve

An element is a number: which buffer it is in, times 2^32, plus its index there. So operators that only move values
(Reshape, Slice, Concat, Transpose) are NumPy's own, on arrays of such numbers, and cost nothing until a kernel has to
read what they made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
BUFFER_BITS = 32
MASK = (1 << BUFFER_BITS) - 1


@dataclass(frozen=True)
class Ints:
    """`places` [shape] of int64, see above."""

    places: Array
    dtype: str
    scale: float
    zero: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.places.shape)

    def moved(self, places: Array) -> Ints:
        return replace(self, places=places)


@dataclass(frozen=True)
class Wide:
    """`places` [shape] of float32 buffers."""

    places: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.places.shape)

    def moved(self, places: Array) -> Wide:
        return replace(self, places=places)


@dataclass(frozen=True)
class Whole:
    """`places` [shape] of buffers of int64, or of int8 with 0 and 1."""

    places: Array
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.places.shape)

    def moved(self, places: Array) -> Whole:
        return replace(self, places=places)


@dataclass(frozen=True)
class Fixed:
    """A constant; `scale` is that of its integers where it was stored as such, `scales` those of rows or columns."""

    real: Array
    scale: float | None = None
    scales: Array | None = None
    axis: int = 1  # of `scales`

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.real.shape)

    def moved(self, real: Array) -> Fixed:
        return replace(self, real=real, scales=None)


@dataclass(frozen=True)
class Rows:
    """Row `index` of `table` [rows, width], times the factor of the row, if there are `factors` [rows].

    `scale` is that of the table's integers, where it was stored as such.
    """

    table: Array
    index: Whole
    factors: Array | None = None
    scale: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.index.shape, self.table.shape[1])


@dataclass(frozen=True)
class Terms:
    """`terms`: a factor and one or two Ints each; `relu`: less than zero counts as zero."""

    shape: tuple[int, ...]
    terms: tuple[tuple[float, tuple[Ints, ...]], ...]
    relu: bool = False


@dataclass(frozen=True)
class Quotient:
    """`above` / `below`, element by element."""

    shape: tuple[int, ...]
    above: Ints
    below: Ints
    relu: bool = False


@dataclass(frozen=True)
class RowSum:
    """The sum over the last axis of x [shape, count], times `factor`."""

    shape: tuple[int, ...]
    x: Ints
    factor: float
    relu: bool = False


@dataclass(frozen=True)
class Root:
    """The square root; of less than zero it is zero."""

    x: Ints
    relu: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True)
class Product:
    """x [..., rows, depth] times w [depth, outputs], whose columns have `scales`; `bias` is real, by column.

    `turned`: the result has its last two axes the other way round, since the constant was the left factor.
    """

    shape: tuple[int, ...]
    x: Ints
    w: Array
    scales: Array
    bias: Array
    relu: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Pair:
    """x [..., rows, depth] times y [..., depth, outputs], both computed in the step."""

    shape: tuple[int, ...]
    x: Ints
    y: Ints
    relu: bool = False


@dataclass(frozen=True)
class Norm:
    """(x - mean) / sqrt(variance + epsilon) * gain + bias over the last axis."""

    x: Ints
    gain: Array
    bias: Array
    epsilon: float
    relu: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True)
class Softmax:
    """Over the last axis."""

    x: Ints
    relu: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(frozen=True)
class Curve:
    """A function of one number, element by element."""

    x: Ints
    name: str
    function: Callable[[Array], Array]
    relu: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


Waiting = Terms | Quotient | RowSum | Root | Product | Pair | Norm | Softmax | Curve
Value = Ints | Wide | Whole | Fixed | Rows | Waiting
WAITING = (Terms, Quotient, RowSum, Root, Product, Pair, Norm, Softmax, Curve)


def places_of(number: int, shape: tuple[int, ...]) -> Array:
    """All elements of a buffer, in order."""
    count = int(np.prod(shape, dtype=np.int64))
    return ((number << BUFFER_BITS) + np.arange(count, dtype=np.int64)).reshape(shape)
