"""Arrays whose results do not depend on where they happen to lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
ALIGNMENT_BYTES = 64  # of a cache line, and of the widest vector load


def aligned_zeros(shape: Sequence[int], dtype: str) -> Array:
    """Zeros at a multiple of 64 bytes.

    Vector code handles the elements before the first aligned one by themselves, and may round them otherwise: of two
    equal computations, one would differ from the other in its last bit.
    """
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(count + ALIGNMENT_BYTES, np.uint8)
    first = -room.ctypes.data % ALIGNMENT_BYTES
    return room[first : first + count].view(dtype).reshape(tuple(shape))
