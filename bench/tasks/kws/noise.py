"""Noise and rooms, synthesised: everything at 16 kHz, float32, noise with an RMS of 1.

white, pink, brown    power falling by 0, 3, 6 dB per octave
hum                   mains of 50 or 60 Hz with its harmonics, swelling slowly
clicks                knocks: short resonances at random times
tones                 notes with harmonics, one after the other, as music would
babble                many words of the word set at once, those to be known backwards
recorded              background noise that came with the word set
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from bench.tasks.kws.wordset import SAMPLE_RATE, WordSet
from edgemem.tasks.kws import KEYWORDS

Array = np.ndarray[Any, np.dtype[Any]]
Random = np.random.Generator

BANK_SECONDS = 20.0  # of each kind; excerpts are drawn from it
MIXED = 0.3  # share of excerpts that are two kinds at once
LOWEST_HZ = 40.0  # of coloured noise, so that its power is where it can be heard

HUM_HARMONICS = 12
CLICKS_PER_SECOND = 8.0
CLICK_SAMPLES = 1600
NOTES_PER_SECOND = 4.0
NOTE_SAMPLES = 8000
NOTE_HARMONICS = 6
LOWEST_NOTE_HZ = 110.0
BABBLE_LAYERS = 6

ROOM_SECONDS = (0.1, 0.5)  # until an echo has faded by 60 dB
DIRECT_TO_ECHO_DB = (-2.0, 12.0)
FIRST_ECHO_SAMPLES = 40
ROOMS = 24


def colored(samples: int, exponent: float, random: Random) -> Array:
    """Noise whose power falls with frequency ** -exponent: 0 is white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    shape = np.maximum(frequency, LOWEST_HZ) ** (-exponent / 2) * (frequency > 0)
    return np.fft.irfft(spectrum * shape, samples)


def hum(samples: int, random: Random) -> Array:
    """Mains hum, half of it of 50 Hz and half of 60."""
    t = np.arange(samples) / SAMPLE_RATE
    mains = np.where(t < t[-1] / 2, 50.0, 60.0)
    order = np.arange(1, HUM_HARMONICS + 1)[:, None]
    size = random.uniform(0.1, 1.0, (HUM_HARMONICS, 1)) / order**0.5
    swell = 1.0 + 0.3 * np.sin(2 * np.pi * 0.4 * t)
    return swell * (size * np.sin(2 * np.pi * order * mains * t)).sum(axis=0)


def clicks(samples: int, random: Random) -> Array:
    """Knocks at random times, each a decaying resonance of its own pitch."""
    t = np.arange(CLICK_SAMPLES) / SAMPLE_RATE

    def click() -> Array:
        hz, decay = random.uniform(200, 5000), random.uniform(0.003, 0.03)
        return random.uniform(0.2, 1.0) * np.exp(-t / decay) * np.sin(2 * np.pi * hz * t)

    return scattered(samples, CLICK_SAMPLES, CLICKS_PER_SECOND, click, random)


def tones(samples: int, random: Random) -> Array:
    """Notes of three octaves that overlap; each swells and fades."""
    t = np.arange(NOTE_SAMPLES) / SAMPLE_RATE
    envelope = np.minimum(1.0, t / 0.02) * np.exp(-t / 0.15)
    order = np.arange(1, NOTE_HARMONICS + 1)[:, None]

    def note() -> Array:
        hz = LOWEST_NOTE_HZ * 2 ** (random.integers(0, 36) / 12)
        size = random.uniform(0, 1, (NOTE_HARMONICS, 1)) / order
        return envelope * (size * np.sin(2 * np.pi * hz * order * t)).sum(axis=0)

    return scattered(samples, NOTE_SAMPLES, NOTES_PER_SECOND, note, random)


def scattered(samples: int, length: int, per_second: float, sound: Callable[[], Array], random: Random) -> Array:
    """Sounds of `length` samples added at random places."""
    total = np.zeros(samples + length)
    for at in random.integers(0, samples, max(1, round(samples / SAMPLE_RATE * per_second))):
        total[at : at + length] += sound()
    return total[:samples]


