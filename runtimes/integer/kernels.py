"""Operations on integer buffers, each in NumPy and as C. Both round a sum once, halves up, and clamp.

In the C text `r0`, `r1` … are the buffers that an operation reads, `w` is the one that it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemem.runtimes.aot.graph import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float", "int64": "int64_t"}
LIMITS = {"int8": (-128, 127), "int16": (-32768, 32767)}
ROUNDS = np.float32(12582912.0)  # 1.5 * 2^23
NORM_BITS = 16
UPPER_WORD = 33  # the least shift that leaves nothing of the lower 32 bits, rounding included
MOST_ROOM = 14  # bits above an int16 less its zero


@dataclass(frozen=True)
class Out:
    """How a result is stored: its type, what stands for zero, and the limits of it."""

    dtype: str
    zero: int
    low: int
    high: int

    def c(self) -> str:
        return f"const edgemem_out out = {{{np.dtype(self.dtype).itemsize}, {self.zero}, {self.low}, {self.high}}};"

    def put(self, value: Array, shift: int) -> Array:
        """Halves go up."""
        rounded = ((value + (1 << (shift - 1))) >> shift) + self.zero
        clipped: Array = np.clip(rounded, self.low, self.high).astype(self.dtype)
        return clipped


@dataclass(frozen=True)
class Operation:
    """One call of a step: flat arrays of `reads`, in order, give the flat array of `write`."""

    kind: str
    reads: tuple[Tensor, ...]
    write: Tensor
    c: str
    run: Callable[[Sequence[Array]], Array]


def product8(x: Tensor, at: int, w: Tensor, bias: Tensor, factor: Tensor, y: Tensor, depth: int, shift: int,
             out: Out) -> Operation:  # fmt: skip
    """int8 rows times int8 columns, stored [outputs, depth]."""
    outputs = bias.shape[0]
    rows = int(np.prod(y.shape)) // outputs

    def run(given: Sequence[Array]) -> Array:
        left = given[0][at : at + rows * depth].reshape(rows, depth).astype(np.int64)
        sums = left @ given[1].reshape(outputs, depth).T.astype(np.int64) + given[2]
        return out.put(sums * given[3].astype(np.int64), shift).reshape(-1)

    c = f"{out.c()}\nedgemem_product8(r0 + {at}, r1, r2, r3, w, {rows}, {outputs}, {depth}, {shift}, &out);"
    return Operation("product8", (x, w, bias, factor), y, c, run)


def product16(x: Tensor, at: int, w: Tensor, factor: Tensor, y: Tensor, depth: int, shift: int, out: Out) -> Operation:
    """int16 rows times int16 columns, stored [outputs, depth]."""
    outputs = factor.shape[0]
    rows = int(np.prod(y.shape)) // outputs

    def run(given: Sequence[Array]) -> Array:
        left = given[0][at : at + rows * depth].reshape(rows, depth).astype(np.int64)
        sums = left @ given[1].reshape(outputs, depth).T.astype(np.int64)
        return out.put(sums * given[2].astype(np.int64), shift).reshape(-1)

    c = f"{out.c()}\nedgemem_product16(r0 + {at}, r1, r2, w, {rows}, {outputs}, {depth}, {shift}, &out);"
    return Operation("product16", (x, w, factor), y, c, run)


@dataclass(frozen=True)
class Factor:
    """One integer operand of a term: buffer, first element, elements that repeat, what stands for zero."""

    tensor: Tensor
    at: int
    count: int
    zero: int


def sum_of_terms(terms: Sequence[tuple[int, Sequence[Factor]]], y: Tensor, at: int, count: int, shift: int,
                 out: Out, into: Tensor | None = None) -> Operation:  # fmt: skip
    """A sum of factors times one or two integers each, element by element, into y[at : at + count]."""
    factors = [factor for _, group in terms for factor in group]
    numbers = {id(factor): index for index, factor in enumerate(factors)}

    def run(given: Sequence[Array]) -> Array:
        total = np.zeros(count, np.int64)
        for weight, group in terms:
            part = np.full(count, weight, np.int64)
            for f in group:
                piece = given[numbers[id(f)]][f.at : f.at + f.count].astype(np.int64) - f.zero
                part = part * np.resize(piece, count)
            total += part
        return out.put(total, shift)

    def element(f: Factor) -> str:
        index = "0" if f.count == 1 else "i" if f.count == count else f"i % {f.count}"
        place = f"r{numbers[id(f)]}[{index if f.at == 0 else f'{f.at} + {index}'}]"
        return place if f.zero == 0 else f"({place} - ({f.zero}))"

    room = 0 if any(len(group) > 1 for _, group in terms) else min(MOST_ROOM, max(0, UPPER_WORD - shift))
    spread = f" * {1 << room}" if room else ""  # so that the upper word of a sum holds all of the result
    pieces = [f"(int64_t){weight} * ({factors_text(group, element)}{spread})" for weight, group in terms]
    c = f"""\
{out.c()}
int32_t i;
for (i = 0; i < {count}; ++i) edgemem_put(w, {at} + i, {" + ".join(pieces)}, {shift + room}, &out);"""
    return Operation("sum" if len(terms) > 1 else "scale", tuple(f.tensor for f in factors), y, c, run)


def factors_text(group: Sequence[Factor], element: Callable[[Factor], str]) -> str:
    """One integer, or the product of two in 32 bits."""
    parts = [element(f) for f in group]
    return parts[0] if len(parts) == 1 else f"((int32_t){parts[0]} * {parts[1]})"


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
            inverse = (1 << 62) // root(spread)
            even = (apart * (inverse >> 2)) >> (44 - moved)
            result.append(out.put(((even * given[1]) >> NORM_BITS) + given[2], shift))
        return np.concatenate(result)

    c = f"{out.c()}\nedgemem_layer_norm(r0 + {at}, r1, r2, w, {rows}, {count}, INT64_C({epsilon}), {shift}, &out);"
    return Operation("layer_norm", (x, gain, bias), y, c, run)


def root(value: int) -> int:
    """The whole root."""
    import math

    return math.isqrt(value)


def quantize(x: Tensor, at: int, y: Tensor, scale: float, out: Out) -> Operation:
    """float32 to integers: the nearest, ties to even."""
    count, step = int(np.prod(y.shape)), np.float32(scale)

    def run(given: Sequence[Array]) -> Array:
        low, high = np.float32(out.low - out.zero), np.float32(out.high - out.zero)
        value = np.clip(given[0][at : at + count] / step, low, high)
        return (((value + ROUNDS) - ROUNDS).astype(np.int32) + out.zero).astype(out.dtype)

    c = f"{out.c()}\nedgemem_quantize(r0 + {at}, w, {count}, {literal(step)}, &out);"
    return Operation("quantize", (x,), y, c, run)


def dequantize(x: Tensor, at: int, y: Tensor, scale: float, zero: int) -> Operation:
    """Integers to float32."""
    count, step = int(np.prod(y.shape)), np.float32(scale)

    def run(given: Sequence[Array]) -> Array:
        return (given[0][at : at + count].astype(np.int32) - zero).astype(np.float32) * step

    value = f"r0[{at} + i]" if zero == 0 else f"(r0[{at} + i] - ({zero}))"
    c = f"int32_t i;\nfor (i = 0; i < {count}; ++i) w[i] = (float){value} * {literal(step)};"
    return Operation("dequantize", (x,), y, c, run)


def wide(sign: str, left: Factor, right: Factor, y: Tensor) -> Operation:
    """`+`, `-`, `*` or `/` of float32, element by element: each rounded by itself on every core."""
    count = int(np.prod(y.shape))
    operator: Callable[[Array, Array], Array] = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[sign]

    def run(given: Sequence[Array]) -> Array:
        a, b = (np.resize(g[f.at : f.at + f.count], count) for g, f in zip(given, (left, right), strict=True))
        return operator(a, b).astype(np.float32)

    def element(name: str, f: Factor) -> str:
        index = "0" if f.count == 1 else "i" if f.count == count else f"i % {f.count}"
        return f"{name}[{f.at} + {index}]"

    c = f"int32_t i;\nfor (i = 0; i < {count}; ++i) w[i] = {element('r0', left)} {sign} {element('r1', right)};"
    return Operation("wide", (left.tensor, right.tensor), y, c, run)


def move(pieces: Sequence[tuple[Tensor, int, int]], y: Tensor) -> Operation:
    """Stretches of buffers (tensor, first element, count), one behind another."""

    def run(given: Sequence[Array]) -> Array:
        parts = [g[at : at + count] for g, (_, at, count) in zip(given, pieces, strict=True)]
        return np.concatenate(parts).astype(y.dtype)

    lines, done = [], 0
    for index, (_, at, count) in enumerate(pieces):
        lines.append(f"memcpy(w + {done}, r{index} + {at}, {count} * sizeof *w);")
        done += count
    return Operation("move", tuple(tensor for tensor, _, _ in pieces), y, "\n".join(lines), run)


def gather(x: Tensor, table: Tensor, y: Tensor) -> Operation:
    """Elements of a buffer in another order."""
    count = int(np.prod(y.shape))
    c = f"int32_t i;\nfor (i = 0; i < {count}; ++i) w[i] = r0[r1[i]];"
    return Operation("gather", (x, table), y, c, lambda given: given[0][given[1]])


def literal(value: np.float32) -> str:
    """A C literal that is exactly this number."""
    return f"{float(value).hex()}f"
