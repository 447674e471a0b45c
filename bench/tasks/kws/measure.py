"""What is reported of a spotter: accuracy on clips, words it must reject, early decisions, cost."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bench.tasks.kws import clip_sets, data, evaluate
from bench.tasks.kws.augment import CLIP_SAMPLES, Array
from bench.tasks.kws.clip_sets import Clips
from bench.tasks.kws.features import FRONT_END
from bench.tasks.kws.words import CONFUSABLE, OTHER, SILENCE, SPEECH_COMMANDS, UNKNOWN, UNSEEN_UNKNOWN
from bench.tasks.kws.wordset import SAMPLE_RATE, WordSet
from edgemem.cells.spiking import LeakyIntegrateAndFire
from edgemem.export import export_model
from edgemem.inspect import facts
from edgemem.tasks import kws

SCENES = 20  # minutes of speech without an end
TEST_SEED = 8
REJECTED = {
    "other Speech Commands": SPEECH_COMMANDS,
    "ordinary": OTHER,
    "near a keyword": CONFUSABLE,
    "never trained on": UNSEEN_UNKNOWN,
}
SHARES = tuple(round(0.05 * step, 2) for step in range(6, 31))  # of the word heard, 1 being its end
CUTS = tuple(round(0.05 * step, 2) for step in range(6, 21))  # of a clip, its silence included
INCONSEQUENTIAL = 0.01  # accuracy that an early decision may lose


def measured(model: nn.Module, folder: Path, scenes: int = SCENES) -> dict[str, Any]:
    """What the test voices say of a model."""
    counts: dict[str, Array] = {}
    voices: dict[str, dict[str, float]] = {}
    for level in clip_sets.LEVELS:
        clips = clip_sets.load(folder, level)
        rows = evaluate.clip_posteriors(model, clips)
        counts[level] = evaluate.confusion(rows, clips.labels)
        voices[level] = evaluate.by_voice(rows, clips)
        if level == "clean":
            early, rate = early_decisions(rows, clips), spike_rate(model, clips)
            middle = evaluate.clip_posteriors(model, centred(clips))
            cut = {"anywhere": cut_clips(rows, clips), "centred": cut_clips(middle, clips)}
    words = data.load("test", folder)
    made = evaluate.scenes(words, scenes, TEST_SEED)
    return {
        "accuracy": {level: evaluate.accuracy(c) for level, c in counts.items()},
        "confusion": {"labels": list(kws.LABELS), **{level: c.tolist() for level, c in counts.items()}},
        "accuracy_by_voice": voices,
        "test_voices": sorted(voices["clean"]),
        "clips_per_level": int(counts["clean"].sum()),
        "rejected": rejected(model, words),
        "early": early,
        "cut": cut,
        **({} if rate is None else {"spikes_per_neuron_and_row": rate}),
        "always_on": evaluate.tally(evaluate.scene_posteriors(model, made), made),
    }


def spike_rate(model: nn.Module, clips: Clips) -> float | None:
    """Spikes per neuron and row over some clips; None for a model without neurons that spike."""
    neurons = [part for part in model.modules() if isinstance(part, LeakyIntegrateAndFire)]
    counted: list[tuple[float, int]] = []
    hooks = [
        part.register_forward_hook(lambda _, __, spikes: counted.append((float(spikes.sum()), spikes.numel())))
        for part in neurons
    ]
    evaluate.clip_posteriors(model, clips)
    for hook in hooks:
        hook.remove()
    return sum(spikes for spikes, _ in counted) / sum(places for _, places in counted) if counted else None


def rejected(model: nn.Module, words: WordSet) -> dict[str, dict[str, float]]:
    """Of the words that are no keywords, by kind: how many clean clips are taken for `unknown`."""
    clips = clip_sets.clean_clips(words, np.flatnonzero(words.labels == UNKNOWN))
    decided = np.array(
        [kws.LABELS.index(kws.clip_decision(v)[0]) for v in evaluate.clip_posteriors(model, clips)], np.int64
    )
    found = {}
    for kind, members in REJECTED.items():
        mine = decided[np.isin(clips.words, members)]
        found[kind] = {
            "clips": len(mine),
            "as_unknown": float(np.mean(mine == UNKNOWN)),
            "as_keyword": float(np.mean(mine < UNKNOWN)),
        }
    return found


def early_decisions(rows: Array, clips: Clips) -> dict[str, Any]:
    """Accuracy by how much of a word has been heard, of clips [n, rows, labels] that hold one.

    The decision is the label of the highest posterior in the last row that ended by then, `silence` aside: it is
    known that a word is being said. `shortened` is the share of the longest hearing that can be left out for
    a loss of at most `INCONSEQUENTIAL`.
    """
    ends = np.asarray(FRONT_END.frame_end_seconds(np.arange(rows.shape[1]))) * SAMPLE_RATE
    spoken = np.flatnonzero(clips.labels != SILENCE)
    accuracy = []
    for share in SHARES:
        heard = clips.starts[spoken] + share * (clips.ends - clips.starts)[spoken]
        last = np.searchsorted(ends, np.minimum(heard, CLIP_SAMPLES), side="right") - 1
        decided = rows[spoken, np.maximum(last, 0), :SILENCE].argmax(axis=1)
        accuracy.append(float(np.mean(decided == clips.labels[spoken])))
    enough = next(s for s, a in zip(SHARES, accuracy, strict=True) if a >= max(accuracy) - INCONSEQUENTIAL)
    full = SHARES[int(np.argmax(accuracy))]
    return {
        "share_heard": list(SHARES),
        "accuracy": accuracy,
        "enough": enough,
        "shortened": max(0.0, 1.0 - enough / full),
    }


def cut_clips(rows: Array, clips: Clips) -> dict[str, Any]:
    """Accuracy by how much of every clip is heard, from its first sample on, as the LMUFormer paper cuts sequences.

    `shortened` is the share of a clip that can be cut off for a loss of at most `INCONSEQUENTIAL`.
    """
    kept = [max(1, round(share * rows.shape[1])) for share in CUTS]
    accuracy = [evaluate.accuracy(evaluate.confusion(rows[:, :count], clips.labels)) for count in kept]
    enough = next(s for s, a in zip(CUTS, accuracy, strict=True) if a >= accuracy[-1] - INCONSEQUENTIAL)
    return {"share_kept": list(CUTS), "accuracy": accuracy, "enough": enough, "shortened": 1.0 - enough}


def centred(clips: Clips) -> Clips:
    """Clean clips with their words in the middle, about where those of Speech Commands have them."""
    moved = np.zeros_like(clips.clips)
    shifts = np.where(clips.labels == SILENCE, 0, (CLIP_SAMPLES - clips.starts - clips.ends) // 2)
    for sound, target, shift in zip(clips.clips, moved, shifts.tolist(), strict=True):
        kept = slice(max(0, -shift), CLIP_SAMPLES - max(0, shift))
        target[kept.start + shift : kept.stop + shift] = sound[kept]
    return replace(clips, clips=moved, starts=clips.starts + shifts, ends=clips.ends + shifts)


def cost(name: str, checkpoint: Path) -> dict[str, Any]:
    """Sizes and arithmetic of a checkpoint's exported step."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_model(name, path, checkpoint=checkpoint)
        found = facts(path)
    model, chunk = found["contract"]["model"], found["contract"]["chunk"]
    return {
        "model": name,
        "config": model["config"],
        "parameters": model["parameters"],
        "state_bytes": found["state_bytes"],
        "checkpoint_bytes": checkpoint.stat().st_size,
        "macs_per_second_of_audio": round(found["macs_per_step"] / chunk["seconds_per_unit"] / chunk["size"]),
        "seconds_per_step": chunk["seconds_per_unit"] * chunk["size"],
    }