def babble(samples: int, words: WordSet, random: Random, known: Collection[str] = KEYWORDS) -> Array:
    """Layers of words in a row, all at once. Those in `known` run backwards, so that none of them is heard in it."""
    total = np.zeros(samples)
    for _ in range(BABBLE_LAYERS):
        at = 0
        while at < samples:
            word = words[int(random.integers(len(words)))]
            backwards = word.word in known or random.random() < 0.5
            sound = word.sound[::-1] if backwards else word.sound
            sound = sound[: samples - at]
            total[at : at + len(sound)] += sound
            at += len(sound)
    return total


class NoiseBank:
    """Some seconds of every kind of noise, to draw excerpts from."""

    def __init__(
        self, words: WordSet, seed: int, seconds: float = BANK_SECONDS, known: Collection[str] = KEYWORDS
    ) -> None:
        random = np.random.default_rng(seed)
        samples = round(seconds * SAMPLE_RATE)
        kinds = {
            "white": colored(samples, 0.0, random),
            "pink": colored(samples, 1.0, random),
            "brown": colored(samples, 2.0, random),
            "hum": hum(samples, random),
            "clicks": clicks(samples, random),
            "tones": tones(samples, random),
            "babble": babble(samples, words, random, known),
        }
        if words.background:
            kinds["recorded"] = np.concatenate([leveled(noise) for noise in words.background])
        self.kinds = {name: leveled(noise).astype(np.float32) for name, noise in kinds.items()}

    def draw(self, samples: int, random: Random) -> Array:
        """An excerpt [samples] of one kind, or of two at once, with an RMS of 1."""
        names = list(self.kinds)
        parts = {names[int(random.integers(len(names)))]: 1.0}
        if random.random() < MIXED:
            parts.setdefault(names[int(random.integers(len(names)))], random.uniform(0.2, 1.0))
        return self.mixed(parts, samples, random)

    def mixed(self, parts: dict[str, float], samples: int, random: Random) -> Array:
        """Excerpts of several kinds at once [samples], each at its amplitude, with an RMS of 1 together."""
        total = np.zeros(samples, np.float32)
        for kind, amplitude in parts.items():
            total += np.float32(amplitude) * self.excerpt(kind, samples, random)
        return leveled(total)

    def excerpt(self, kind: str, samples: int, random: Random) -> Array:
        """`samples` of one kind, from a random place on; the bank goes round."""
        noise = self.kinds[kind]
        at = int(random.integers(len(noise)))
        return np.resize(
            np.concatenate([noise[at : at + samples], noise[: max(0, at + samples - len(noise))]]), samples
        )


class Rooms:
    """Echoes of a few random rooms, for sounds of one length. The direct sound keeps its time."""

    def __init__(self, samples: int, seed: int, count: int = ROOMS) -> None:
        random = np.random.default_rng(seed)
        echoes = [impulse_response(random) for _ in range(count)]
        self.samples = samples
        self.points = 1 << (samples + max(map(len, echoes)) - 1).bit_length()
        self.spectra = np.stack([np.fft.rfft(echo, self.points) for echo in echoes]).astype(np.complex64)

    def heard(self, sound: Array, random: Random) -> Array:
        """A sound [samples] in one of the rooms, as loud as before."""
        spectrum = np.fft.rfft(sound, self.points) * self.spectra[int(random.integers(len(self.spectra)))]
        echoing = np.fft.irfft(spectrum, self.points)[: self.samples]
        loudness = np.sqrt(np.mean(np.square(sound, dtype=np.float64)) / np.maximum(np.mean(echoing**2), 1e-20))
        louder: Array = (echoing * loudness).astype(np.float32)
        return louder


def impulse_response(random: Random) -> Array:
    """1 at time 0, then noise that decays by 60 dB within the room's time [taps]."""
    taps = int(random.uniform(*ROOM_SECONDS) * SAMPLE_RATE)
    echo = random.standard_normal(taps) * 10.0 ** (-3.0 * np.arange(taps) / taps)
    echo[:FIRST_ECHO_SAMPLES] = 0.0
    echo *= 10 ** (-random.uniform(*DIRECT_TO_ECHO_DB) / 20) / np.sqrt(np.sum(echo**2))
    echo[0] = 1.0
    return echo


def leveled(noise: Array) -> Array:
    """The same with an RMS of 1; silence stays silence."""
    rms = float(np.sqrt(np.mean(np.square(noise, dtype=np.float64))))
    return noise if rms == 0.0 else noise / noise.dtype.type(rms)
