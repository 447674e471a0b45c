"""Spoken strings of words, made once and kept.

    python -m bench.tasks.words.data               19 740 strings by espeak-ng and flite
    python -m bench.tasks.words.data --install     installs both first, with apt-get
    python -m bench.tasks.words.data --splits test         only what models are judged by

    split    strings   words  hours  voices
    train      18750   61157    6.5     457
    valid        300     962    0.1      12
    test         690    2173    0.2      19

writes the splits to build/words (--folder), as word sets of which every `word` is a string; `load("train")` reads one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench import training
from bench.tasks.kws import synthesis, wordset
from bench.tasks.kws.synthesis import Rendition
from bench.tasks.kws.voices import DRAWN, SPLITS
from bench.tasks.kws.wordset import SAMPLE_RATE, Spoken, WordSet
from bench.tasks.words.strings import recipe, words_of

FOLDER = Path(__file__).parents[3] / "build" / "words"
QUICK_FOLDER = FOLDER.with_name("words-quick")
# Of --quick: every so many speakers of a split, and every so many of their strings.
QUICK_SPEAKERS, QUICK_STRINGS = {"train": 12, "valid": 1, "test": 1}, {"train": 4, "valid": 5, "test": 8}
LONGEST_SECONDS = 4.2  # so that a string fits into a training sequence at any of its speeds
FASTER = 1.2


def load(split: str, folder: Path = FOLDER) -> WordSet:
    """A split that this command has written.

    Raises:
        UsageError: an unknown split.
        InputError: it has not been written.
    """
    return wordset.read(folder, split, "bench.tasks.words.data")


def said(asked: Rendition) -> Spoken:
    """A string as a trimmed utterance of its words without commas; one that is too long is spoken again, faster.

    Raises:
        InputError: the synthesiser failed, gave silence, or takes too long at any speed.
    """
    utterance = synthesis.spoken(asked, longest=LONGEST_SECONDS, shortest=0.0, faster=FASTER)
    return replace(utterance, word=" ".join(words_of(utterance.word)))


def make(split: str, workers: int = 2, quick: bool = False) -> WordSet:
    """A split by the synthesisers; with `quick`, a small share of it."""
    asked = recipe(split, DRAWN[split])
    if quick:
        asked = synthesis.thinned(asked, QUICK_SPEAKERS[split], QUICK_STRINGS[split])
    return wordset.gathered(synthesis.all_spoken(asked, workers, said))


def make_all(folder: Path, workers: int = 2, quick: bool = False, splits: Sequence[str] = tuple(SPLITS)) -> None:
    """Write all splits, or some; print what they hold.

    Raises:
        MissingDependency: a synthesiser or one of its voices.
    """
    synthesis.check_tools()
    print("split    strings   words  hours  voices")
    for split in splits:
        strings = make(split, workers, quick)
        strings.save(folder, split)
        print(row(split, strings), flush=True)


def row(split: str, strings: WordSet) -> str:
    """One line of the table."""
    words = sum(len(strings.words[index].split()) for index in strings.word)
    hours = len(strings.samples) / SAMPLE_RATE / 3600
    return f"{split:7}{len(strings):9}{words:8}{hours:7.1f}{len(strings.voices):8}"


def main() -> None:
    """See the module docstring."""
    parser = synthesis.maker_arguments(__doc__, FOLDER)
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS), help="only these")
    options = parser.parse_args()
    training.as_command(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Install the synthesisers if asked to, and make everything."""
    begin = time.perf_counter()
    if options.install:
        synthesis.install()
    make_all(options.folder, options.workers, splits=options.splits)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
