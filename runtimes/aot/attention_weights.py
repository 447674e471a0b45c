"""Weights of attention to a long cache, not divided by their sum: what they weigh is shorter, and divided instead.

    s [1, heads, n, length]    ->    p [1, heads, n, length], inverse [1, heads, n, 1]

    top = max_j s[j]        p[j] = e^(s[j] - top)        inverse = 1 / sum_j p[j]

Each row is read twice and written once; a softmax would read and write it once more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from edgemem.runtimes.aot import mathops
from edgemem.runtimes.aot.lowering import SHARED
from edgemem.runtimes.aot.schedules import OPAQUE, WRITTEN

Expr = Any
FLOAT = "float32"
HINT = "attend_weights"
SIDE_BY_SIDE = 2  # vectors of partial results: one alone would wait for itself


def kernel(heads: int, count: int, length: int, lanes: int) -> Any:
    """The PrimFunc: s -> p, inverse."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    wide = SIDE_BY_SIDE * lanes
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name(HINT)
        T.func_attr({"op_pattern": OPAQUE, WRITTEN: "attention"})
        s = T.arg("s", T.buffer((1, heads, count, length), FLOAT))
        p = T.arg("p", T.buffer((1, heads, count, length), FLOAT))
        inverse = T.arg("inverse", T.buffer((1, heads, count, 1), FLOAT))
        with T.sblock("root"):  # TVM looks for one where a result has an argument's shape
            tops, sums = (T.sblock_alloc_buffer((wide,), FLOAT) for _ in range(2))

            def compare(place: list[Expr], into: Any, lane: Expr) -> None:
                T.buffer_store(into, tirx.max(tirx.BufferLoad(into, [lane]), tirx.BufferLoad(s, place)), [lane])

            def weigh(place: list[Expr], into: Any, lane: Expr) -> None:
                T.buffer_store(p, mathops.exp(tirx.BufferLoad(s, place) - tirx.BufferLoad(tops, [0])), place)
                T.buffer_store(into, tirx.BufferLoad(into, [lane]) + tirx.BufferLoad(p, place), [lane])

            with T.serial(0, heads, annotations={SHARED: 1}) as head, T.serial(0, count) as query:
                row = [tirx.const(0, "int32"), head, query]
                reduced(T, tops, row, length, tirx.min_value(FLOAT), compare, tirx.max)
                reduced(T, sums, row, length, tirx.const(0.0, FLOAT), weigh, lambda a, b: a + b)
                T.buffer_store(inverse, tirx.const(1.0, FLOAT) / tirx.BufferLoad(sums, [0]), [*row, 0])
    return made.get()


def reduced(
    T: Any,
    into: Any,
    row: list[Expr],
    length: int,
    start: Expr,
    take: Callable[[list[Expr], Any, Expr], None],
    pair: Callable[[Expr, Expr], Expr],
) -> None:
    """`take` of each element of a row into a lane of `into`, and all lanes into the first by halves."""
    wide = int(into.shape[0])
    whole = length // wide
    with T.vectorized(0, wide) as lane:
        T.buffer_store(into, start, [lane])
    with T.serial(0, whole) as step, T.vectorized(0, wide) as lane:
        take([*row, step * wide + lane], into, lane)
    while wide > 1:
        wide //= 2
        with T.vectorized(0, wide) as lane:
            both = pair(tirx.BufferLoad(into, [lane]), tirx.BufferLoad(into, [lane + wide]))
            T.buffer_store(into, both, [lane])
    rest = length - whole * int(into.shape[0])
    if rest:
        with T.serial(0, rest) as last:
            take([*row, whole * int(into.shape[0]) + last], into, tirx.const(0, "int32"))
