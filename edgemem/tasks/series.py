"""Signal probes: time series whose next values depend on a known stretch of the past. Plain NumPy, float64 inside.

Mackey-Glass (Mackey & Glass, "Oscillation and chaos in physiological control systems", Science 1977)

    x'(t) = beta x(t - tau) / (1 + x(t - tau)^n) - gamma x(t)        beta 0.2   gamma 0.1   n 10   tau 17 (chaotic)

    by the fourth-order Runge-Kutta method at steps of 1 / STEPS of a frame. The delayed value is known at the grid
    points; half way between two it is interpolated by the cubic through the four around, which keeps the order.
    A frame is one unit of time; the task is the value `horizon` frames ahead, of the signal so far.

NARMA of order n (Atiya & Parlos, "New results on recurrent network training", IEEE Trans. Neural Networks 2000)

    y(t+1) = 0.3 y(t) + 0.05 y(t) sum_{i<n} y(t - i) + 1.5 u(t - n + 1) u(t) + 0.1        u uniform in 0..0.5

    The task is y(t+1) from the inputs u up to t alone. The recursion can run away: a series that leaves 0..1 is
    drawn again.

Both are judged by NRMSE: the root of the mean squared error over the standard deviation of what was to be predicted; 1
is as good as its mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgemem.errors import UsageError
from edgemem.tasks.episodes import Episodes

Array = np.ndarray[Any, np.dtype[Any]]

BETA, GAMMA, POWER = 0.2, 0.1, 10
STEPS = 10  # of integration per frame
TRANSIENT_FRAMES = 200  # dropped, so that a series lies on its attractor
HORIZON = 15  # as Voelker et al. 2019 predict Mackey-Glass
MEAN, SPREAD = 0.93, 0.23  # of Mackey-Glass at tau 17, to bring the input to about zero mean and unit variance
WARM_UP_FRAMES = 64  # at the start of an episode, before predictions count: a model has to have seen some of it


def mackey_glass(count: int, frames: int, seed: int, tau: float = 17.0, transient: int = TRANSIENT_FRAMES) -> Array:
    """[count, frames] float64, each from a constant history of its own, `transient` frames dropped after it.

    Raises:
        UsageError: a tau that is not a positive whole number of integration steps.
    """
    lag = round(tau * STEPS)
    if lag < 2 or abs(lag - tau * STEPS) > 1e-9:
        raise UsageError(f"mackey_glass needs tau in steps of 1/{STEPS} frame from {2 / STEPS} on, got {tau=}")
    rng, total = np.random.default_rng([seed, 4]), (transient + frames) * STEPS
    x = np.empty((lag + 2 + total, count))  # two points more in the past, for the interpolation
    x[: lag + 2] = rng.uniform(0.5, 1.3, count)
    for now in range(lag + 1, lag + 1 + total):
        x[now + 1] = runge_kutta(x[now], x[now - lag], between(x, now - lag), x[now - lag + 1])
    return x[lag + 1 : -1 : STEPS].T[:, transient:].copy()  # the first frame is the end of the history


def between(x: Array, at: int) -> Array:
    """x half way from grid point `at` to the next, by the cubic through the two points on either side."""
    before, here, after, beyond = x[at - 1], x[at], x[at + 1], x[at + 2]
    cubic: Array = (9.0 * (here + after) - before - beyond) / 16.0
    return cubic


def slope(x: Array, delayed: Array) -> Array:
    """x' of the equation."""
    change: Array = BETA * delayed / (1.0 + delayed**POWER) - GAMMA * x
    return change


def runge_kutta(x: Array, delayed: Array, delayed_half: Array, delayed_next: Array) -> Array:
    """x one integration step on, given the delayed signal at its start, middle and end."""
    h = 1.0 / STEPS
    k1 = slope(x, delayed)
    k2 = slope(x + h / 2 * k1, delayed_half)
    k3 = slope(x + h / 2 * k2, delayed_half)
    k4 = slope(x + h * k3, delayed_next)
    after: Array = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return after


def narma(count: int, frames: int, seed: int, order: int = 10) -> tuple[Array, Array]:
    """Inputs u and y(t+1) after each of them, both [count, frames] float64.

    Raises:
        UsageError: an order below 1.
    """
    if order < 1:
        raise UsageError(f"narma needs order >= 1, got {order=}")
    rng = np.random.default_rng([seed, 5])
    inputs, outputs = np.empty((0, frames)), np.empty((0, frames))
    while len(inputs) < count:
        u = rng.uniform(0.0, 0.5, (count, frames))
        y = narma_response(u, order)
        kept = np.all((y >= 0.0) & (y <= 1.0), axis=1)
        inputs, outputs = np.concatenate([inputs, u[kept]]), np.concatenate([outputs, y[kept]])
    return inputs[:count], outputs[:count]


def narma_response(u: Array, order: int) -> Array:
    """y(t+1) for every t of u [count, frames]; what precedes the start is zero."""
    count, frames = u.shape
    past_u = np.concatenate([np.zeros((count, order - 1)), u], axis=1)  # past_u[:, t] is u(t - order + 1)
    y = np.zeros((count, order + frames))  # y[:, order - 1 + t] is y(t)
    with np.errstate(over="ignore", invalid="ignore"):  # a series that runs away is dropped
        for t in range(frames):
            recent = y[:, t : t + order]
            now = recent[:, -1]
            y[:, order + t] = 0.3 * now + 0.05 * now * recent.sum(axis=1) + 1.5 * past_u[:, t] * u[:, t] + 0.1
    return y[:, order:]


def mackey_glass_episodes(count: int, seed: int, frames: int = 512, horizon: int = HORIZON) -> Episodes:
    """Predict the signal `horizon` frames ahead; input and target are (x - MEAN) / SPREAD."""
    signal = (mackey_glass(count, frames + horizon, seed) - MEAN) / SPREAD
    return predicted(signal[:, :frames], signal[:, horizon:])


def narma_episodes(count: int, seed: int, frames: int = 512, order: int = 10) -> Episodes:
    """Say y(t+1) from u; the input is 4 u - 1, from -1 to 1, the target 10 (y - 0.4)."""
    u, y = narma(count, frames, seed, order)
    return predicted(4.0 * u - 1.0, 10.0 * (y - 0.4))


def predicted(x: Array, y: Array) -> Episodes:
    """Episodes of one number a frame, predictions counted after the warm-up."""
    targets = y.astype(np.float32)[:, :, None]
    targets[:, :WARM_UP_FRAMES] = np.nan
    return Episodes(x.astype(np.float32)[:, :, None], targets, np.zeros(x.shape, np.int64))


def nrmse(y: Array, targets: Array) -> float:
    """Error of predictions where `targets` are numbers, both [episodes, time, 1]."""
    wanted = np.isfinite(targets)
    truth, error = targets[wanted].astype(np.float64), (y[wanted] - targets[wanted]).astype(np.float64)
    return float(np.sqrt(np.mean(error**2)) / np.std(truth))
