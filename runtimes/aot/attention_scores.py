"""Scores of a few queries against a long cache, for as many of its rows at a time as a vector has lanes.

    q [1, heads, n, d], rows [1, length, heads, d]    ->    s [1, heads, n, length]

    s[h, i, j] = sum_d q[h, i, d] k[j, h, d]

    for each block of L rows, for each head and query:
        L vectors, one for each row: its head times the query, elementwise, summed over the d / L vectors of a head
        one vector: their lanes' sums, by log2 L rounds that halve the vectors and the lanes of each (`lane_sums`)

A row's lanes added by themselves would take as many additions as lanes have halves, for each query; all at once, a sum
takes one addition and two shuffles. Rows behind the last block take part in one that is not stored whole. While a block
is computed the next one is asked for: by itself memory would wait for the block to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import tirx

from edgemem.runtimes.aot.ahead import LINE_BYTES, ask
from edgemem.runtimes.aot.lowering import SHARED
from edgemem.runtimes.aot.schedules import OPAQUE, WRITTEN

Expr = Any
FLOAT = "float32"
LINE = LINE_BYTES // 4  # elements of what memory gives at once
HINT = "attend_scores"


def kernel(heads: int, count: int, length: int, width: int, lanes: int) -> Any:
    """The PrimFunc: q [1, heads, count, width], rows [1, length, heads, width] -> s [1, heads, count, length]."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name(HINT)
        T.func_attr({"op_pattern": OPAQUE, WRITTEN: "attention"})
        q = T.arg("q", T.buffer((1, heads, count, width), FLOAT))
        rows = T.arg("rows", T.buffer((1, length, heads, width), FLOAT))
        s = T.arg("s", T.buffer((1, heads, count, length), FLOAT))

        def block(first: Expr, present: int) -> None:
            """`present` rows from `first` on; the last stands in for those that are missing."""
            with T.serial(0, heads) as head, T.serial(0, count) as i:
                places = [first + min(row, present - 1) for row in range(lanes)]
                found = [product(q, rows, head, i, place, lanes) for place in places]
                total = part(lane_sums(found, lanes), present, lanes)
                T.buffer_store(s, total, [0, head, i, span(first, present)])
                if present == lanes > 1:
                    for line in range(share):
                        at = ((head * count + i) * share + line) * LINE
                        T.evaluate(ask(tirx.BufferLoad(rows, [0, first + lanes, 0, at])))

        whole, rest = divmod(length, lanes)
        share = -(-lanes * width // (count * LINE))  # lines of the next block to ask for in each turn
        with T.serial(0, whole + bool(rest), annotations={SHARED: 1}) as number:
            if not rest:
                block(number * lanes, lanes)
            else:
                with T.If(number < whole):
                    with T.Then():
                        block(number * lanes, lanes)
                    with T.Else():
                        block(tirx.const(whole * lanes, "int32"), rest)
    return made.get()


def span(first: Expr, lanes: int) -> Expr:
    """The index of so many neighbours."""
    return first if lanes == 1 else tirx.Ramp(first, 1, lanes)


def product(q: Any, rows: Any, head: Expr, i: int, row: Expr, lanes: int) -> Expr:
    """A vector whose lanes add up to one score."""
    terms = [
        tirx.BufferLoad(q, [0, head, i, span(tirx.const(place, "int32"), lanes)])
        * tirx.BufferLoad(rows, [0, row, head, span(tirx.const(place, "int32"), lanes)])
        for place in range(0, int(q.shape[-1]), lanes)
    ]
    return sum(terms[1:], terms[0])


def part(vector: Expr, present: int, lanes: int) -> Expr:
    """The first lanes of a vector."""
    return vector if present == lanes else shuffled([vector], range(present))


def shuffled(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Those lanes of the vectors laid end to end."""
    return tirx.Shuffle(list(vectors), [tirx.const(lane, "int32") for lane in lanes])


def lane_sums(vectors: Sequence[Expr], lanes: int) -> Expr:
    """The sums of the lanes of each of `lanes` vectors, in their order.

    [a0 a1 a2 a3]  [b0 b1 b2 b3]    ->   [a0 a1 b0 b1] + [a2 a3 b2 b3]    for two pairs of vectors
    [A0 A1 B0 B1]  [C0 C1 D0 D1]    ->   [A0 B0 C0 D0] + [A1 B1 C1 D1]
    """
    order = [int(name) for name in joined([[row] * lanes for row in range(lanes)], lanes, named)]
    placed = [vectors[order.index(row)] for row in range(lanes)]
    return joined(placed, lanes, added)


def joined(vectors: list[Any], lanes: int, pair: Any) -> Any:
    """One of `lanes` vectors, by rounds of `pair(a, b, lanes of the lower halves, of the upper)`.

    A round takes parts of whole registers of four lanes where it can, and else stays within them: both are one
    instruction where vectors are longer than that.
    """
    part = lanes // 2
    while part:
        within = max(4, 2 * part) if lanes >= 4 else lanes
        low, high = halves(lanes, part, within if part < 4 else lanes)
        vectors = [pair(a, b, low, high) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        part //= 2
    return vectors[0]


def halves(lanes: int, part: int, within: int) -> tuple[list[int], list[int]]:
    """Of two vectors, one behind the other: every even part of `part` lanes, and every odd one; by both in turn
    for every `within` lanes.
    """
    low = []
    for first in range(0, lanes, within):
        for vector in (0, lanes):
            for start in range(first, first + within, 2 * part):
                low += [vector + start + lane for lane in range(part)]
    return low, [lane + part for lane in low]


def added(a: Expr, b: Expr, low: Sequence[int], high: Sequence[int]) -> Expr:
    return shuffled([a, b], low) + shuffled([a, b], high)


def named(a: list[int], b: list[int], low: Sequence[int], high: Sequence[int]) -> list[int]:
    """What `added` makes of vectors whose lanes hold the numbers of their rows."""
    both = [*a, *b]
    assert [both[lane] for lane in low] == [both[lane] for lane in high]
    return [both[lane] for lane in low]
