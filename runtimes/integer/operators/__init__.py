"""What becomes of every ONNX operator, one file for each group: kernels in NumPy and C, their rounding, and the rules.

    arithmetic   sums, products, quotients, roots, sums over axes
    products     MatMul
    norms        LayerNormalization, Softmax
    curves       functions of one number, by tables
    rows         rows of a table by index
    whole        counts and masks
    wide         float32
    moves        what only moves values
    rounding     QuantizeLinear, DequantizeLinear

`RULES` gives a value for a node, by operator; `ROUNDED` the operation for a value that waits, by its type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgemem.runtimes.integer.operators import (
    arithmetic,
    curves,
    moves,
    norms,
    products,
    rounding,
    rows,
    whole,
    wide,
)

RULES: Mapping[str, Callable[..., Any]] = {
    **arithmetic.RULES,
    **products.RULES,
    **norms.RULES,
    **curves.RULES,
    **whole.RULES,
    **wide.RULES,
    **moves.RULES,
    **rounding.RULES,
}
ROUNDED: Mapping[type, Callable[..., Any]] = {
    **arithmetic.ROUNDED,
    **products.ROUNDED,
    **norms.ROUNDED,
    **curves.ROUNDED,
    **rows.ROUNDED,
}
