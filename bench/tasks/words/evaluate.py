"""How well strings by voices that no training heard are understood, streamed through an exported file.

A clip is some silence, a string, and some silence again; it goes through the file in blocks of 0.1 s, as a microphone
would give it, from the start state. `streams` are all clips of a voice in one stream that is never reset.

Latency is measured on the last word of a string that was understood without an error: from the end of the string
(where its energy ends) to the end of the block whose arrival made the word known. It is the wait for the segment and
for the look-ahead, and what the model waits for by itself; computing is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.tasks.kws import augment
from bench.tasks.kws.clip_sets import FAINT_DB, LEVELS
from bench.tasks.kws.features import features_of
from bench.tasks.kws.noise import NoiseBank
from bench.tasks.kws.wordset import FULL_SCALE, SAMPLE_RATE, WordSet
from bench.tasks.words.compose import FRONT_END, stacked
from edgemem.models.folding import SpeechFolding
from edgemem.program import Program
from edgemem.tasks.words import Heard, Transcriber, token_errors, transcript

Array = np.ndarray[Any, np.dtype[Any]]

TEST_SEED = 8  # of the silences and noises of the test set
BEFORE_SECONDS = (0.2, 0.6)
AFTER_SECONDS = 1.0  # so that the last word becomes known before the stream ends
BLOCK_SAMPLES = SAMPLE_RATE // 10
BATCH = 50

__all__ = ["LEVELS", "Clip", "clips", "judged", "streams", "validation_errors"]


@dataclass(frozen=True)
class Clip:
    """A string in a sound [samples] float32; it ends at sample `end`."""

    sound: Array
    words: tuple[str, ...]
    voice: str
    end: int


def clips(
    strings: WordSet, snr_db: float | None, seed: int, count: int | None = None, after: float = AFTER_SECONDS
) -> list[Clip]:
    """The strings of a set (`count` of them, spread over it), clean or with noise; the same at any level.

    `after` are the seconds of silence behind a string.
    """
    place, disturb = (np.random.default_rng([seed, part]) for part in range(2))
    noise = NoiseBank(strings, seed, known=set(strings.words))
    chosen = np.arange(len(strings)) if count is None else np.linspace(0, len(strings) - 1, count).round().astype(int)
    made = []
    for index in chosen:
        string = strings[int(index)]
        before = round(place.uniform(*BEFORE_SECONDS) * SAMPLE_RATE)
        sound = np.pad(string.sound, (before, round(after * SAMPLE_RATE)))
        drawn = noise.draw(len(sound), disturb)
        if snr_db is None:
            sound = sound + drawn * augment.gain(disturb.uniform(*FAINT_DB))
        else:
            sound = augment.in_noise(sound, drawn, snr_db)
        pcm = np.round(np.clip(sound, -1.0, 1.0 - 1.0 / FULL_SCALE) * FULL_SCALE) / FULL_SCALE
        words = tuple(string.word.split())
        made.append(Clip(pcm.astype(np.float32), words, string.voice, before + string.end))
    return made


def streams(made: Sequence[Clip]) -> list[Clip]:
    """The clips of every voice, one behind the other."""
    voices = list(dict.fromkeys(clip.voice for clip in made))
    groups = [[clip for clip in made if clip.voice == voice] for voice in voices]
    return [
        Clip(np.concatenate([c.sound for c in group]), tuple(w for c in group for w in c.words), group[0].voice, 0)
        for group in groups
    ]


def heard(program: Program, sound: Array) -> list[Heard]:
    """The words of one stream, each with the time at which it was known: how much had come by then, in seconds."""
    stream, transcriber = program.stream(), Transcriber(program.contract.outputs[0].labels or ())
    found = []
    for at in range(0, len(sound), BLOCK_SAMPLES):
        rows = stream.push_samples(sound[at : at + BLOCK_SAMPLES])
        known = min(at + BLOCK_SAMPLES, len(sound)) / SAMPLE_RATE
        found += transcriber.push(rows.values, np.full(len(rows), known))
    rows = stream.flush()
    return found + transcriber.push(rows.values, np.full(len(rows), len(sound) / SAMPLE_RATE))


def judged(program: Program, made: Sequence[Clip]) -> dict[str, Any]:
    """Token error rate over all clips and by voice, whole strings right, and the latency of last words in seconds."""
    errors: dict[str, int] = {}
    words: dict[str, int] = {}
    right, waits = 0, []
    for clip in made:
        found = heard(program, clip.sound)
        wrong = token_errors(clip.words, [word.label for word in found])
        errors[clip.voice] = errors.get(clip.voice, 0) + wrong
        words[clip.voice] = words.get(clip.voice, 0) + len(clip.words)
        if not wrong:
            right += 1
            waits.append(found[-1].time - clip.end / SAMPLE_RATE)
    return {
        "token_error_rate": sum(errors.values()) / sum(words.values()),
        "words": sum(words.values()),
        "strings": len(made),
        "strings_right": right / len(made),
        "by_voice": {voice: errors[voice] / words[voice] for voice in errors},
        "latency_seconds": {
            "median": float(np.median(waits)) if waits else None,
            "p95": float(np.quantile(waits, 0.95)) if waits else None,
        },
    }


def validation_errors(model: SpeechFolding, made: Sequence[Clip]) -> float:
    """Token error rate by the parallel form, to watch a training with."""
    wrong = 0
    longest = max(len(clip.sound) for clip in made)
    for at in range(0, len(made), BATCH):
        group = made[at : at + BATCH]
        sounds = torch.from_numpy(np.stack([np.pad(c.sound, (0, longest - len(c.sound))) for c in group]))
        with torch.no_grad():
            logits = model(torch.from_numpy(stacked(features_of(sounds).numpy()))).numpy()
        for clip, rows in zip(group, logits, strict=True):
            wrong += token_errors(clip.words, transcript(rows[: FRONT_END.rows(len(clip.sound))]))
    return wrong / sum(len(clip.words) for clip in made)


def sizes(path: Path) -> dict[str, Any]:
    """What a step of an exported file costs."""
    from edgemem import inspect

    facts = inspect.facts(path)
    return {name: facts[name] for name in ("weight_bytes", "state_bytes", "macs_per_step")}
