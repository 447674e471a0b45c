"""How good the spotter is on voices that it has never heard, by the rules that users get.

Clips of one second are judged by `edgemem.tasks.kws.clip_decision`, sounds without an end by `Detector`; both read
the posteriors that streaming gives, row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.tasks.kws import augment
from bench.tasks.kws.augment import Array, Placed
from bench.tasks.kws.clip_sets import Clips
from bench.tasks.kws.features import FRONT_END, features_of
from bench.tasks.kws.wordset import FULL_SCALE, SAMPLE_RATE, WordSet
from edgemem.tasks.kws import LABELS, QUIET, Detector, clip_decision

BATCH = 64
LATE_SAMPLES = round(0.6 * SAMPLE_RATE)  # after the end of a word in which its detection still counts
SCENE_SECONDS = 60.0
SCENE_RECIPE = augment.Recipe(speeds=(1.0,), pause_seconds=(0.1, 1.5), snr_db=(5.0, 25.0), empty=0.0, unknown=0.5)

Scene = tuple[Array, list[Placed]]  # sound [samples], the words in it


def posteriors(model: nn.Module, features: Tensor) -> Array:
    """Label probabilities [batch, rows, labels] of features [batch, rows, width]."""
    with torch.no_grad():
        return torch.softmax(model(features), dim=-1).numpy()


def clip_posteriors(model: nn.Module, clips: Clips) -> Array:
    """[clips, rows, labels], some clips at a time."""
    parts = (clips.clips[at : at + BATCH] for at in range(0, len(clips.clips), BATCH))
    sounds = (torch.from_numpy(pcm.astype(np.float32) / np.float32(FULL_SCALE)) for pcm in parts)
    return np.concatenate([posteriors(model, features_of(sound)) for sound in sounds])


def confusion(rows: Array, labels: Array, **rule: Any) -> Array:
    """Counts [spoken label, decided label] from posteriors [clips, rows, labels]."""
    counts = np.zeros((len(LABELS), len(LABELS)), np.int64)
    for values, label in zip(rows, labels, strict=True):
        counts[label, LABELS.index(clip_decision(values, **rule)[0])] += 1
    return counts


def accuracy(counts: Array) -> float:
    """Share of clips on the diagonal."""
    return float(np.trace(counts) / counts.sum())


def by_voice(rows: Array, clips: Clips) -> dict[str, float]:
    """The accuracy on the clips of each speaker; `silence` has none."""
    spoken = sorted(set(clips.voices.tolist()) - {""})
    chosen = {voice: clips.voices == voice for voice in spoken}
    return {voice: accuracy(confusion(rows[mine], clips.labels[mine])) for voice, mine in chosen.items()}


def scenes(words: WordSet, count: int, seed: int) -> list[Scene]:
    """Minutes of words and pauses in noise, half of the words being no keywords."""
    maker = augment.StreamMaker(words, FRONT_END, seed, SCENE_SECONDS, SCENE_RECIPE)
    return [maker.sequence() for _ in range(count)]


def scene_posteriors(model: nn.Module, made: Sequence[Scene]) -> list[Array]:
    """[rows, labels] of every scene."""
    return [posteriors(model, features_of(torch.from_numpy(sound).float()[None]))[0] for sound, _ in made]


def tally(values: Sequence[Array], made: Sequence[Scene], **rule: Any) -> dict[str, float]:
    """Compare the detections in the posteriors of each scene with its words."""
    keywords = hits = alarms = 0
    delays: list[float] = []
    for rows, (_, placed) in zip(values, made, strict=True):
        due = [word for word in placed if LABELS[word.label] not in QUIET]
        keywords += len(due)
        times = np.asarray(FRONT_END.frame_end_seconds(np.arange(len(rows))))
        for found in Detector(LABELS, **rule).push(rows, times):
            match = next(
                (word for word in due if LABELS[word.label] == found.label and in_time(word, found.time)), None
            )
            if match is None:
                alarms += 1
                continue
            due.remove(match)
            hits += 1
            delays.append(found.time - match.end / SAMPLE_RATE)
    hours = sum(len(sound) for sound, _ in made) / SAMPLE_RATE / 3600
    return {
        "hours": hours,
        "keywords": keywords,
        "hit_rate": hits / max(1, keywords),
        "precision": hits / max(1, hits + alarms),
        "false_alarms_per_hour": alarms / hours,
        "median_delay_seconds": float(np.median(delays)) if delays else 0.0,
    }


def in_time(word: Placed, seconds: float) -> bool:
    """Is a detection at that time one of this word?"""
    return word.start < seconds * SAMPLE_RATE <= word.end + LATE_SAMPLES
