"""What a tensor of the ONNX graph stands for while it is lowered.

    Ints      elements of integer buffers: real = scale * (integer - zero)
    Wide      elements of float32 buffers, of states that stay wide and what updates them
    Fixed     a constant, as the real numbers that it stands for
    Terms     a sum of products of Ints that waits for its rounding: real = sum of scale * product of (integer - zero)
    Product   a matrix product with its bias that waits
    Norm      a layer norm that waits

An element is a number: which buffer it is in, times 2^32, plus its index there. So operators that only move values
(Reshape, Slice, Concat, Transpose) are NumPy's own, on arrays of such numbers, and cost nothing until a kernel has to
read what they made.
"""

from __future__ import annotations

import itertools
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
class Fixed:
    """A constant; `scale` is that of its integers where it was stored as such."""

    real: Array
    scale: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.real.shape)

    def moved(self, real: Array) -> Fixed:
        return replace(self, real=real)


@dataclass(frozen=True)
class Terms:
    """`terms`: a factor and one or two Ints each; `relu`: less than zero counts as zero."""

    shape: tuple[int, ...]
    terms: tuple[tuple[float, tuple[Ints, ...]], ...]
    relu: bool = False


@dataclass(frozen=True)
class Product:
    """x [..., rows, depth] times w [depth, outputs], whose columns have `scales`; `bias` is real, by column."""

    shape: tuple[int, ...]
    x: Ints
    w: Array
    scales: Array
    bias: Array
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


Waiting = Terms | Product | Norm
Value = Ints | Wide | Fixed | Waiting


def places_of(number: int, shape: tuple[int, ...]) -> Array:
    """All elements of a buffer, in order."""
    count = int(np.prod(shape, dtype=np.int64))
    return ((number << BUFFER_BITS) + np.arange(count, dtype=np.int64)).reshape(shape)


def runs(places: Array) -> list[tuple[int, int, int]]:
    """Buffer, first element and count of every stretch of elements that lie side by side, in order."""
    flat = places.reshape(-1)
    breaks = np.flatnonzero(np.diff(flat) != 1) + 1
    starts = [0, *breaks.tolist(), len(flat)]
    return [(int(flat[a]) >> BUFFER_BITS, int(flat[a]) & MASK, b - a) for a, b in itertools.pairwise(starts)]
