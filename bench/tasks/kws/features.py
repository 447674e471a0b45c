"""The front end for many sounds at once, to train with: `FrontEnd.features` in float32, a batch at a time.

Sounds may be warped in frequency, which makes another speaker of the same words: a shorter or a longer vocal tract.

    f -> factor f                                     up to KNEE_HZ
    f -> a straight line on to the Nyquist frequency, which stays      above
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgemem.frontend import FrontEnd, hann, mel

Array = np.ndarray[Any, np.dtype[Any]]

FRONT_END = FrontEnd(stack=2)
WARPS = tuple(float(factor) for factor in np.geomspace(0.8, 1.25, 13))  # the middle one is 1
KNEE_HZ = 5000.0


@lru_cache(maxsize=1)
def window() -> Tensor:
    """[window_samples] float32."""
    return torch.from_numpy(hann(FRONT_END.window_samples)).float()


@lru_cache(maxsize=1)
def filter_banks() -> Tensor:
    """The front end's mel filters for every warp [len(WARPS), bins, mels], float32."""
    nyquist = FRONT_END.sample_rate / 2
    bins = np.arange(FRONT_END.fft // 2 + 1) * (FRONT_END.sample_rate / FRONT_END.fft)
    banks = [filters(np.interp(bins, (0.0, KNEE_HZ, nyquist), (0.0, KNEE_HZ * w, nyquist))) for w in WARPS]
    return torch.from_numpy(np.stack(banks)).float()


def filters(hz: Array) -> Array:
    """The weight of every mel filter at some frequencies: [bins] to [bins, mels]."""
    points = np.linspace(mel(FRONT_END.low_hz), mel(FRONT_END.high_hz), FRONT_END.mels + 2)
    edges = 700.0 * np.expm1(points / 1127.0)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (hz[:, None] - low) / (middle - low), (high - hz[:, None]) / (high - middle)
    weights: Array = np.maximum(0.0, np.minimum(rising, falling))
    return weights


def features_of(sound: Tensor, warp: Tensor | None = None, tone: Tensor | None = None) -> Tensor:
    """Log-mel rows [batch, rows, width] of sound [batch, samples]; without a warp, within 1e-4 of the front end.

    `warp` [batch] int64 is an index into `WARPS` for each sound, `tone` [batch, mels] the logarithm of a gain.
    """
    banks = filter_banks()
    frames = sound.unfold(1, FRONT_END.window_samples, FRONT_END.hop_samples) * window()
    power = torch.fft.rfft(frames, FRONT_END.fft).abs().square()
    energy = power @ (banks[len(WARPS) // 2] if warp is None else banks[warp])
    if tone is not None:
        energy = energy * tone.exp()[:, None]
    logs = torch.log(energy + FRONT_END.floor)
    rows = logs.shape[1] // FRONT_END.stack
    return logs[:, : rows * FRONT_END.stack].reshape(len(sound), rows, FRONT_END.width)
