"""Training and validation episodes of every probe, apart from those that a model is judged by.

Levels are drawn from a range that covers the judged ones and, for `recall` and `delay`, grows as the training goes on;
`delay` ends at 128 frames, and everything beyond is generalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from edgemem.tasks import digits, series
from edgemem.tasks.episodes import Array, Episodes, copy, delay, recall
from edgemem.tasks.probes import PROBES, VALID_SEED

LONGEST = 128  # distance that `delay` is trained on
SERIES, SERIES_FRAMES = 96, 1024  # signals from which training windows are cut
WINDOW = 160
NOISE = 0.1  # added to pixels
DIGITS_VALID = 1  # of every digits.HELD_OUT images; 0 is the test part

Batches = Iterator[Episodes]


def images(part: str) -> tuple[Array, Array]:
    """Images [count, 64] uint8 and digits [count] of scikit-learn's set: `train`, `valid` or `test`."""
    from sklearn.datasets import load_digits

    found = load_digits()
    place = np.arange(len(found.target)) % digits.HELD_OUT
    wanted = {"test": place == 0, "valid": place == DIGITS_VALID, "train": place > DIGITS_VALID}[part]
    return found.data[wanted].astype(np.uint8), found.target[wanted].astype(np.uint8)


def training(name: str, seed: int, batch: int, steps: int) -> Batches:
    """`steps` batches of a probe, the same ones for the same seed."""
    rng = np.random.default_rng([seed, 100])
    makers: dict[str, Callable[[float], Episodes]] = {
        "recall": lambda share: recall(batch, drawn(rng), pairs=int(rng.integers(1, grown(share, 1, 8) + 1))),
        "copy": lambda share: copy(batch, drawn(rng), spread=int(rng.integers(8, 65))),
        "delay": lambda share: delay(batch, drawn(rng), distance=int(rng.integers(1, grown(share, 8, LONGEST) + 1))),
        "mackey-glass": lambda share: windows("mackey-glass", seed, batch, rng),
        "narma": lambda share: windows("narma", seed, batch, rng),
        "digits": lambda share: noisy_digits(False, batch, rng),
        "digits-permuted": lambda share: noisy_digits(True, batch, rng),
    }
    for step in range(steps):
        yield makers[name](step / steps)


def drawn(rng: np.random.Generator) -> int:
    """A seed below those of validation and test."""
    return int(rng.integers(1_000_000))


def grown(share: float, first: int, last: int) -> int:
    """A curriculum: from `first` to `last` over the first half of the training, evenly in the logarithm."""
    size: float = first * (last / first) ** min(1.0, share / 0.5)
    return round(size)


@cache
def long_series(name: str, seed: int) -> Episodes:
    """Signals to cut windows from."""
    make = {"mackey-glass": series.mackey_glass_episodes, "narma": series.narma_episodes}[name]
    return make(SERIES, seed, SERIES_FRAMES)


def windows(name: str, seed: int, batch: int, rng: np.random.Generator) -> Episodes:
    """Random cuts of WINDOW frames; predictions count after the warm-up."""
    whole = long_series(name, seed)
    row = rng.integers(len(whole), size=(batch, 1))
    place = rng.integers(SERIES_FRAMES - WINDOW, size=(batch, 1)) + np.arange(WINDOW)
    targets = whole.targets[row, place]
    targets[:, : series.WARM_UP_FRAMES] = np.nan
    return Episodes(whole.x[row, place], targets, whole.distance[row, place])


def noisy_digits(permuted: bool, batch: int, rng: np.random.Generator) -> Episodes:
    """Random training images with a little noise on every pixel."""
    pictures, labels = _train_images()
    chosen = rng.integers(len(pictures), size=batch)
    made = digits.episodes(pictures[chosen], labels[chosen], permuted)
    noise = NOISE * rng.standard_normal(made.x.shape, dtype=np.float32)
    return Episodes(made.x + noise, made.targets, made.distance)


@cache
def _train_images() -> tuple[Array, Array]:
    return images("train")


def validation(name: str) -> list[Episodes]:
    """What chooses among the weights of a training; never the test episodes."""
    if name == "delay":
        return [delay(64, VALID_SEED, distance) for distance in (LONGEST // 2, LONGEST)]
    if name.startswith("digits"):
        return [digits.episodes(*images("valid"), permuted=name == "digits-permuted")]
    return [level.make(min(level.episodes, 64), VALID_SEED) for level in PROBES[name].levels.values()]
