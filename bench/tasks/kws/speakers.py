"""Speakers for training that exist nowhere else: random settings of espeak-ng's synthesiser, as its variant files.

    pitch LOW HIGH                       hertz, of the intonation
    formant N FREQUENCY HEIGHT WIDTH     percent of the accent's own; the fundamental is 0, the tract's are 1..8
    voicing, consonants                  percent: loudness of voiced sounds, of the noise in consonants
    breath, breathw                      noise at each formant, and its width
    flutter, roughness, echo, tone, ...  as the synthesiser's documentation has them

A tract's length moves all its formants together, and each a little by itself. The ranges reach to where a listener
begins to have trouble, as espeak-ng's own variants do. None of these speakers is among those.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

SEED = 2025
SPEAKERS = 400
PREFIX = "drawn"
FORMANTS = 9
LONGEST_TRACT, SHORTEST_TRACT = 0.8, 1.35  # factor of the formants' frequencies
CHILD_OR_WOMAN = 1.05  # from this factor on


@cache
def drawn_speakers() -> dict[str, tuple[str, ...]]:
    """The lines of every speaker's variant file, by its name."""
    return {f"{PREFIX}{index}": speaker(index) for index in range(SPEAKERS)}


def speaker(index: int) -> tuple[str, ...]:
    """The variant file of one speaker."""
    random = np.random.default_rng([SEED, index])
    tract = math.exp(random.uniform(math.log(LONGEST_TRACT), math.log(SHORTEST_TRACT)))
    lines = ["language variant", f"name {PREFIX}{index}", pitch_line(tract, random)]
    lines += [formant_line(number, tract, random) for number in range(FORMANTS)]
    return (*lines, *source_lines(random), *manner_lines(random))


def pitch_line(tract: float, random: np.random.Generator) -> str:
    """The pitch range; short tracts mostly go with high voices."""
    high = random.random() < (0.85 if tract > CHILD_OR_WOMAN else 0.15)
    low = random.uniform(115, 220) if high else random.uniform(60, 125)
    return f"pitch {low:.0f} {low * random.uniform(1.1, 2.0):.0f}"


def formant_line(number: int, tract: float, random: np.random.Generator) -> str:
    """Frequency, height and width of one formant; upper ones may be missing, as on a bad line."""
    if number == 0:
        return f"formant 0 {random.uniform(60, 115):.0f} {random.uniform(70, 135):.0f} {random.uniform(80, 150):.0f}"
    frequency = 100 * tract * random.normal(1.0, 0.07)
    if random.random() < {1: 0.0, 2: 0.0, 3: 0.07}.get(number, 0.12):
        return f"formant {number} 0 0 0"
    height = random.uniform(50, 150) if number <= 3 else random.uniform(20, 150)
    return f"formant {number} {frequency:.0f} {height:.0f} {random.uniform(40, 180):.0f}"


def source_lines(random: np.random.Generator) -> list[str]:
    """What the glottis and the mouth's noise do."""
    lines = []
    if random.random() < 0.5:
        lines.append(f"voicing {random.uniform(30, 220):.0f}")
    if random.random() < 0.6:
        lines.append(f"consonants {random.uniform(25, 150):.0f} {random.uniform(20, 150):.0f}")
    if random.random() < 0.35:
        lines.append(f"roughness {random.integers(0, 5)}")
    if random.random() < 0.5:
        lines.append(f"flutter {random.integers(0, 21)}")
    if random.random() < 0.25:
        lines.append("breath " + numbers(random.integers(0, 13, 8)))
        lines.append("breathw " + numbers(random.integers(100, 400, 6)))
    if random.random() < 0.2:
        lines.append(f"klatt {random.integers(1, 7)}")
    return lines


def manner_lines(random: np.random.Generator) -> list[str]:
    """Intonation, stress, the room and the colour of the whole."""
    lines = []
    if random.random() < 0.3:
        lines.append(f"intonation {random.integers(1, 5)}")
    if random.random() < 0.25:
        lines.append("stressAmp " + numbers(random.integers(12, 36, 8)))
    if random.random() < 0.25:
        lines.append("stressAdd " + numbers(random.integers(-30, 100, 8)))
    if random.random() < 0.15:
        lines.append(f"echo {random.integers(10, 140)} {random.integers(5, 45)}")
    if random.random() < 0.2:
        points = np.stack([np.sort(random.integers(100, 5000, 4)), random.integers(10, 256, 4)], axis=1)
        lines.append("tone " + numbers(points.ravel()))
    return lines


def numbers(values: np.ndarray) -> str:
    """Whole numbers with spaces between."""
    return " ".join(str(int(value)) for value in values)
