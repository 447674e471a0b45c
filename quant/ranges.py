"""Calibrators: the range [low, high] that 8-bit activations cover, from what a tensor was seen to hold.

minmax       all of it
percentile   without 1 value of 10 000 on either side
mse          the range whose rounding and clipping errors are least, in the mean square
entropy      |x| <= t, t the threshold whose 128 levels keep the distribution best (Kullback-Leibler; Migacz 2017)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgemem.program import Array

TAIL_PERCENT = 0.01
STEPS = 255  # of 8 bits
SHRINKING = np.linspace(1.0, 0.3, 29)
BINS, LEVELS = 2048, 128


def minmax(values: Array, low: float, high: float) -> tuple[float, float]:
    """Everything that was seen."""
    return low, high


def percentile(values: Array, low: float, high: float) -> tuple[float, float]:
    """What lies between the 0.01th and the 99.99th percentile."""
    below, above = np.percentile(values, [TAIL_PERCENT, 100 - TAIL_PERCENT])
    return float(below), float(above)


def mse(values: Array, low: float, high: float) -> tuple[float, float]:
    """The shrunken range with the least mean squared error on the samples."""

    def error(factor: float) -> float:
        step = max((high - low) * factor / STEPS, 1e-30)
        zero = np.rint(-low * factor / step)
        steps = np.clip(np.rint(values / step) + zero, 0, STEPS) - zero
        return float(np.mean((steps * step - values) ** 2))

    best = min(SHRINKING, key=error)
    return float(low * best), float(high * best)


def entropy(values: Array, low: float, high: float) -> tuple[float, float]:
    """The threshold on |x| that loses the least information."""
    counts, edges = np.histogram(np.abs(values), BINS, (0.0, max(abs(low), abs(high), 1e-30)))
    best = min(range(LEVELS, BINS + 1, LEVELS // 4), key=lambda kept: divergence(counts, kept))
    return max(low, -float(edges[best])), min(high, float(edges[best]))


def divergence(counts: Array, kept: int) -> float:
    """KL divergence of the first `kept` bins, the rest clipped into the last, from their 128 levels."""
    p = counts[:kept].astype(np.float64)
    q = np.zeros(kept)
    for part in np.array_split(np.arange(kept), LEVELS):
        filled = p[part] > 0
        q[part] = filled * (p[part].sum() / max(int(filled.sum()), 1))
    p[-1] += counts[kept:].sum()
    p, q = p / max(p.sum(), 1), q / max(q.sum(), 1)
    both = (p > 0) & (q > 0)
    return float((p[both] * np.log(p[both] / q[both])).sum() + p[(p > 0) & (q == 0)].sum() * np.log(BINS))


CALIBRATORS: Mapping[str, Callable[[Array, float, float], tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
}
