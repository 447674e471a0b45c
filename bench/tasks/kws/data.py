"""Spoken words for keyword spotting, and the sequences to train on, made once and kept.

    python -m bench.tasks.kws.data                              some 40 000 words by espeak-ng and flite
    python -m bench.tasks.kws.data --install                    installs both first, with apt-get
    python -m bench.tasks.kws.data --speech-commands DIR        from Speech Commands instead

    split  utterances  voices     yes      no      up    down  ...      go unknown
    train       39316     457    2290    2290    2290    2290  ...    2290   16416
    valid        1728      12      96      96      96      96  ...      96     768
    test         2980      19     138     138     138     138  ...     138    1600

writes the three splits, the evaluation sets and the pool of training sequences (0.9 GB) to build/kws (--folder);
`load("train")` reads a split. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from bench import training
from bench.tasks.kws import clip_sets, pool, speech_commands, synthesis, wordset
from bench.tasks.kws.voices import SPLITS
from bench.tasks.kws.words import SILENCE
from bench.tasks.kws.wordset import WordSet
from edgemem.tasks.kws import LABELS

FOLDER = Path(__file__).parents[3] / "build" / "kws"
QUICK_FOLDER = FOLDER.with_name("kws-quick")

# Of --quick: every so many speakers of a split, or renditions; and what is made of them.
QUICK_SPEAKERS, QUICK_RENDITIONS = {"train": 12, "valid": 1, "test": 1}, {"train": 1, "valid": 4, "test": 4}
QUICK_CLIPS, QUICK_SEQUENCES = 20, 512


def load(split: str, folder: Path = FOLDER) -> WordSet:
    """A split that this command has written.

    Raises:
        UsageError: an unknown split.
        InputError: it has not been written.
    """
    return wordset.read(folder, split)


def make(split: str, workers: int = 2, quick: bool = False) -> WordSet:
    """A split by the synthesisers; with `quick`, a small share of it."""
    asked = synthesis.recipe(split)
    if quick:
        asked = synthesis.thinned(asked, QUICK_SPEAKERS[split], QUICK_RENDITIONS[split])
    return wordset.gathered(synthesis.all_spoken(asked, workers))


def make_all(folder: Path, workers: int = 2, source: Path | None = None, quick: bool = False) -> None:
    """Write all splits, the evaluation sets and the pool; print what they hold. `source` is of Speech Commands.

    Raises:
        MissingDependency: a synthesiser or one of its voices.
        InputError: no Speech Commands there, or too few words for the evaluation sets.
    """
    if source is None:
        synthesis.check_tools()
    print("split  utterances  voices" + "".join(f"{label:>8}" for label in LABELS[:SILENCE]))
    for split in SPLITS:
        words = make(split, workers, quick) if source is None else speech_commands.read(source, split)
        words.save(folder, split)
        print(row(split, words), flush=True)
    for path, count in clip_sets.write(folder, QUICK_CLIPS if quick else clip_sets.PER_LABEL):
        print(f"{path}: {count} clips")
    pool.make(folder, QUICK_SEQUENCES if quick else pool.SEQUENCES, lambda line: print(line, flush=True))


def row(split: str, words: WordSet) -> str:
    """One line of the table: utterances, voices and the count of every label that is spoken."""
    counts = np.bincount(words.labels, minlength=len(LABELS))
    return f"{split:5}{len(words):12}{len(words.voices):8}" + "".join(f"{count:8}" for count in counts[:SILENCE])


def main() -> None:
    """See the module docstring."""
    parser = synthesis.maker_arguments(__doc__, FOLDER)
    parser.add_argument("--speech-commands", type=Path, metavar="DIR", help="read this Speech Commands folder instead")
    options = parser.parse_args()
    training.as_command(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Install the synthesisers if asked to, and make everything."""
    begin = time.perf_counter()
    if options.install and options.speech_commands is None:
        synthesis.install()
    make_all(options.folder, options.workers, options.speech_commands)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
