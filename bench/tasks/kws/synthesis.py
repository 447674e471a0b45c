"""Words spoken by espeak-ng and flite, each in many voices, speeds and pitches. The same recipe gives the same bytes.

A recipe is a list of `Rendition`s; everything that varies in one is drawn from a generator seeded by what it is of,
so that adding a voice or a word leaves all others as they were.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.tasks.kws.espeak import Synthesizer
from bench.tasks.kws.speakers import drawn_speakers
from bench.tasks.kws.voices import ACCENTS, DEFAULT, DRAWN, ESPEAK, FLITE
from bench.tasks.kws.words import COMMON, SEEN_UNKNOWN, unknown_words
from bench.tasks.kws.wordset import SAMPLE_RATE, Spoken, trimmed
from edgemem.errors import InputError, MissingDependency
from edgemem.tasks.kws import KEYWORDS

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 2024
TOOLS = ("espeak-ng", "flite")
INSTALL = ("apt-get", "install", "-y", "espeak-ng", "flite")

# renditions of a word by one voice: (keywords, other words)
ESPEAK_TIMES = {"train": (10, 1), "valid": (8, 1), "test": (6, 1)}
FLITE_TIMES = {"train": (120, 12), "valid": (0, 0), "test": (30, 2)}
DRAWN_TIMES = 3  # of keywords
DRAWN_OTHERS = 30  # words of the whole vocabulary by each drawn speaker

ENDINGS = ("", ".", ",", "?", "!")  # the intonation they ask for
ESPEAK_WORDS_PER_MINUTE = (130, 210)
ESPEAK_PITCH = (25, 80)  # of 0..99 within the variant's range
FLITE_STRETCH = (0.75, 1.2)  # of durations
FLITE_PITCH = (0.8, 1.25)  # times the voice's own

LONGEST_SECONDS = 0.85  # so that a word fits into a clip of one second
SHORTEST_SECONDS = 0.18  # some voices swallow small words
FASTER = 1.25
ATTEMPTS = 5
WAV_HEADER_BYTES = 44
RATE_AT_BYTE = 24  # of the header


@dataclass(frozen=True)
class Rendition:
    """One word by one voice. `speed` is words per minute for espeak, a factor for flite; `pitch` as the options are."""

    word: str
    engine: Literal["espeak", "flite"]
    voice: str  # espeak-ng: the variant
    accent: str = ""
    speed: float = 1.0
    pitch: float = 1.0
    ending: str = ""

    @property
    def speaker(self) -> str:
        return f"{self.engine}:{self.voice or 'default'}"


def recipe(split: str) -> list[Rendition]:
    """All renditions of a split, in a fixed order, those of a speaker one after another."""
    found = []
    for engine, voices, times in (
        ("espeak", ESPEAK[split], ESPEAK_TIMES[split]),
        ("flite", FLITE[split], FLITE_TIMES[split]),
    ):
        for voice in voices:
            for words, count in zip((KEYWORDS, unknown_words(split)), times, strict=True):
                found += [rendition(engine, voice, word, turn) for word in words for turn in range(count)]
    for voice in DRAWN[split]:
        found += [rendition("espeak", voice, word, turn) for word in KEYWORDS for turn in range(DRAWN_TIMES)]
        found += [rendition("espeak", voice, word, 0) for word in other_words(voice)]
    return found


def other_words(voice: str) -> list[str]:
    """What a drawn speaker says that is no keyword."""
    random = np.random.default_rng([SEED, zlib.crc32(voice.encode())])
    return [str(word) for word in random.choice((*SEEN_UNKNOWN, *COMMON), DRAWN_OTHERS, replace=False)]


def rendition(engine: str, voice: str, word: str, turn: int) -> Rendition:
    """The `turn`-th rendition of a word by a voice."""
    random = np.random.default_rng([SEED, zlib.crc32(f"{engine} {voice} {word} {turn}".encode())])
    return in_some_manner(word, engine, voice, random, ESPEAK_WORDS_PER_MINUTE)


def in_some_manner(
    text: str, engine: str, voice: str, random: np.random.Generator, words_per_minute: tuple[int, int]
) -> Rendition:
    """A text by a voice, with speed, pitch, accent and ending drawn; `words_per_minute` is of espeak-ng."""
    ending = str(random.choice(ENDINGS))
    if engine == "espeak":
        speed, pitch = int(random.integers(*words_per_minute)), int(random.integers(*ESPEAK_PITCH))
        return Rendition(text, "espeak", voice, str(random.choice(ACCENTS)), speed, pitch, ending)
    factor, higher = 1 / random.uniform(*FLITE_STRETCH), random.uniform(*FLITE_PITCH)
    return Rendition(text, "flite", voice, "", round(factor, 3), round(higher, 3), ending)


def check_tools() -> None:
    """Refuse to start without the synthesisers and all their voices.

    espeak-ng speaks with its default voice where it lacks a variant or an accent does not heed it, which would put one
    speaker into two splits.

    Raises:
        MissingDependency: naming what is missing and the command that installs it.
    """
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise MissingDependency(f"{', '.join(missing)} not found; {' '.join(INSTALL)}, or run this with --install")
    listed = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    variants = {line.partition("!v/")[2].partition("  ")[0].strip() for line in listed.splitlines()}
    lacking = {name for names in ESPEAK.values() for name in names} - variants - {DEFAULT}
    spoken = subprocess.run(["flite", "-lv"], capture_output=True, text=True, check=True).stdout.split()
    lacking |= {name for names in FLITE.values() for name in names} - set(spoken)
    if lacking:
        raise MissingDependency(f"voices {sorted(lacking)} not found; install espeak-ng >= 1.51 and flite >= 2.2")
    check_accents()


def check_accents() -> None:
    """Refuse an espeak-ng that speaks an accent with one voice, whatever the variant.

    Raises:
        MissingDependency: naming the accent.
    """
    for accent in ACCENTS:
        variants = (DEFAULT, ESPEAK["test"][0])
        sounds = {
            u.sound.tobytes() for u in all_spoken([Rendition("yes", "espeak", v, accent, 175, 50) for v in variants])
        }
        if len(sounds) < len(variants):
            raise MissingDependency(f"espeak-ng speaks {accent} without its variants; install espeak-ng 1.51")


def install() -> None:
    """Install both synthesisers with apt-get."""
    prefix = [] if shutil.which("sudo") is None else ["sudo"]
    subprocess.run([*prefix, *INSTALL], check=True)


def spoken(
    asked: Rendition, longest: float = LONGEST_SECONDS, shortest: float = SHORTEST_SECONDS, faster: float = FASTER
) -> Spoken:
    """A rendition as a trimmed utterance; one that is too long is spoken again, faster, and one too short slower.

    Raises:
        InputError: the synthesiser failed, gave silence, or takes too long at any speed.
    """
    for _ in range(ATTEMPTS):
        utterance = trimmed(asked.word, asked.speaker, synthesized(asked))
        seconds = (utterance.end - utterance.start) / SAMPLE_RATE
        if shortest <= seconds <= longest:
            return utterance
        asked = replace(asked, speed=round(asked.speed * (faster if seconds > longest else 1 / faster), 3))
    if seconds > longest:
        raise InputError(f"{asked}: at most {longest} s was wanted, even so it takes longer; drop it, or a part of it")
    return utterance


def all_spoken(
    asked: Sequence[Rendition], workers: int = 2, say: Callable[[Rendition], Spoken] = spoken
) -> Iterator[Spoken]:
    """Every rendition, in order; each speaker in a process of its own, so that its bytes do not depend on others."""
    groups = [list(group) for _, group in groupby(asked, key=lambda rendition: rendition.speaker)]
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for said in pool.imap(partial(by_one_speaker, say), groups, chunksize=1):
            yield from said


def by_one_speaker(say: Callable[[Rendition], Spoken], asked: list[Rendition]) -> list[Spoken]:
    """The renditions by one speaker, in order."""
    return [say(rendition) for rendition in asked]


def thinned(asked: Sequence[Rendition], speakers: int, renditions: int) -> list[Rendition]:
    """A small share: every so many speakers, and every so many of their renditions."""
    kept = set(list(dict.fromkeys(rendition.speaker for rendition in asked))[::speakers])
    return [rendition for rendition in asked if rendition.speaker in kept][::renditions]


def maker_arguments(description: str | None, folder: Path) -> argparse.ArgumentParser:
    """What the commands that make spoken data all take; they write to `folder` by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=folder, help=f"where to write (build/{folder.name})")
    parser.add_argument("--install", action="store_true", help="install espeak-ng and flite with apt-get first")
    parser.add_argument("--workers", type=int, default=2, help="synthesiser processes at a time")
    return parser


