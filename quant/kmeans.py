"""k-means in NumPy: seeded, the same centres for the same points on every machine of one kind.

    minimise  sum_n sum_d h[n, d] (p[n, d] - c[a[n], d])^2         points p [n, d], weights h > 0, centres c [k, d]
    assign    a[n] = argmin_k sum_d h[n, d] (c[k, d]^2 - 2 p[n, d] c[k, d])
    update    c[k, d] = sum_{a[n] = k} h[n, d] p[n, d] / sum_{a[n] = k} h[n, d]

Centres start by k-means++ (Arthur & Vassilvitskii 2007). A centre that has lost its points takes the point with the
largest error. Mirrored centres are pairs c, -c: a point counts for the first of its pair, turned round where it lies
nearer to the second.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgemem.program import Array

ROUNDS = 15
SAMPLE = 1 << 15  # points that centres are fitted on
BLOCK = 1 << 11
DISTINCT_BELOW = 1 << 12  # points among which equal ones are looked for


def kmeans(
    points: Array,
    count: int,
    weights: Array | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
    mirrored: bool = False,
) -> Array:
    """Centres [min(count, distinct points), d], float32, of points [n, d]; `weights` is [n, d].

    `mirrored`: the second half is the first with the other sign; `count` is even, and points are distinct up to sign.
    """
    rng = np.random.default_rng(seed)
    p = points.astype(np.float32)
    h = None if weights is None else weights.astype(np.float32)
    if len(p) > SAMPLE:
        kept = np.sort(rng.choice(len(p), SAMPLE, replace=False))
        p, h = p[kept], None if h is None else h[kept]
    free = count // 2 if mirrored else count
    every = with_mirrored if mirrored else np.asarray
    if len(p) < DISTINCT_BELOW and len(distinct := np.unique(turned(p) if mirrored else p, axis=0)) <= free:
        return every(distinct)
    centres = started(p, h, free, rng, mirrored)
    before = np.inf
    for _ in range(rounds):
        labels, errors = assigned(p, every(centres), h)
        if errors.sum() >= before * (1 - 1e-6):
            break
        before = errors.sum()
        sides = np.where(labels < free, 1, -1).astype(p.dtype)[:, None]
        centres = updated(p * sides, h, labels % free, errors, centres)
    return every(centres)


def with_mirrored(half: Array) -> Array:
    """Centres [n, d], and behind them their negations."""
    return np.concatenate([half, -half])


def turned(p: Array) -> Array:
    """Points, those whose first number that is not 0 is negative with the other sign."""
    first = np.take_along_axis(p, (p != 0).argmax(axis=1)[:, None], axis=1)
    return np.where(first < 0, -p, p) + np.zeros(1, p.dtype)  # no negative zeros


def started(p: Array, h: Array | None, count: int, rng: np.random.Generator, mirrored: bool) -> Array:
    """k-means++: each centre is a point, drawn in proportion to its error under those before it."""

    def error(centre: Array) -> Array:
        own = squared(p, centre, h)
        return np.minimum(own, squared(p, -centre, h)) if mirrored else own

    chosen = [int(rng.integers(len(p)))]
    errors = error(p[chosen[0]])
    for _ in range(count - 1):
        total = np.cumsum(errors)
        chosen.append(int(min(np.searchsorted(total, rng.random() * total[-1], side="right"), len(p) - 1)))
        errors = np.minimum(errors, error(p[chosen[-1]]))
    return p[chosen]


def squared(p: Array, centre: Array, h: Array | None) -> Array:
    """Weighted squared distances of points to a centre, or each to its own: [n]."""
    difference = p - centre
    return np.asarray(np.einsum("nd,nd->n", difference, difference if h is None else h * difference))


def assigned(p: Array, centres: Array, h: Array | None = None) -> tuple[Array, Array]:
    """The nearest centre of every point [n], and the weighted squared error [n] it leaves."""
    points, c = p.astype(np.float32), centres.astype(np.float32)
    weights = None if h is None else h.astype(np.float32)
    labels = np.concatenate(
        [nearest(points[rows], c, None if weights is None else weights[rows]) for rows in blocks(len(p))]
    )
    return labels, squared(points, c[labels], weights)


def blocks(count: int) -> Iterator[slice]:
    """Slices of a few thousand points, whose distances to all centres fit a cache."""
    return (slice(at, at + BLOCK) for at in range(0, max(count, 1), BLOCK))


def nearest(p: Array, c: Array, h: Array | None) -> Array:
    """The centre of least weighted distance to every point."""
    cost = (c**2).sum(axis=1) - 2.0 * p @ c.T if h is None else h @ (c**2).T - 2.0 * (h * p) @ c.T
    return np.asarray(cost.argmin(axis=1))


def updated(p: Array, h: Array | None, labels: Array, errors: Array, centres: Array) -> Array:
    """Weighted means; empty centres go to the points with the largest errors."""
    sums, totals = np.zeros(centres.shape), np.zeros(centres.shape)
    for d in range(p.shape[1]):
        sums[:, d] = np.bincount(labels, p[:, d] if h is None else h[:, d] * p[:, d], len(centres))
        totals[:, d] = np.bincount(labels, None if h is None else h[:, d], len(centres))
    empty = np.flatnonzero(np.bincount(labels, minlength=len(centres)) == 0)
    moved = np.where(totals > 0, sums / np.where(totals > 0, totals, 1.0), centres)
    moved[empty] = p[np.argsort(-errors, kind="stable")[: len(empty)]]
    return moved.astype(np.float32)
