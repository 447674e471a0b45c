"""What is said: strings of digits, and short commands. The same recipe gives the same strings.

    seven one one nine          half of the strings: one to six digits
    go up, left three stop      the other half: one to five words, two of three of them commands

Words are drawn one by one, each as likely as another, so that nothing but the sound tells which comes next. A string
is spoken as a whole, by espeak-ng or flite, so that neighbouring words run into each other as they do in speech; a
comma here and there makes a pause. Speakers are those of the keyword spotter, held out alike.
"""

from __future__ import annotations

import zlib

import numpy as np

from bench.tasks.kws.synthesis import Rendition, in_some_manner
from bench.tasks.kws.voices import ESPEAK, FLITE
from edgemem.tasks.words import COMMANDS, DIGITS

SEED = 2026
# strings by one voice of: espeak-ng, flite, the speakers drawn at random
TIMES = {"train": (150, 300, 24), "valid": (25, 0, 0), "test": (30, 150, 0)}
MOST_DIGITS, MOST_COMMANDS = 6, 5
COMMAND_SHARE = 2 / 3
COMMA_SHARE = 0.2  # of the gaps between words
WORDS_PER_MINUTE = (115, 200)  # of espeak-ng


def recipe(split: str, drawn: tuple[str, ...] = ()) -> list[Rendition]:
    """All strings of a split, in a fixed order; `drawn` are the further speakers of espeak-ng."""
    groups = (("espeak", ESPEAK[split]), ("flite", FLITE[split]), ("espeak", drawn))
    return [
        rendition(engine, voice, turn)
        for (engine, voices), times in zip(groups, TIMES[split], strict=True)
        for voice in voices
        for turn in range(times)
    ]


def rendition(engine: str, voice: str, turn: int) -> Rendition:
    """The `turn`-th string by a voice; its `word` is the text, commas included."""
    random = np.random.default_rng([SEED, zlib.crc32(f"{engine} {voice} {turn}".encode())])
    return in_some_manner(punctuated(drawn_words(random), random), engine, voice, random, WORDS_PER_MINUTE)


def drawn_words(random: np.random.Generator) -> list[str]:
    """The words of one string."""
    if random.random() < 0.5:
        return [str(random.choice(DIGITS)) for _ in range(random.integers(1, MOST_DIGITS + 1))]
    count = random.integers(1, MOST_COMMANDS + 1)
    return [str(random.choice(COMMANDS if random.random() < COMMAND_SHARE else DIGITS)) for _ in range(count)]


def punctuated(words: list[str], random: np.random.Generator) -> str:
    """The words with spaces, some of them with commas, between."""
    gaps = [", " if random.random() < COMMA_SHARE else " " for _ in words[1:]]
    return words[0] + "".join(gap + word for gap, word in zip(gaps, words[1:], strict=True))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, without its commas."""
    return tuple(text.replace(",", " ").split())
