"""Keyword spotting: the labels, how rows of posteriors become decisions, and how good a spotter is. Plain NumPy.

clip      the word that a short clip holds: the highest posterior that any label but `silence` reaches
stream    a detection each time a keyword's smoothed posterior rises through `threshold`
evaluate  the share of the packaged clips, by voices that no training heard, that are decided rightly
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.audio import PCM16_FULL_SCALE
from edgemem.errors import InputError, UsageError
from edgemem.tasks import Score, Tick, quiet, speech_refusal

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.program import Program

Array = np.ndarray[Any, np.dtype[Any]]

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
LABELS = (*KEYWORDS, "unknown", "silence")
QUIET = ("unknown", "silence")  # labels that are never detections
CLIP_THRESHOLD = 0.4  # a clip in which no word reaches this is silence
THRESHOLD = 0.8
REFRACTORY_SECONDS = 0.2
SMOOTHING_ROWS = 5


@dataclass(frozen=True)
class Detection:
    """A keyword heard: `time` is the end of the row that decided, in seconds; `score` its smoothed posterior."""

    label: str
    time: float
    score: float


def smoothed(posteriors: Array, rows: int = SMOOTHING_ROWS) -> Array:
    """Mean of the last `rows` rows at each row (fewer at the start): [time, labels] -> the same, float64."""
    sums = np.cumsum(np.asarray(posteriors, dtype=np.float64), axis=0)
    before = np.concatenate([np.zeros((min(rows, len(sums)), sums.shape[1])), sums[:-rows]])
    counts = np.minimum(np.arange(1, len(sums) + 1), rows)[:, None]
    mean: Array = (sums - before[: len(sums)]) / counts
    return mean


def clip_decision(
    posteriors: Array,
    labels: Sequence[str] = LABELS,
    threshold: float = CLIP_THRESHOLD,
    smoothing: int = SMOOTHING_ROWS,
) -> tuple[str, float]:
    """The label of a clip and its score, from the posteriors [time, labels] that streaming it gave.

    The word is the label (other than `silence`) whose smoothed posterior rises highest; below `threshold` the
    clip is silence, with a score of 1 - highest.

    Raises:
        InputError: posteriors of another shape, or none.
    """
    values = np.asarray(posteriors)
    if values.ndim != 2 or values.shape[1] != len(labels) or not len(values):
        raise InputError(f"posteriors must be [time >= 1, {len(labels)}], got {list(values.shape)}")
    peaks = smoothed(values, smoothing).max(axis=0)
    if "silence" in labels:
        peaks[list(labels).index("silence")] = -1.0
    best = int(peaks.argmax())
    if "silence" in labels and peaks[best] < threshold:
        return "silence", float(1.0 - peaks[best])
    return labels[best], float(peaks[best])


class Detector:
    """Turns rows of posteriors into detections, whatever pieces they come in.

    A keyword is detected when its posterior, averaged over `smoothing` rows, is the highest and at least
    `threshold`, `refractory` seconds after the last detection at the earliest. The same keyword counts again once its
    posterior has been below half the threshold in between.
    """

    def __init__(
        self,
        labels: Sequence[str] = LABELS,
        threshold: float = THRESHOLD,
        refractory: float = REFRACTORY_SECONDS,
        smoothing: int = SMOOTHING_ROWS,
    ) -> None:
        """Raises UsageError if a setting is out of its range."""
        if not 0.0 < threshold <= 1.0 or refractory < 0.0 or smoothing < 1:
            raise UsageError(
                "Detector needs 0 < threshold <= 1, refractory >= 0 seconds and smoothing >= 1 rows, "
                f"got threshold={threshold}, refractory={refractory}, smoothing={smoothing}"
            )
        self.labels, self.threshold, self.refractory, self.smoothing = tuple(labels), threshold, refractory, smoothing
        self.reset()

    def reset(self) -> None:
        """Forget what came before."""
        self._recent = np.zeros((0, len(self.labels)))
        self._armed = np.array([label not in QUIET for label in self.labels])
        self._last = -np.inf

    def push(self, posteriors: Array, times: Array) -> list[Detection]:
        """Detections in further rows: posteriors [rows, labels] with the end `times` [rows] of each, in seconds.

        Raises:
            InputError: another number of labels, or not one time per row.
        """
        values, ends = np.asarray(posteriors, dtype=np.float64), np.asarray(times, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.labels) or ends.shape != values.shape[:1]:
            raise InputError(
                f"posteriors must be [rows, {len(self.labels)}] with one time per row, "
                f"got {list(values.shape)} and {list(ends.shape)}"
            )
        found = [self._advance(row, float(end)) for row, end in zip(values, ends, strict=True)]
        return [detection for detection in found if detection is not None]

    def _advance(self, row: Array, time: float) -> Detection | None:
        self._recent = np.concatenate([self._recent, row[None]])[-self.smoothing :]
        mean = self._recent.mean(axis=0)
        self._armed |= (mean < self.threshold / 2) & np.array([label not in QUIET for label in self.labels])
        best = int(mean.argmax())
        if not self._armed[best] or mean[best] < self.threshold or time - self._last < self.refractory:
            return None
        self._armed[best], self._last = False, time
        return Detection(self.labels[best], time, float(mean[best]))


def excerpt() -> tuple[Array, Array]:
    """The packaged clips [n, samples] float32, clean, of one second, and the label [n] of each."""
    from edgemem.checkpoints import packaged

    with np.load(packaged("kws_excerpt.npz"), allow_pickle=False) as file:
        return file["clips"].astype(np.float32) / np.float32(PCM16_FULL_SCALE), file["labels"]


def refusal(contract: Contract) -> str | None:
    """What keyword spotting wants and the model of this contract has not."""
    wanted = f"16 kHz audio in and logits of the labels {', '.join(LABELS)} out were wanted"
    return speech_refusal(contract, LABELS, wanted)


def evaluate(program: Program, limit: int | None = None, tick: Tick = quiet) -> Score:
    """Accuracy on clean clips of held-out voices, each streamed from the start state and decided by `clip_decision`.

    `limit` takes that many clips, spread evenly over the labels.
    """
    from edgemem.runner import softmax

    sounds, labels = excerpt()
    chosen = np.arange(len(sounds)) if limit is None else np.linspace(0, len(sounds) - 1, limit).round().astype(int)
    names = program.contract.outputs[0].labels or LABELS
    stream, right = program.stream(), dict.fromkeys(LABELS, 0)
    for done, index in enumerate(chosen, 1):
        stream.reset()
        rows = np.concatenate([stream.push_samples(sounds[index]).values, stream.flush().values])
        word = LABELS[labels[index]]
        right[word] += clip_decision(softmax(rows), names)[0] == word
        tick(done / len(chosen))
    total = {word: int(np.sum(labels[chosen] == at)) for at, word in enumerate(LABELS)}
    by_label = {word: right[word] / total[word] for word in LABELS if total[word]}
    return Score("accuracy", sum(right.values()) / len(chosen), {"clips": len(chosen), "accuracy_by_label": by_label})
