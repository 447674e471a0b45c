"""What is chosen on the validation voices, and never on the test voices: weights, thresholds, smoothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

from torch import nn

from bench.tasks.kws import clip_sets, evaluate

CLIP_RULES = tuple(product((0.2, 0.3, 0.4, 0.5, 0.6, 0.7), (1, 2, 3, 5)))  # threshold, smoothing in rows
DETECTORS = tuple(
    product((0.5, 0.6, 0.7, 0.8, 0.9), (0.2, 0.3, 0.4), (2, 3, 5))
)  # threshold, refractory seconds, smoothing


def judge_of(sets: Sequence[clip_sets.Clips]) -> Callable[[nn.Module], float]:
    """The mean accuracy of a model on sets of validation clips."""

    def judge(model: nn.Module) -> float:
        counts = (evaluate.confusion(evaluate.clip_posteriors(model, clips), clips.labels) for clips in sets)
        return sum(evaluate.accuracy(c) for c in counts) / len(sets)

    return judge


def tuned_clip_rule(model: nn.Module, sets: Sequence[clip_sets.Clips]) -> dict[str, float]:
    """Threshold and smoothing of `clip_decision` that are best on validation clips."""
    rows = [evaluate.clip_posteriors(model, clips) for clips in sets]

    def score(threshold: float, smoothing: int) -> float:
        rule = {"threshold": threshold, "smoothing": smoothing}
        pairs = zip(rows, sets, strict=True)
        return sum(evaluate.accuracy(evaluate.confusion(values, clips.labels, **rule)) for values, clips in pairs)

    best = max(CLIP_RULES, key=lambda rule: score(*rule))
    return {"threshold": best[0], "smoothing": best[1], "accuracy": score(*best) / len(sets)}


def tuned_detector(model: nn.Module, made: Sequence[evaluate.Scene]) -> dict[str, float]:
    """Settings of `Detector` with the best F1 on validation scenes."""
    values = evaluate.scene_posteriors(model, made)

    def f1(threshold: float, refractory: float, smoothing: int) -> float:
        found = evaluate.tally(values, made, threshold=threshold, refractory=refractory, smoothing=smoothing)
        return 2 / (1 / max(1e-9, found["hit_rate"]) + 1 / max(1e-9, found["precision"]))

    best = max(DETECTORS, key=lambda rule: f1(*rule))
    return {"threshold": best[0], "refractory": best[1], "smoothing": best[2], "f1": f1(*best)}