def synthesized(asked: Rendition) -> Array:
    """What the synthesiser says [samples], at 16 kHz, float32."""
    if asked.engine == "flite":
        sound, rate = by_flite(asked)
    else:
        voice = asked.accent + (f"+{asked.voice}" if asked.voice != DEFAULT else "")
        espeak = synthesizer(asked.voice)
        sound = espeak.say(asked.word + asked.ending, voice, round(asked.speed), round(asked.pitch))
        rate = espeak.rate
    if rate == SAMPLE_RATE:
        return sound
    import soxr

    resampled: Array = soxr.resample(sound, rate, SAMPLE_RATE, quality="HQ")
    return resampled


@lru_cache(maxsize=1)
def synthesizer(voice: str) -> Synthesizer:
    """espeak-ng, with a drawn speaker if that is who is asked for."""
    return Synthesizer({name: lines for name, lines in drawn_speakers().items() if name == voice})


def by_flite(asked: Rendition) -> tuple[Array, int]:
    """What flite says [samples], and the samples per second."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        done = subprocess.run(command(asked, file.name), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        data = Path(file.name).read_bytes()
    if done.returncode or len(data) <= WAV_HEADER_BYTES:
        raise InputError(f"{asked}: the synthesiser failed: {done.stderr.decode(errors='replace').strip()}")
    rate = int.from_bytes(data[RATE_AT_BYTE : RATE_AT_BYTE + 4], "little")
    return np.frombuffer(data, "<i2", offset=WAV_HEADER_BYTES).astype(np.float32) / np.float32(32_768), rate


def command(asked: Rendition, path: str) -> list[str]:
    """The command by which flite writes a rendition to a WAV file."""
    options = [f"duration_stretch={1 / asked.speed:.3f}", f"f0_shift={asked.pitch}"]
    settings = [part for option in options for part in ("--setf", option)]
    return ["flite", "-voice", asked.voice, *settings, "-t", asked.word + asked.ending, "-o", path]
