"""Training sequences: one or a few strings with pauses between them, in rooms and noise, as features with their words.

They are made once, into a folder, and read by every training, so that all models see the same ones in the same order.

    features.npy   [n, rows, width] float16     words.npy   [n, MOST_WORDS] int16, indices into LABELS; 0: no more

Short sequences, of a few words, come before long ones: there are fewer ways to lay few words over few rows, and CTC,
which begins by not knowing where any word is, finds out sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.tasks.kws import augment
from bench.tasks.kws.features import FRONT_END as FRAMES
from bench.tasks.kws.features import WARPS, features_of
from bench.tasks.kws.wordset import SAMPLE_RATE, WordSet
from edgemem.audio import FrontEnd
from edgemem.models.folding import STACK
from edgemem.tasks.words import LABELS

Array = np.ndarray[Any, np.dtype[Any]]

FRONT_END = FrontEnd(stack=STACK)
SHORT_SECONDS, LONG_SECONDS = 1.6, 4.8
MOST_WORDS = 20
BATCH = 32  # sequences disguised together
TONE_KNOTS = 6
TRIES = 4  # to find strings that fit


@dataclass(frozen=True)
class Variety:
    """How sequences vary."""

    speeds: tuple[float, ...] = (0.87, 0.93, 1.0, 1.08, 1.16)
    pause_seconds: tuple[float, float] = (0.1, 0.9)
    empty: float = 0.03  # share of sequences without a word
    warped: float = 0.8  # in frequency, to make more speakers of them
    tone: float = 0.8  # standard deviation of the logarithm of energy, smooth over bands
    snr_db: tuple[float, float] = (-2.0, 25.0)
    clean: float = 0.25  # share of sequences without noise
    reverb: float = 0.3


class Composer:
    """Sequences without an end, the same ones for the same seed."""

    def __init__(self, strings: WordSet, seconds: float, seed: int, variety: Variety | None = None) -> None:
        self.strings, self.variety = strings, variety or Variety()
        self.samples = round(seconds * SAMPLE_RATE)
        v = self.variety
        around = augment.Recipe(snr_db=v.snr_db, clean=v.clean, reverb=v.reverb)
        self._random = np.random.default_rng([seed, 1])
        self._around = augment.Surroundings(strings, self.samples, seed, around, known=set(strings.words))

    def sequence(self) -> tuple[Array, list[str]]:
        """The next one: sound [samples] float32 in [-1, 1], and the words in it."""
        random, variety = self._random, self.variety
        sound, words = np.zeros(self.samples, np.float32), []
        at = round(random.uniform(0.0, variety.pause_seconds[1]) * min(SAMPLE_RATE, self.samples / LONG_SECONDS))
        tries = 0 if random.random() < variety.empty else TRIES
        while tries:
            string = self.strings[int(random.integers(len(self.strings)))]
            speed = variety.speeds[int(random.integers(len(variety.speeds)))]
            said = string.word.split()
            first = max(0, at - round(string.start / speed))
            if first + len(string.sound) / speed + 1 > self.samples or len(words) + len(said) > MOST_WORDS:
                tries -= 1
                continue
            string = augment.faster(string, speed)
            sound[first : first + len(string.sound)] += string.sound * augment.gain(random.uniform(-4.0, 4.0))
            words += said
            at = first + string.end + round(random.uniform(*variety.pause_seconds) * SAMPLE_RATE)
        return self._around.heard(sound, random, speech=bool(words)), words

    def batch(self) -> tuple[Array, Array]:
        """Features [BATCH, rows, width] float32 and words [BATCH, MOST_WORDS] int16 of the next sequences."""
        made = [self.sequence() for _ in range(BATCH)]
        sounds = torch.from_numpy(np.stack([sound for sound, _ in made])).float()
        frames = features_of(sounds, *self.disguise()).numpy()
        return stacked(frames), np.stack([indices(words) for _, words in made])

    def disguise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """How a batch is warped [BATCH] int64 and coloured [BATCH, mels], see `features_of`."""
        random, variety, middle = self._random, self.variety, len(WARPS) // 2
        warp = np.where(random.random(BATCH) < variety.warped, random.integers(len(WARPS), size=BATCH), middle)
        bands, knots = np.arange(FRONT_END.mels), np.linspace(0, FRONT_END.mels - 1, TONE_KNOTS)
        tone = [np.interp(bands, knots, random.normal(0.0, variety.tone, TONE_KNOTS)) for _ in range(BATCH)]
        return torch.from_numpy(warp), torch.from_numpy(np.stack(tone)).float()


def stacked(frames: Array) -> Array:
    """Rows of the spotter's front end as rows of this one: [n, rows, width] with STACK frames in each."""
    together = STACK // FRAMES.stack
    rows = frames.shape[1] // together
    return frames[:, : rows * together].reshape(len(frames), rows, together * frames.shape[2])


def indices(words: list[str]) -> Array:
    """[MOST_WORDS] int16."""
    row = np.zeros(MOST_WORDS, np.int16)
    row[: len(words)] = [LABELS.index(word) for word in words]
    return row


def write(strings: WordSet, folder: Path, count: int, seconds: float, seed: int) -> None:
    """Make `count` sequences, a multiple of BATCH."""
    folder.mkdir(parents=True, exist_ok=True)
    composer = Composer(strings, seconds, seed)
    shape = (count, FRONT_END.rows(composer.samples), FRONT_END.width)
    features = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float16, shape)
    words = np.zeros((count, MOST_WORDS), np.int16)
    for at in range(0, count, BATCH):
        features[at : at + BATCH], words[at : at + BATCH] = composer.batch()
    features.flush()
    np.save(folder / "words.npy", words)  # last: its being there says that all is


def ready(folder: Path, count: int) -> bool:
    """Are there that many sequences?"""
    path = folder / "words.npy"
    return path.is_file() and len(np.load(path, mmap_mode="r")) >= count


def batches(folder: Path, size: int, seed: int) -> Iterator[tuple[Array, Array]]:
    """Batches of features [size, rows, width] float32 and words [size, MOST_WORDS] without an end, shuffled."""
    features, words = np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "words.npy")
    random = np.random.default_rng([seed, 2])
    while True:
        order = random.permutation(len(words))
        for at in range(0, len(order) - size + 1, size):
            chosen = np.sort(order[at : at + size])
            yield features[chosen].astype(np.float32), words[chosen]
