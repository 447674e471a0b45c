"""A set of spoken words: every sound of a split in one array, and where each begins and ends.

SPLIT.npy    samples [total] int16, mapped into memory when read
SPLIT.npz    the other fields of `WordSet`
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.tasks.kws.voices import SPLITS
from bench.tasks.kws.words import label_of
from edgemem.errors import InputError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768.0
SPEECH_RMS = 0.07  # of every word between its start and end: -23 dB of full scale
LARGEST_PEAK = 0.98

ENERGY_FRAME_SAMPLES = 160
ACTIVE_DB = -36.0  # of the loudest frame; quieter frames at either end are not part of the word
NOISE_SHARE = 0.1  # of a recording's frames are taken to be noise alone
ABOVE_NOISE_DB = 10.0  # what a frame of a recorded word has to be at least
LOUD_DB = -15.0  # frames within this of the loudest are part of a recorded word in any case
MARGIN_SAMPLES = 800  # kept on either side of a word, for soft onsets and endings


@dataclass(frozen=True)
class Spoken:
    """One utterance: sound [samples] float32, the word between samples `start` and `end` of it."""

    word: str
    voice: str
    sound: Array
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class WordSet:
    """Utterances of one split. Utterance i is `samples[offsets[i]:offsets[i + 1]]`, normalised in loudness."""

    samples: Array  # [total] int16
    offsets: Array  # [n + 1] int64
    start: Array  # [n] int64, of the word, counted from the utterance's first sample
    end: Array  # [n] int64
    word: Array  # [n] int64, index into `words`
    voice: Array  # [n] int64, index into `voices`
    words: tuple[str, ...]
    voices: tuple[str, ...]
    background: tuple[Array, ...] = ()  # recorded noise, each [samples] float32; of Speech Commands

    def __len__(self) -> int:
        return len(self.word)

    def __getitem__(self, index: int) -> Spoken:
        if not 0 <= index < len(self):
            raise IndexError(index)
        pcm = self.samples[self.offsets[index] : self.offsets[index + 1]]
        return Spoken(
            self.words[self.word[index]],
            self.voices[self.voice[index]],
            pcm.astype(np.float32) / np.float32(FULL_SCALE),
            int(self.start[index]),
            int(self.end[index]),
        )

    @property
    def labels(self) -> Array:
        """[n] int64: index in `edgemem.tasks.kws.LABELS` of every utterance."""
        return np.array([label_of(word) for word in self.words], np.int64)[self.word]

    def by_label(self) -> dict[int, Array]:
        """The utterances of every label there is."""
        labels = self.labels
        return {int(label): np.flatnonzero(labels == label) for label in np.unique(labels)}

    def save(self, folder: Path, split: str) -> None:
        """Write both files."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{split}.npy", self.samples)
        index = {name: getattr(self, name) for name in ("offsets", "start", "end", "word", "voice")}
        index.update({f"background.{i}": noise for i, noise in enumerate(self.background)})
        np.savez_compressed(folder / f"{split}.npz", words=np.array(self.words), voices=np.array(self.voices), **index)


def read(folder: Path, split: str, maker: str = "bench.tasks.kws.data") -> WordSet:
    """A split that the command `maker` has written to `folder`.

    Raises:
        UsageError: an unknown split.
        InputError: it has not been written.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    path = folder / f"{split}.npz"
    if not path.is_file():
        raise InputError(
            f"{path}: spoken words were wanted, nothing is there; `python -m {maker} --folder {folder}` makes them"
        )
    with np.load(path, allow_pickle=False) as index:
        arrays = {name: index[name] for name in ("offsets", "start", "end", "word", "voice")}
        background = tuple(index[name] for name in index.files if name.startswith("background."))
        words, voices = (tuple(str(name) for name in index[key]) for key in ("words", "voices"))
    samples = np.load(folder / f"{split}.npy", mmap_mode="r", allow_pickle=False)
    return WordSet(samples, **arrays, words=words, voices=voices, background=background)


def gathered(utterances: Iterable[Spoken], background: Sequence[Array] = ()) -> WordSet:
    """One set of many utterances, in their order."""
    items = [(u.word, u.voice, np.round(u.sound * FULL_SCALE).astype(np.int16), u.start, u.end) for u in utterances]
    words, voices = sorted({item[0] for item in items}), sorted({item[1] for item in items})
    return WordSet(
        samples=np.concatenate([np.empty(0, np.int16), *(pcm for _, _, pcm, _, _ in items)]),
        offsets=np.cumsum([0, *(len(pcm) for _, _, pcm, _, _ in items)], dtype=np.int64),
        start=np.array([start for *_, start, _ in items], np.int64),
        end=np.array([end for *_, end in items], np.int64),
        word=np.array([words.index(item[0]) for item in items], np.int64),
        voice=np.array([voices.index(item[1]) for item in items], np.int64),
        words=tuple(words),
        voices=tuple(voices),
        background=tuple(background),
    )


def trimmed(word: str, voice: str, sound: Array, margin: int = MARGIN_SAMPLES, recorded: bool = False) -> Spoken:
    """The word in a sound, found by its energy, with `margin` samples around it and the loudness of all others.

    `recorded` sounds have a noise of their own around the word.

    Raises:
        InputError: the sound is silent.
    """
    start, end = active_span(sound, recorded)
    if start == end:
        raise InputError(f"{word!r} by {voice}: speech was wanted, silence came; check the synthesiser or the file")
    first, last = max(0, start - margin), min(len(sound), end + margin)
    gain = SPEECH_RMS / float(np.sqrt(np.mean(np.square(sound[start:end], dtype=np.float64))))
    gain = min(gain, LARGEST_PEAK / float(np.abs(sound).max()))
    kept = (sound[first:last] * gain).astype(np.float32)
    return Spoken(word, voice, kept, start - first, end - first)


def active_span(sound: Array, recorded: bool = False) -> tuple[int, int]:
    """First and last sample of the frames that are loud enough to be speech; (0, 0) for silence."""
    frames = len(sound) // ENERGY_FRAME_SAMPLES
    blocks = sound[: frames * ENERGY_FRAME_SAMPLES].reshape(frames, ENERGY_FRAME_SAMPLES)
    energy = np.square(blocks, dtype=np.float64).mean(axis=1)
    if not frames or energy.max() == 0.0:
        return 0, 0
    least = energy.max() * power(ACTIVE_DB)
    if recorded:
        noise = np.quantile(energy, NOISE_SHARE)
        least = max(least, min(noise * power(ABOVE_NOISE_DB), energy.max() * power(LOUD_DB)))
    active = np.flatnonzero(energy >= least)
    return int(active[0]) * ENERGY_FRAME_SAMPLES, int(active[-1] + 1) * ENERGY_FRAME_SAMPLES


def power(db: float) -> float:
    """Decibels as a ratio of powers."""
    return float(10.0 ** (db / 10.0))
