"""Narrow matrices [inputs, outputs], as a recogniser finds them and a kernel reads them.

Half    bits uint16 [K, N]                                     w = float16 of the bits
Int8    q int8 [K, N], scale float32 [N]                       w = q scale
Int4    q int8 of -8..7 [K, N], scale float32 [K / 32, N]      w = q scale, by groups of 32 inputs
Codes   codes [R, N, K / dim], books float32 [R, codes, dim], scale float32 [N]
                                                               w = scale sum_r book_r[code_r], dim inputs at a time
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from edgemem.runtimes.aot.schedules.matmul import Panel

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any
GROUP = 32
EIGHT = 8  # 4-bit weights in a word


@dataclass(frozen=True)
class Half:
    """float16 by its bits, so that a core without half precision can widen it in integers."""

    bits: Array
    kernel = "f16"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.bits), int(self.bits.shape[1])


@dataclass(frozen=True)
class Int8:
    """One scale per output."""

    q: Array
    scale: Array
    kernel = "w8"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q), int(self.q.shape[1])


@dataclass(frozen=True)
class Int4:
    """One scale per output and 32 inputs."""

    q: Array
    scale: Array
    kernel = "w4"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q), int(self.q.shape[1])


@dataclass(frozen=True)
class Codes:
    """Vectors of `dim` inputs from one or several codebooks."""

    codes: Array
    books: Array
    scale: Array
    kernel = "vq"

    @property
    def dim(self) -> int:
        return int(self.books.shape[2])

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[2] * self.dim, self.codes.shape[1]


Narrow = Half | Int8 | Int4 | Codes


def widened(bits: Expr) -> Expr:
    """The float32 of a float16 given as uint16, in integer arithmetic: any core, no library, exact if it is finite.

    Exponent and fraction move to their places in a float32, whose exponent is then too small by 112. A subnormal
    float16 is a fraction of 2^-14: with 1 in front of it, which is taken off again. No float32 on the way is
    subnormal, for these may count as zero.
    """

    def number(value: int) -> Expr:
        return tirx.const(value, "uint32")

    word = bits.astype("uint32")
    sign = (word & number(0x8000)) << number(16)
    magnitude = ((word & number(0x7FFF)) << number(13)) + number(112 << 23)
    least = number(113 << 23)  # the smallest normal float16, 2^-14
    fraction = tirx.reinterpret("float32", magnitude + number(1 << 23)) - tirx.reinterpret("float32", least)
    whole = tirx.Select(magnitude < least, tirx.reinterpret("uint32", fraction), magnitude)
    return tirx.reinterpret("float32", whole | sign)


def nibbles(panel: Panel, q: Array) -> Array:
    """-8..7 [K, N] -> int32 [N / P, K / 8, P]: the weight plus 8 of input i among eight in bits 4 i to 4 i + 3."""
    bits = panel.packed((q + 8).astype(np.uint32)).reshape(panel.count, -1, EIGHT, panel.columns)
    shifts = np.arange(0, 4 * EIGHT, 4, dtype=np.uint32)[:, None]
    return np.ascontiguousarray(np.bitwise_or.reduce(bits << shifts, axis=2)).view(np.int32)


def quads(panel: Panel, q: Array) -> Array:
    """int8 [K, N] as int32 [N / P, K / 4, P]: four inputs of a column in a word, the first in its lowest byte."""
    q = np.pad(q, ((0, -len(q) % 4), (0, 0)))
    fours = np.ascontiguousarray(
        panel.packed(q).reshape(panel.count, len(q) // 4, 4, panel.columns).transpose(0, 1, 3, 2)
    )
    return fours.view("<i4")[..., 0].astype(np.int32)
