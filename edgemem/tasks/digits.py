"""Handwritten digits of 8 x 8 pixels, read pixel by pixel: a digit is named after its last pixel.

The images are those of scikit-learn's `load_digits`: 1,797 of them, 0..16 in each pixel, from the "Optical Recognition
of Handwritten Digits" data (E. Alpaydin and C. Kaynak, 1998; UCI Machine Learning Repository, CC BY 4.0). Every fifth
is held out and packaged here; the others train. The permuted order is one fixed shuffle of the 64 places, as in
permuted sequential MNIST (Le, Jaitly & Hinton 2015): neighbours are then far apart, so all must be remembered.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemem.checkpoints import packaged
from edgemem.tasks.episodes import UNASKED, Episodes

Array = np.ndarray[Any, np.dtype[Any]]

PIXELS = 64
LEVELS = 16.0  # the brightest pixel
HELD_OUT = 5  # every fifth image
FILE = "probes_digits.npz"


def held_out() -> tuple[Array, Array]:
    """The packaged images [images, 64] uint8, row by row, and their digits [images] uint8."""
    with np.load(packaged(FILE)) as found:
        return found["images"], found["digits"]


def order(permuted: bool) -> Array:
    """[64] the places in the order in which they are read."""
    return np.random.default_rng(64).permutation(PIXELS) if permuted else np.arange(PIXELS)


def episodes(images: Array, digits: Array, permuted: bool) -> Episodes:
    """Images [count, 64] as sequences of one number from -1 to 1; the digit is asked for at the last pixel."""
    x = (images[:, order(permuted)] / LEVELS * 2.0 - 1.0).astype(np.float32)[:, :, None]
    targets = np.full((len(images), PIXELS), UNASKED, np.int64)
    targets[:, -1] = digits
    return Episodes(x, targets, np.zeros(targets.shape, np.int64))
