"""States that a program keeps as integers, as the float32 of the contract and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemem.runtimes.integer.operation import LIMITS

Array = np.ndarray[Any, np.dtype[Any]]
DTYPE = "int16"


def as_float(values: Mapping[str, Array], scales: Mapping[str, float]) -> dict[str, Array]:
    """Every state in the contract's type; `scales` names those that are integers."""
    return {
        name: value.astype(np.float32) * np.float32(scales[name]) if name in scales else value
        for name, value in values.items()
    }


def as_integers(values: Mapping[str, Array], scales: Mapping[str, float]) -> dict[str, Array]:
    """The nearest integers of the states that are kept as such, clamped; no number is 0."""
    return {
        name: np.clip(np.rint(np.nan_to_num(value) / np.float32(scales[name])), *LIMITS[DTYPE]).astype(DTYPE)
        if name in scales
        else value
        for name, value in values.items()
    }
