"""Spoken words for keyword spotting, made once and kept.

    python -m bench.tasks.kws.data                              about 20 000 words by espeak-ng and flite
    python -m bench.tasks.kws.data --install                    installs both first, with apt-get
    python -m bench.tasks.kws.data --speech-commands DIR        from Speech Commands instead

    split  utterances  voices     yes      no      up    down  ...      go unknown
    train       15282      57    1061    1061    1061    1061  ...    1061    4672
    valid        1728      12      96      96      96      96  ...      96     768
    test         2800      19     120     120     120     120  ...     120    1600

writes the three splits and the evaluation sets to build/kws (--folder); `load("train")` reads a split.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from bench.tasks.kws import evaluation, speech_commands, synthesis, wordset
from bench.tasks.kws.voices import SPLITS
from bench.tasks.kws.words import SILENCE
from bench.tasks.kws.wordset import WordSet
from edgemem.errors import EdgememError, UsageError
from edgemem.tasks.kws import LABELS

FOLDER = Path(__file__).parents[3] / "build" / "kws"


def load(split: str, folder: Path = FOLDER) -> WordSet:
    """A split that this command has written.

    Raises:
        UsageError: an unknown split.
        InputError: it has not been written.
    """
    if split not in SPLITS:
        raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return wordset.read(folder, split)


def make(split: str, workers: int = 2) -> WordSet:
    """A split by the synthesisers."""
    return wordset.gathered(synthesis.all_spoken(synthesis.recipe(split), workers))


def row(split: str, words: WordSet) -> str:
    """One line of the table: utterances, voices and the count of every label that is spoken."""
    counts = np.bincount(words.labels, minlength=len(LABELS))
    return f"{split:5}{len(words):12}{len(words.voices):8}" + "".join(f"{count:8}" for count in counts[:SILENCE])


def main() -> None:
    """Write all splits and the evaluation sets; print what they hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write (build/kws)")
    parser.add_argument("--install", action="store_true", help="install espeak-ng and flite with apt-get first")
    parser.add_argument("--workers", type=int, default=2, help="synthesiser processes at a time")
    parser.add_argument("--speech-commands", type=Path, metavar="DIR", help="read this Speech Commands folder instead")
    options = parser.parse_args()
    begin = time.perf_counter()
    try:
        if options.speech_commands is None:
            if options.install:
                synthesis.install()
            synthesis.check_tools()
        print("split  utterances  voices" + "".join(f"{label:>8}" for label in LABELS[:SILENCE]))
        for split in SPLITS:
            source = options.speech_commands
            words = make(split, options.workers) if source is None else speech_commands.read(source, split)
            words.save(options.folder, split)
            print(row(split, words), flush=True)
        for path, count in evaluation.write(options.folder):
            print(f"{path}: {count} clips")
    except EdgememError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
