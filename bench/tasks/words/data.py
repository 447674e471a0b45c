"""Spoken strings of words, made once and kept.

    python -m bench.tasks.words.data               19 740 strings by espeak-ng and flite
    python -m bench.tasks.words.data --install     installs both first, with apt-get

    split    strings   words  hours  voices
    train      18750   61157    6.5     457
    valid        300     962    0.1      12
    test         690    2173    0.2      19

writes the splits to build/words (--folder), as word sets of which every `word` is a string; `load("train")` reads one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from bench.tasks.kws import synthesis, wordset
from bench.tasks.kws.synthesis import Rendition
from bench.tasks.kws.voices import DRAWN, SPLITS
from bench.tasks.kws.wordset import SAMPLE_RATE, Spoken, WordSet, trimmed
from bench.tasks.words.strings import recipe, words_of
from edgemem.errors import EdgememError, InputError, UsageError

FOLDER = Path(__file__).parents[3] / "build" / "words"
QUICK_FOLDER = FOLDER.with_name("words-quick")
# Of --quick: every so many speakers of a split, and every so many of their strings.
QUICK_SPEAKERS, QUICK_STRINGS = {"train": 12, "valid": 1, "test": 1}, {"train": 4, "valid": 5, "test": 8}
LONGEST_SECONDS = 4.2  # so that a string fits into a training sequence at any of its speeds
FASTER = 1.2
ATTEMPTS = 5


def load(split: str, folder: Path = FOLDER) -> WordSet:
    """A split that this command has written.

    Raises:
        UsageError: an unknown split.
        InputError: it has not been written.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if not (folder / f"{split}.npz").is_file():
        raise InputError(
            f"{folder}: spoken strings were wanted, none are there; "
            f"`python -m bench.tasks.words.data --folder {folder}` makes them"
        )
    return wordset.read(folder, split)


def said(asked: Rendition) -> Spoken:
    """A string as a trimmed utterance; one that is too long is spoken again, faster.

    Raises:
        InputError: the synthesiser failed, gave silence, or takes too long at any speed.
    """
    for _ in range(ATTEMPTS):
        utterance = trimmed(" ".join(words_of(asked.word)), asked.speaker, synthesis.synthesized(asked))
        if utterance.end - utterance.start <= LONGEST_SECONDS * SAMPLE_RATE:
            return utterance
        asked = replace(asked, speed=round(asked.speed * FASTER, 3))
    raise InputError(f"{asked}: at most {LONGEST_SECONDS} s was wanted, even so it takes longer; use fewer words")


def by_one_speaker(asked: Sequence[Rendition]) -> list[Spoken]:
    """The strings of one speaker, in order."""
    return [said(rendition) for rendition in asked]


def all_said(asked: Sequence[Rendition], workers: int = 2) -> Iterator[Spoken]:
    """Every string, in order; each speaker in a process of its own, so that its bytes do not depend on others."""
    groups = [list(group) for _, group in groupby(asked, key=lambda rendition: rendition.speaker)]
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        for utterances in pool.imap(by_one_speaker, groups, chunksize=1):
            yield from utterances


def make(split: str, workers: int = 2, quick: bool = False) -> WordSet:
    """A split by the synthesisers; with `quick`, a small share of it."""
    asked = recipe(split, DRAWN[split])
    if quick:
        speakers = list(dict.fromkeys(rendition.speaker for rendition in asked))[:: QUICK_SPEAKERS[split]]
        asked = [rendition for rendition in asked if rendition.speaker in speakers][:: QUICK_STRINGS[split]]
    return wordset.gathered(all_said(asked, workers))


def make_all(folder: Path, workers: int = 2, quick: bool = False) -> None:
    """Write all splits; print what they hold.

    Raises:
        MissingDependency: a synthesiser or one of its voices.
    """
    synthesis.check_tools()
    print("split    strings   words  hours  voices")
    for split in SPLITS:
        strings = make(split, workers, quick)
        strings.save(folder, split)
        print(row(split, strings), flush=True)


def row(split: str, strings: WordSet) -> str:
    """One line of the table."""
    words = sum(len(strings.words[index].split()) for index in strings.word)
    hours = len(strings.samples) / SAMPLE_RATE / 3600
    return f"{split:7}{len(strings):9}{words:8}{hours:7.1f}{len(strings.voices):8}"


def main() -> None:
    """Write all splits; print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (build/words)")
    parser.add_argument("--install", action="store_true", help="install espeak-ng and flite with apt-get first")
    parser.add_argument("--workers", type=int, default=2, help="synthesiser processes at a time")
    options = parser.parse_args()
    begin = time.perf_counter()
    try:
        if options.install:
            synthesis.install()
        make_all(options.folder, options.workers)
    except EdgememError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
