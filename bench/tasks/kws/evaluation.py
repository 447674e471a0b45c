"""Evaluation sets: clips of one second from the test voices, as many of every label, clean and at two noise levels.

    test_clean.npz   clips [n, 16000] int16, labels [n] int64, words [n], voices [n]
    test_10db.npz    the same clips with noise, 10 dB below the words
    test_0db.npz     and as loud as the words

`silence` is noise alone: faint in the clean set, as loud as it is for the words in the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.tasks.kws.augment import CLIP_SAMPLES, clip, gain, in_noise
from bench.tasks.kws.noise import NoiseBank
from bench.tasks.kws.words import SILENCE, UNKNOWN
from bench.tasks.kws.wordset import FULL_SCALE, WordSet, read
from edgemem.errors import InputError
from edgemem.tasks.kws import LABELS

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 99  # training uses others
PER_LABEL = 120
LEVELS: dict[str, float | None] = {"clean": None, "10db": 10.0, "0db": 0.0}  # signal-to-noise ratio in dB
FAINT_DB = (-90.0, -60.0)  # of full scale: what a microphone hears in a silent room


@dataclass(frozen=True)
class Clips:
    """Clips with their labels, and who says what; silence has neither word nor voice."""

    clips: Array  # [n, CLIP_SAMPLES] int16
    labels: Array  # [n] int64, index into LABELS
    words: Array  # [n] str
    voices: Array  # [n] str

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, clips=self.clips, labels=self.labels, words=self.words, voices=self.voices)


def write(folder: Path, per_label: int = PER_LABEL) -> Iterator[tuple[Path, int]]:
    """Write every set beside the word sets in `folder`; gives the path and number of clips of each."""
    words = read(folder, "test")
    for name, snr_db in LEVELS.items():
        clips = evaluation_set(words, snr_db, per_label)
        path = folder / f"test_{name}.npz"
        clips.save(path)
        yield path, len(clips.labels)


def load(folder: Path, level: str) -> Clips:
    """A set that was written, by the name of its level.

    Raises:
        InputError: it is not there.
    """
    path = folder / f"test_{level}.npz"
    if not path.is_file():
        raise InputError(
            f"{path}: evaluation clips were wanted, nothing is there; run `python -m bench.tasks.kws.data`"
        )
    with np.load(path, allow_pickle=False) as file:
        return Clips(*(file[name] for name in ("clips", "labels", "words", "voices")))


def evaluation_set(words: WordSet, snr_db: float | None, per_label: int = PER_LABEL, seed: int = SEED) -> Clips:
    """`per_label` clips of each label, in their order; every level has the same words at the same places."""
    choose, place, disturb = (np.random.default_rng([seed, part]) for part in range(3))
    noise = NoiseBank(words, seed)
    utterances = chosen(words, per_label, choose)
    sounds, said, voices = [], [], []
    for index in utterances:
        word = words[int(index)]
        sound = clip(word, place)
        sounds.append(sound if snr_db is None else in_noise(sound, noise.draw(CLIP_SAMPLES, disturb), snr_db))
        said.append(word.word)
        voices.append(word.voice)
    for _ in range(per_label):
        quiet, drawn = np.zeros(CLIP_SAMPLES, np.float32), noise.draw(CLIP_SAMPLES, disturb)
        faint = drawn * gain(disturb.uniform(*FAINT_DB))
        sounds.append(faint if snr_db is None else in_noise(quiet, drawn, snr_db))
    pcm = np.round(np.clip(np.stack(sounds), -1.0, 1.0 - 1.0 / FULL_SCALE) * FULL_SCALE).astype(np.int16)
    labels = np.concatenate([words.labels[utterances], np.full(per_label, SILENCE)])
    nobody = [""] * per_label
    return Clips(pcm, labels, np.array([*said, *nobody]), np.array([*voices, *nobody]))


def chosen(words: WordSet, per_label: int, random: np.random.Generator) -> Array:
    """`per_label` utterances of every spoken label, spread evenly over voices.

    Raises:
        InputError: a label with too few utterances.
    """
    picked = []
    by_label = words.by_label()
    for label in (*range(len(LABELS) - 2), UNKNOWN):
        there = by_label.get(label, np.empty(0, np.int64))
        if len(there) < per_label:
            raise InputError(f"{LABELS[label]}: {per_label} utterances were wanted, {len(there)} are in the set")
        picked.append(np.sort(evenly(random.permutation(there), words.voice)[:per_label]))
    return np.concatenate(picked)


def evenly(utterances: Array, voice: Array) -> Array:
    """The utterances, reordered: one of each voice, then a second one of each, and so on."""
    turn: dict[int, int] = {}
    turns = []
    for index in utterances:
        speaker = int(voice[index])
        turn[speaker] = turn.get(speaker, -1) + 1
        turns.append(turn[speaker])
    return utterances[np.argsort(turns, kind="stable")]
