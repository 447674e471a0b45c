"""Symbol probes of memory: seeded episodes whose every answer was said some frames earlier. Plain NumPy.

    recall   k1 v1 k2 v2 ... then, at random places, each key again: its value is asked for
             (multi-query associative recall: Arora et al., "Zoology", ICLR 2024)
    copy     `items` symbols scattered among blanks, then as many go signs: the symbols are asked for in their order
             (selective copying: Jing et al. 2019; Gu & Dao, "Mamba", 2023)
    delay    one of `symbols` needles in noise of other symbols; `distance` frames later it is asked for

The answer is asked for at the frame that asks, and is never part of the input: a model cannot see it by looking ahead.
`distance` counts the frames from the earliest one that the answer depends on to the one that asks, so what a model
with a window of W frames can reach is known exactly: the share of answers with distance < W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemem.errors import UsageError

Array = np.ndarray[Any, np.dtype[Any]]

UNASKED = -1  # target of a frame that asks nothing
LEAD_FRAMES = 16  # noise of which some precedes a needle and the rest follows its query


@dataclass(frozen=True)
class Episodes:
    """Inputs and what is wanted at each frame.

    `x` is [episodes, time] int64 for symbols, [episodes, time, features] float32 for signals. `targets` is
    [episodes, time] int64 with UNASKED where nothing is asked, or [episodes, time, 1] float32 with NaN there.
    `distance` [episodes, time] int64 is 0 where nothing is asked or where no single frame holds the answer.
    """

    x: Array
    targets: Array
    distance: Array

    def __len__(self) -> int:
        return len(self.x)

    def head(self, count: int) -> Episodes:
        """The first `count` episodes."""
        return Episodes(self.x[:count], self.targets[:count], self.distance[:count])


def recall(count: int, seed: int, pairs: int = 8, time: int = 48, keys: int = 16, values: int = 8) -> Episodes:
    """Symbols: `keys`, then `values`, then one blank. More `pairs` are harder, so is more `time` between.

    Raises:
        UsageError: more pairs than keys, or too little time to ask for all of them.
    """
    if not 1 <= pairs <= keys or time < 3 * pairs:
        raise UsageError(f"recall needs 1 <= pairs <= keys and time >= 3 * pairs, got {pairs=}, {keys=}, {time=}")
    rng = np.random.default_rng([seed, 1])
    told = rng.permuted(np.tile(np.arange(keys), (count, 1)), axis=1)[:, :pairs]
    answers = rng.integers(values, size=(count, pairs))
    asked_at = 2 * pairs + rng.permuted(np.tile(np.arange(time - 2 * pairs), (count, 1)), axis=1)[:, :pairs]
    x = np.full((count, time), keys + values, np.int64)
    x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2] = told, keys + answers
    np.put_along_axis(x, asked_at, told, axis=1)
    return asked(x, asked_at, answers, asked_at - 2 * np.arange(pairs))


def copy(count: int, seed: int, items: int = 8, spread: int = 32, symbols: int = 8) -> Episodes:
    """Symbols: `symbols`, then a blank, then the go sign. The items lie in the first `spread` frames.

    Raises:
        UsageError: no items, or more than frames to put them in.
    """
    if not 1 <= items <= spread:
        raise UsageError(f"copy needs 1 <= items <= spread, got {items=}, {spread=}")
    rng = np.random.default_rng([seed, 2])
    places = np.sort(rng.permuted(np.tile(np.arange(spread), (count, 1)), axis=1)[:, :items], axis=1)
    answers = rng.integers(symbols, size=(count, items))
    x = np.full((count, spread + items), symbols, np.int64)
    np.put_along_axis(x, places, answers, axis=1)
    x[:, spread:] = symbols + 1
    asked_at = np.tile(spread + np.arange(items), (count, 1))
    return asked(x, asked_at, answers, asked_at - places)


def delay(count: int, seed: int, distance: int = 64, symbols: int = 8) -> Episodes:
    """Symbols: `symbols` needles, then as many of noise, then the query.

    Raises:
        UsageError: a distance below 1.
    """
    if distance < 1:
        raise UsageError(f"delay needs distance >= 1, got {distance=}")
    rng = np.random.default_rng([seed, 3, distance])
    x = symbols + rng.integers(symbols, size=(count, LEAD_FRAMES + distance))
    needle_at = rng.integers(LEAD_FRAMES, size=(count, 1))
    answers = rng.permutation(count)[:, None] % symbols  # equally often, so that one answer for all scores chance
    np.put_along_axis(x, needle_at, answers, axis=1)
    np.put_along_axis(x, needle_at + distance, np.full((count, 1), 2 * symbols), axis=1)
    return asked(x, needle_at + distance, answers, np.full((count, 1), distance))


def asked(x: Array, places: Array, answers: Array, distances: Array) -> Episodes:
    """Episodes with `answers` [episodes, questions] wanted at `places`."""
    targets, distance = np.full(x.shape, UNASKED, np.int64), np.zeros(x.shape, np.int64)
    np.put_along_axis(targets, places, answers, axis=1)
    np.put_along_axis(distance, places, distances, axis=1)
    return Episodes(x, targets, distance)
