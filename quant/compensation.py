"""Rounding a matrix one group of inputs after another; what each leaves is made good by those that follow.

Frantar et al., "GPTQ", 2022; van Baalen et al., "GPTVQ", 2024, for groups that are vectors. H [inputs, inputs] is the
second moment of the matrix's inputs, so the rounded rows change the outputs by

    E = sum_n (w[n] - v[n]) H (w[n] - v[n])^T          w rows before, v rows after

    U^T U = H^-1, U upper triangular; for one group g of inputs after another, `after` those that follow
    v_g       the value whose |(w_g - v_g) U_gg^-1|^2 is least: the error that is left when the rest makes it good
    w_after   -= (w_g - v_g) U_gg^-1 U_g,after

Groups whose inputs are large come first, while there is still much to make them good.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgemem.program import Array

Choose = Callable[[Array, Array], tuple[Array, Array]]
DAMPING = 0.02  # of the mean moment, added to every input's: few samples, and inputs that calibration never saw


def rounded(rows: Array, gram: Array, dim: int, choose: Choose) -> Array:
    """The labels [outputs, groups, …] of rows [outputs, inputs], `dim` inputs at a time.

    `choose(points [outputs, dim], metric [dim, dim])` gives the labels [outputs, …] and values [outputs, dim] for
    which |(point - value) metric|^2 is least.
    """
    groups = rows.shape[1] // dim
    moments = np.diag(gram).reshape(groups, dim).mean(axis=1)
    order = np.argsort(-moments, kind="stable")
    places = (order[:, None] * dim + np.arange(dim)).reshape(-1)
    factor = inverse_factor(gram[np.ix_(places, places)])
    left = rows.astype(np.float64)[:, places]
    labels: list[Any] = [None] * groups
    for at, group in enumerate(order):
        own, after = slice(at * dim, (at + 1) * dim), slice((at + 1) * dim, None)
        metric = np.linalg.inv(factor[own, own])
        labels[group], values = choose(left[:, own], metric)
        left[:, after] -= (left[:, own] - values) @ metric @ factor[own, after]
    return np.stack(labels, axis=1)


def inverse_factor(gram: Array) -> Array:
    """U upper triangular with U^T U = (H + damping)^-1."""
    damping = DAMPING * max(float(np.diag(gram).mean()), 1e-30)
    inverse = np.linalg.inv(gram + damping * np.eye(len(gram)))
    return np.asarray(np.linalg.cholesky((inverse + inverse.T) / 2).T)
