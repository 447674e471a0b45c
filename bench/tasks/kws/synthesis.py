"""Words spoken by espeak-ng and flite, each in many voices, speeds and pitches. The same recipe gives the same bytes.

A recipe is a list of `Rendition`s; everything that varies in one is drawn from a generator seeded by what it is of,
so that adding a voice or a word leaves all others as they were.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.tasks.kws.voices import ACCENTS, DEFAULT, ESPEAK, FLITE
from bench.tasks.kws.words import unknown_words
from bench.tasks.kws.wordset import SAMPLE_RATE, Spoken, trimmed
from edgemem.errors import InputError, MissingDependency
from edgemem.tasks.kws import KEYWORDS

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 2024
TOOLS = ("espeak-ng", "flite")
INSTALL = ("apt-get", "install", "-y", "espeak-ng", "flite")

# renditions of a word by one voice: (keywords, other words)
ESPEAK_TIMES = {"train": (17, 1), "valid": (8, 1), "test": (5, 1)}
FLITE_TIMES = {"train": (40, 5), "valid": (0, 0), "test": (30, 2)}

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
    """All renditions of a split, in a fixed order."""
    found = []
    for engine, voices, times in (
        ("espeak", ESPEAK[split], ESPEAK_TIMES[split]),
        ("flite", FLITE[split], FLITE_TIMES[split]),
    ):
        for voice in voices:
            for words, count in zip((KEYWORDS, unknown_words(split)), times, strict=True):
                found += [rendition(engine, voice, word, turn) for word in words for turn in range(count)]
    return found


def rendition(engine: str, voice: str, word: str, turn: int) -> Rendition:
    """The `turn`-th rendition of a word by a voice."""
    random = np.random.default_rng([SEED, zlib.crc32(f"{engine} {voice} {word} {turn}".encode())])
    ending = str(random.choice(ENDINGS))
    if engine == "espeak":
        words_per_minute, pitch = int(random.integers(*ESPEAK_WORDS_PER_MINUTE)), int(random.integers(*ESPEAK_PITCH))
        return Rendition(word, "espeak", voice, str(random.choice(ACCENTS)), words_per_minute, pitch, ending)
    speed, factor = 1 / random.uniform(*FLITE_STRETCH), random.uniform(*FLITE_PITCH)
    return Rendition(word, "flite", voice, "", round(speed, 3), round(factor, 3), ending)


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
        sounds = {synthesized(Rendition("yes", "espeak", voice, accent, 175, 50)).tobytes() for voice in variants}
        if len(sounds) < len(variants):
            raise MissingDependency(f"espeak-ng speaks {accent} without its variants; install espeak-ng 1.51")


def install() -> None:
    """Install both synthesisers with apt-get."""
    prefix = [] if shutil.which("sudo") is None else ["sudo"]
    subprocess.run([*prefix, *INSTALL], check=True)


def spoken(asked: Rendition) -> Spoken:
    """A rendition as a trimmed utterance; one that is too long is spoken again, faster, and one too short slower.

    Raises:
        InputError: the synthesiser failed, gave silence, or takes too long at any speed.
    """
    for _ in range(ATTEMPTS):
        utterance = trimmed(asked.word, asked.speaker, synthesized(asked))
        seconds = (utterance.end - utterance.start) / SAMPLE_RATE
        if SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
            return utterance
        asked = replace(asked, speed=round(asked.speed * (FASTER if seconds > LONGEST_SECONDS else 1 / FASTER), 3))
    if seconds > LONGEST_SECONDS:
        raise InputError(f"{asked}: at most {LONGEST_SECONDS} s was wanted, even so it takes longer; drop the word")
    return utterance


def all_spoken(asked: list[Rendition], workers: int = 2) -> Iterator[Spoken]:
    """Every rendition, in order. The work is in the synthesisers' own processes, so threads are enough."""
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(spoken, asked, chunksize=16)


def synthesized(asked: Rendition) -> Array:
    """What the synthesiser says [samples], at 16 kHz, float32."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        done = subprocess.run(command(asked, file.name), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        data = Path(file.name).read_bytes()
    if done.returncode or len(data) <= WAV_HEADER_BYTES:
        raise InputError(f"{asked}: the synthesiser failed: {done.stderr.decode(errors='replace').strip()}")
    rate = int.from_bytes(data[RATE_AT_BYTE : RATE_AT_BYTE + 4], "little")
    sound = np.frombuffer(data, "<i2", offset=WAV_HEADER_BYTES).astype(np.float32) / np.float32(32_768)
    if rate == SAMPLE_RATE:
        return sound
    import soxr

    resampled: Array = soxr.resample(sound, rate, SAMPLE_RATE, quality="HQ")
    return resampled


def command(asked: Rendition, path: str) -> list[str]:
    """The command that writes a rendition to a WAV file."""
    text = asked.word + asked.ending
    if asked.engine == "flite":
        options = [f"duration_stretch={1 / asked.speed:.3f}", f"f0_shift={asked.pitch}"]
        settings = [part for option in options for part in ("--setf", option)]
        return ["flite", "-voice", asked.voice, *settings, "-t", text, "-o", path]
    voice = asked.accent + (f"+{asked.voice}" if asked.voice != DEFAULT else "")
    return ["espeak-ng", "-v", voice, "-s", str(round(asked.speed)), "-p", str(round(asked.pitch)), "-w", path, text]
