"""Evaluation sets: clips of one second from the test voices, as many of every label, clean and at two noise levels.

    test_clean.npz   clips [n, 16000] int16, labels [n] int64, words [n], voices [n], starts [n], ends [n]
    test_10db.npz    the same clips with noise, 10 dB below the words
    test_0db.npz     and as loud as the words

`silence` is noise alone: faint in the clean set, as loud as it is for the words in the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
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
    """Clips with their labels, and who says what, and when; silence has neither word nor voice nor time (0)."""

    clips: Array  # [n, CLIP_SAMPLES] int16
    labels: Array  # [n] int64, index into LABELS
    words: Array  # [n] str
    voices: Array  # [n] str
    starts: Array  # [n] int64, samples: where the word begins and ends
    ends: Array  # [n] int64

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{field.name: getattr(self, field.name) for field in fields(self)})


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
        return Clips(**{field.name: file[field.name] for field in fields(Clips)})


def evaluation_set(words: WordSet, snr_db: float | None, per_label: int = PER_LABEL, seed: int = SEED) -> Clips:
    """`per_label` clips of each label, in their order; every level has the same words at the same places."""
    choose, place, disturb = (np.random.default_rng([seed, part]) for part in range(3))
    noise = NoiseBank(words, seed)
    utterances = chosen(words, per_label, choose)
    sounds, times = [], []
    for index in utterances:
        word = words[int(index)]
        sound, start = clip(word, place)
        sounds.append(sound if snr_db is None else in_noise(sound, noise.draw(CLIP_SAMPLES, disturb), snr_db))
        times.append((start, min(CLIP_SAMPLES, start + word.end - word.start)))
    for _ in range(per_label):
        quiet, drawn = np.zeros(CLIP_SAMPLES, np.float32), noise.draw(CLIP_SAMPLES, disturb)
        faint = drawn * gain(disturb.uniform(*FAINT_DB))
        sounds.append(faint if snr_db is None else in_noise(quiet, drawn, snr_db))
    starts, ends = np.array([*times, *[(0, 0)] * per_label]).T
    nobody = [""] * per_label
    return Clips(
        clips=pcm(np.stack(sounds)),
        labels=np.concatenate([words.labels[utterances], np.full(per_label, SILENCE)]),
        words=np.concatenate([np.array(words.words)[words.word[utterances]], nobody]),
        voices=np.concatenate([np.array(words.voices)[words.voice[utterances]], nobody]),
        starts=starts,
        ends=ends,
    )


def clean_clips(words: WordSet, utterances: Array, seed: int = SEED) -> Clips:
    """A clip without noise of each of some utterances."""
    place, silent = np.random.default_rng([seed, 3]), np.zeros((len(utterances), CLIP_SAMPLES), np.int16)
    made = Clips(
        clips=silent,
        labels=words.labels[utterances],
        words=np.array(words.words)[words.word[utterances]],
        voices=np.array(words.voices)[words.voice[utterances]],
        starts=np.zeros(len(utterances), np.int64),
        ends=np.zeros(len(utterances), np.int64),
    )
    for row, index in enumerate(utterances):
        word = words[int(index)]
        sound, made.starts[row] = clip(word, place)
        made.ends[row] = min(CLIP_SAMPLES, made.starts[row] + word.end - word.start)
        made.clips[row] = pcm(sound)
    return made


def pcm(sound: Array) -> Array:
    """Sound in [-1, 1] as int16, what is beyond cut off."""
    return np.round(np.clip(sound, -1.0, 1.0 - 1.0 / FULL_SCALE) * FULL_SCALE).astype(np.int16)


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
