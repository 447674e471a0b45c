"""Google's Speech Commands (version 2) as word sets: recorded words by thousands of speakers.

DIR/yes/0a7c2a8d_nohash_0.wav      one second, 16 kHz; what precedes `_nohash_` is the speaker
DIR/validation_list.txt            `yes/0a7c2a8d_nohash_0.wav` per line; files in neither list are for training
DIR/testing_list.txt
DIR/_background_noise_/*.wav       minutes of noise
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bench.tasks.kws.voices import SPLITS
from bench.tasks.kws.wordset import SAMPLE_RATE, Spoken, WordSet, gathered, trimmed
from edgemem.audio import read_audio
from edgemem.errors import InputError, UsageError

BACKGROUND = "_background_noise_"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
SPEAKER_END = "_nohash_"


def read(folder: Path, split: str) -> WordSet:
    """One split of a Speech Commands folder, with its background noise.

    Files without any speech in them are left out.

    Raises:
        UsageError: an unknown split.
        InputError: the folder is not Speech Commands, or a listed file is missing or not audio.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    noise = [read_audio(path, SAMPLE_RATE) for path in sorted((folder / BACKGROUND).glob("*.wav"))]
    return gathered(utterances(folder, files(folder, split)), noise)


def files(folder: Path, split: str) -> list[str]:
    """The files of a split, as `word/file.wav`, sorted.

    Raises:
        InputError: a list is missing, or there is not one word.
    """
    listed = {}
    for name, file in LISTS.items():
        if not (folder / file).is_file():
            raise InputError(f"{folder}: a Speech Commands folder with {file} was wanted; give the unpacked archive")
        listed[name] = set((folder / file).read_text().split())
    if split in listed:
        found = listed[split]
    else:
        there = {f"{path.parent.name}/{path.name}" for path in folder.glob("[!_]*/*.wav")}
        found = there - listed["valid"] - listed["test"]
    if not found:
        raise InputError(f"{folder}: words for {split} were wanted, none are there; give the unpacked archive")
    return sorted(found)


def utterances(folder: Path, names: list[str]) -> Iterator[Spoken]:
    """Every file that holds speech, whole: the word lies where it was spoken."""
    for name in names:
        sound = read_audio(folder / name, SAMPLE_RATE)
        if not sound.any():
            continue
        word, _, file = name.partition("/")
        yield trimmed(word, file.partition(SPEAKER_END)[0], sound, margin=len(sound), recorded=True)
