"""Training sequences, composed once: every model is trained on the same ones.

Making a sequence takes as long as training on it, so they are kept, as log-mel rows in half precision (within 0.4 %,
which no spotter hears), and drawn in a new order in each round. What is cheap is varied anew every time: loudness and
colour of the whole (`varied`), rows and bands that are left out (`masked`).

    pool_features.npy    [sequences, rows, width] float16
    pool_labels.npy      [sequences, rows] int8, as `augment.row_labels` has them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.tasks.kws import augment
from bench.tasks.kws.features import FRONT_END, features_of
from bench.tasks.kws.train import Batches, Recipe, tones, warps
from bench.tasks.kws.wordset import read
from edgemem.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

FEATURES, LABELS = "pool_features.npy", "pool_labels.npy"
SEQUENCES = 36_000
PART = 32  # sequences at a time
SEED = 11
SECONDS = 3.0
VARIED = augment.Recipe(speeds=(0.8, 0.87, 0.93, 1.0, 1.08, 1.16, 1.25), pause_seconds=(0.0, 0.7), unknown=0.28)
LOWEST = float(np.log(FRONT_END.floor))  # of a log-mel


@dataclass(frozen=True, eq=False)
class Pool:
    """Sequences that were composed: features [n, rows, width] float16, labels [n, rows] int8."""

    features: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


def make(folder: Path, sequences: int = SEQUENCES, report: Callable[[str], None] = print) -> None:
    """Compose `sequences` of the training words in `folder` and write them there."""
    maker = augment.StreamMaker(read(folder, "train"), FRONT_END, SEED, SECONDS, VARIED)
    draw = np.random.default_rng(SEED + 1)
    shape = (sequences, maker.rows, FRONT_END.width)
    features = np.lib.format.open_memmap(folder / FEATURES, "w+", np.float16, shape)
    labels = np.empty((sequences, maker.rows), np.int8)
    for at in range(0, sequences, PART):
        count = min(PART, sequences - at)
        features[at : at + count], labels[at : at + count] = composed(maker, count, draw)
        if at // PART % 100 == 0:
            report(f"{at} of {sequences} sequences")
    features.flush()
    np.save(folder / LABELS, labels)


def composed(maker: augment.StreamMaker, count: int, draw: np.random.Generator) -> tuple[Array, Array]:
    """The next sequences of a maker, some warped: features [count, rows, width] and labels [count, rows]."""
    made = [maker.sequence() for _ in range(count)]
    labels = [augment.row_labels(placed, FRONT_END, maker.rows) for _, placed in made]
    sounds = torch.from_numpy(np.stack([sound for sound, _ in made])).float()
    warp = warps(Recipe(batch=count), draw)
    return features_of(sounds, warp).numpy(), np.stack(labels)


def load(folder: Path) -> Pool:
    """What `make` has written.

    Raises:
        InputError: nothing has been.
    """
    if not (folder / LABELS).is_file():
        raise InputError(
            f"{folder / LABELS}: training sequences were wanted, nothing is there; "
            f"`python -m bench.tasks.kws.data --folder {folder}` makes them"
        )
    features = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
    return Pool(features, np.load(folder / LABELS, allow_pickle=False))


def batches(pool: Pool, recipe: Recipe) -> Batches:
    """Batches without an end, the same ones for the same seed; every sequence once in each round."""
    draw, size = np.random.default_rng(recipe.seed), recipe.batch
    order = np.empty(0, np.int64)
    while True:
        while len(order) < size:
            order = np.concatenate([order, draw.permutation(len(pool))])
        chosen, order = np.sort(order[:size]), order[size:]
        features = torch.from_numpy(pool.features[chosen].astype(np.float32))
        yield varied(features, recipe, draw), torch.from_numpy(pool.labels[chosen].astype(np.int64))


def varied(features: Tensor, recipe: Recipe, draw: np.random.Generator) -> Tensor:
    """Rows [batch, rows, width] of other colour and loudness, each sequence as a whole."""
    tone = tones(recipe, draw)
    tone += torch.from_numpy(draw.normal(0.0, recipe.gain, (len(features), 1))).float()
    return (features + tone.tile(1, FRONT_END.stack)[:, None]).clamp(min=LOWEST)
