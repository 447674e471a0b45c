"""Words in noise: clips of one second with one word, sequences of several words with a label for every row.

A row of features is labelled by its end, since that is when a streaming model knows it:

    pause                                      silence
    word, up to 85 % of it                     its label or silence: too little has been heard
    word from 85 % on, and 0.2 s after it      its label
    0.1 s after that                           its label or silence: the answer may fade

and where a word begins before the last one's time is over, the new word's times hold. Where two labels are right, no
third one is: what begins like another word must not be taken for it before it can be told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.tasks.kws.noise import NoiseBank, Random, Rooms
from bench.tasks.kws.words import SILENCE, UNKNOWN, label_of
from bench.tasks.kws.wordset import SAMPLE_RATE, SPEECH_RMS, Spoken, WordSet
from edgemem.audio import FrontEnd
from edgemem.tasks.kws import KEYWORDS

Array = np.ndarray[Any, np.dtype[Any]]

KNOWN_SHARE = 0.85  # of a word, from which on it can be told
HOLD_SECONDS = 0.2  # after a word, its label still holds
FADE_SECONDS = 0.1

CLIP_SAMPLES = SAMPLE_RATE
SEQUENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Recipe:
    """How training sequences vary. Pairs are ranges; `clean`, `reverb`, `tilt`, `empty`, `unknown` are shares."""

    speeds: tuple[float, ...] = (0.85, 0.92, 1.0, 1.08, 1.15)
    gain_db: tuple[float, float] = (-18.0, 10.0)  # of the whole sequence
    word_gain_db: tuple[float, float] = (-4.0, 4.0)  # of each word
    snr_db: tuple[float, float] = (-5.0, 25.0)
    clean: float = 0.2  # sequences without noise, but for `floor_db`
    floor_db: tuple[float, float] = (-100.0, -55.0)  # faint noise of every microphone, of full scale
    reverb: float = 0.3
    tilt: float = 0.5  # sequences through a microphone that favours low or high frequencies
    empty: float = 0.08  # sequences of noise alone
    unknown: float = 0.35  # words that are none of the keywords
    pause_seconds: tuple[float, float] = (0.05, 0.8)


@dataclass(frozen=True)
class Placed:
    """A word in a longer sound, between samples `start` and `end`."""

    label: int
    start: int
    end: int


def faster(word: Spoken, speed: float) -> Spoken:
    """A word played `speed` times as fast, its pitch with it."""
    if speed == 1.0:
        return word
    import soxr

    sound = soxr.resample(word.sound, round(SAMPLE_RATE * speed), SAMPLE_RATE, quality="QQ")
    start, end = (min(round(at / speed), len(sound)) for at in (word.start, word.end))
    return Spoken(word.word, word.voice, sound, start, end)


def gain(db: float) -> np.float32:
    """Decibels as a factor of amplitudes."""
    return np.float32(10.0 ** (db / 20.0))


def in_noise(sound: Array, noise: Array, snr_db: float) -> Array:
    """Speech of the common loudness with noise of an RMS of 1 added at a signal-to-noise ratio."""
    return sound + noise * (gain(-snr_db) * np.float32(SPEECH_RMS))


def tilted(sound: Array, slope: float) -> Array:
    """y[n] = (x[n] - slope x[n-1]) / (1 + |slope|): above 0 favours high frequencies, below 0 low ones."""
    mixed = sound.copy()
    mixed[1:] -= np.float32(slope) * sound[:-1]
    return mixed / np.float32(1 + abs(slope))


def clip(word: Spoken, random: Random, samples: int = CLIP_SAMPLES) -> tuple[Array, int]:
    """A word wholly inside a clip [samples], at a random place, and the sample it starts at.

    One that is longer loses both ends.
    """
    length = word.end - word.start
    if length > samples:
        cut = word.start + (length - samples) // 2
        return word.sound[cut : cut + samples].copy(), 0
    start = int(random.integers(samples - length + 1))
    at = start - word.start  # of the utterance's first sample in the clip
    first, last = max(0, -at), min(len(word.sound), samples - at)
    placed = np.zeros(samples, np.float32)
    placed[at + first : at + last] = word.sound[first:last]
    return placed, start


def stream(
    words: WordSet, by_label: dict[int, Array], random: Random, samples: int, recipe: Recipe
) -> tuple[Array, list[Placed]]:
    """Words in a row with pauses between them [samples], without noise; the last may be cut off.

    `by_label` are the utterances to choose from, by label (`WordSet.by_label`).
    """
    sound = np.zeros(samples, np.float32)
    placed: list[Placed] = []
    if random.random() < recipe.empty:
        return sound, placed
    keywords = [label for label in by_label if label != UNKNOWN]
    at = round(random.uniform(0.0, recipe.pause_seconds[1]) * SAMPLE_RATE)
    while at < samples:
        is_unknown = UNKNOWN in by_label and (random.random() < recipe.unknown or not keywords)
        label = UNKNOWN if is_unknown else keywords[int(random.integers(len(keywords)))]
        utterances = by_label[label]
        word = faster(
            words[int(utterances[int(random.integers(len(utterances)))])],
            recipe.speeds[int(random.integers(len(recipe.speeds)))],
        )
        first = max(0, at - word.start)  # the soft onset may reach into the pause
        skipped = max(0, word.start - at)
        part = word.sound[skipped : skipped + samples - first]
        sound[first : first + len(part)] += part * gain(random.uniform(*recipe.word_gain_db))
        placed.append(Placed(label_of(word.word), at, at + word.end - word.start))
        at = placed[-1].end + round(random.uniform(*recipe.pause_seconds) * SAMPLE_RATE)
    return sound, placed


def or_silence(label: Any) -> Any:
    """The code for a row in which `label` is right, and silence too; its own inverse."""
    return -1 - label


def row_labels(placed: Sequence[Placed], frontend: FrontEnd, rows: int, known_share: float = KNOWN_SHARE) -> Array:
    """The label of every row of features [rows] int64, or its `or_silence`; see the module docstring."""
    ends = np.asarray(frontend.frame_end_seconds(np.arange(rows))) * SAMPLE_RATE
    labels = np.full(rows, SILENCE, np.int64)
    for word in placed:
        known = word.start + known_share * (word.end - word.start)
        over = word.end + HOLD_SECONDS * SAMPLE_RATE
        labels[(ends > word.start) & (ends < known)] = or_silence(word.label)
        labels[(ends >= known) & (ends <= over)] = word.label
        labels[(ends > over) & (ends <= over + FADE_SECONDS * SAMPLE_RATE)] = or_silence(word.label)
    return labels


class Surroundings:
    """Where sounds of one length are heard: the room, other sounds, the microphone, how loud it all is.

    Babble is made of `words`; those in `known` run backwards in it.
    """

    def __init__(
        self, words: WordSet, samples: int, seed: int, recipe: Recipe, known: Collection[str] = KEYWORDS
    ) -> None:
        self.samples, self.recipe = samples, recipe
        self._noise = NoiseBank(words, seed, known=known)
        self._rooms = Rooms(samples, seed)

    def heard(self, sound: Array, random: Random, speech: bool = True) -> Array:
        """A sound [samples] as it is heard, in [-1, 1]; without `speech` in it, no echoes."""
        recipe = self.recipe
        if speech and random.random() < recipe.reverb:
            sound = self._rooms.heard(sound, random)
        if random.random() >= recipe.clean:
            sound = in_noise(sound, self._noise.draw(self.samples, random), random.uniform(*recipe.snr_db))
        if random.random() < recipe.tilt:
            sound = tilted(sound, random.uniform(-0.5, 0.9))
        sound = sound * gain(random.uniform(*recipe.gain_db))
        sound += self._noise.excerpt("white", self.samples, random) * gain(random.uniform(*recipe.floor_db))
        return np.clip(sound, -1.0, 1.0)


class StreamMaker:
    """Training sequences without an end, the same ones for the same seed.

    features, labels = StreamMaker(load("train"), frontend, seed=0).batch(64)
    """

    def __init__(
        self,
        words: WordSet,
        frontend: FrontEnd,
        seed: int,
        seconds: float = SEQUENCE_SECONDS,
        recipe: Recipe | None = None,
    ) -> None:
        self.words, self.frontend, self.recipe = words, frontend, recipe or Recipe()
        self.samples = round(seconds * SAMPLE_RATE)
        self.rows = frontend.rows(self.samples)
        self._by_label = words.by_label()
        self._random = np.random.default_rng(seed)
        self._around = Surroundings(words, self.samples, seed, self.recipe)

    def batch(self, n: int) -> tuple[Array, Array]:
        """Features [n, rows, width] float32 and labels [n, rows] int64 of the next n sequences."""
        features = np.empty((n, self.rows, self.frontend.width), np.float32)
        labels = np.empty((n, self.rows), np.int64)
        for index in range(n):
            sound, placed = self.sequence()
            features[index] = self.frontend.features(sound)
            labels[index] = row_labels(placed, self.frontend, self.rows)
        return features, labels

    def sequence(self) -> tuple[Array, list[Placed]]:
        """The next sequence: sound [samples] float32 in [-1, 1], and the words in it."""
        sound, placed = stream(self.words, self._by_label, self._random, self.samples, self.recipe)
        return self._around.heard(sound, self._random, speech=bool(placed)), placed
