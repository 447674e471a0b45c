"""Real factors as whole numbers, and attributes of nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.values import Array

SUM_BITS = 62  # of the 64 that sums have
FACTOR_BITS = 31


def whole_numbers(factors: Array, bits: int) -> tuple[Array, int]:
    """Whole numbers w and a shift with factors = w * 2^-shift as nearly as `bits` bits (sign included) allow.

    Raises:
        NotInteger: two scales are so far apart that no shift of 64 bits takes one to the other.
    """
    largest = float(np.abs(factors).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(factors.shape, np.int64), 1
    bits = min(bits, FACTOR_BITS)
    shift = bits - 1 - int(np.ceil(np.log2(largest * (1 + 2.0**-bits))))
    if not 1 <= shift <= SUM_BITS:
        raise NotInteger(f"a factor of {largest:g} between two scales")
    return np.rint(factors * 2.0**shift).astype(np.int64), shift


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of an attribute."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
