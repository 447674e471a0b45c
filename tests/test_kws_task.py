"""Keyword decisions: what a clip holds, and when a stream counts as a detection."""

from __future__ import annotations

import numpy as np
import pytest

from edgemem.errors import InputError, UsageError
from edgemem.tasks.kws import LABELS, Array, Detector, clip_decision, smoothed

ROW_SECONDS = 0.02
SILENCE, YES, NO, UNKNOWN = (LABELS.index(label) for label in ("silence", "yes", "no", "unknown"))


def posteriors(rows: int, *bumps: tuple[int, int, int, float]) -> Array:
    """[rows, labels], silence but for `bumps` of (label, first row, end row, posterior)."""
    values = np.zeros((rows, len(LABELS)))
    values[:, SILENCE] = 1.0
    for label, first, end, height in bumps:
        values[first:end, SILENCE] -= height
        values[first:end, label] += height
    return values


def times(rows: int) -> Array:
    return (np.arange(rows) + 1) * ROW_SECONDS


def heard(values: Array, **settings: float) -> list[tuple[str, int]]:
    """Labels and rows of the detections."""
    detector = Detector(LABELS, **{"threshold": 0.5, "refractory": 0.4, "smoothing": 3, **settings})  # type: ignore[arg-type]
    found = detector.push(values, times(len(values)))
    return [(d.label, round(d.time / ROW_SECONDS) - 1) for d in found]


def test_labels_are_ten_words_unknown_and_silence() -> None:
    assert len(LABELS) == 12 and len(set(LABELS)) == 12 and LABELS[-2:] == ("unknown", "silence")


def test_smoothing_is_the_mean_of_the_last_rows() -> None:
    values = np.arange(12.0).reshape(6, 2) ** 2
    wanted = [values[max(0, t - 2) : t + 1].mean(axis=0) for t in range(6)]
    np.testing.assert_allclose(smoothed(values, 3), wanted, rtol=1e-12)
    np.testing.assert_allclose(smoothed(values[:2], 3), wanted[:2], rtol=1e-12)


def test_clip_is_the_word_that_rises_highest_wherever_it_lies() -> None:
    values = posteriors(50, (NO, 5, 15, 0.6), (YES, 30, 40, 0.8))
    label, score = clip_decision(values, threshold=0.3)
    assert label == "yes" and score == pytest.approx(0.8)


def test_clip_with_an_unknown_word_is_unknown() -> None:
    assert clip_decision(posteriors(50, (UNKNOWN, 20, 30, 0.9)), threshold=0.3)[0] == "unknown"


def test_clip_in_which_nothing_rises_is_silence() -> None:
    label, score = clip_decision(posteriors(50, (YES, 20, 30, 0.2)), threshold=0.3)
    assert label == "silence" and score == pytest.approx(0.8)


def test_one_row_alone_does_not_decide_a_clip() -> None:
    assert clip_decision(posteriors(50, (YES, 20, 21, 0.8)), threshold=0.3, smoothing=3)[0] == "silence"


@pytest.mark.parametrize("shape", [(0, 12), (5, 11), (12,)])
def test_clip_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"\[time >= 1, 12\]"):
        clip_decision(np.zeros(shape))


def test_a_word_is_detected_once_when_its_mean_reaches_the_threshold() -> None:
    # after rows 20 and 21 the mean of three rows is 0.6
    assert heard(posteriors(80, (YES, 20, 60, 0.9))) == [("yes", 21)]


def test_the_same_word_counts_again_only_after_it_has_faded() -> None:
    dip, gap = (YES, 20, 70, 0.8), [(YES, 20, 40, 0.8), (YES, 45, 70, 0.8)]
    assert [label for label, _ in heard(posteriors(80, dip))] == ["yes"]
    assert [label for label, _ in heard(posteriors(80, *gap))] == ["yes", "yes"]


def test_nothing_is_detected_within_the_refractory_time() -> None:
    values = posteriors(80, (YES, 20, 30, 0.9), (NO, 32, 36, 0.9))
    assert heard(values) == [("yes", 21)]
    assert heard(values, refractory=0.1) == [("yes", 21), ("no", 33)]


def test_unknown_and_silence_are_never_detections() -> None:
    assert heard(posteriors(80, (UNKNOWN, 20, 60, 1.0))) == []


def test_a_word_that_is_not_the_most_likely_is_not_detected() -> None:
    assert heard(posteriors(80, (UNKNOWN, 20, 60, 0.55), (YES, 20, 60, 0.45)), threshold=0.4) == []


@pytest.mark.parametrize("size", [1, 2, 7])
def test_detections_do_not_depend_on_the_cut(size: int) -> None:
    values = posteriors(120, (YES, 20, 30, 0.9), (NO, 60, 66, 0.8), (YES, 90, 99, 0.7))
    whole = Detector(threshold=0.5).push(values, times(120))
    detector, pieces = Detector(threshold=0.5), []
    for at in range(0, 120, size):
        pieces += detector.push(values[at : at + size], times(120)[at : at + size])
    assert pieces == whole and len(whole) == 3


def test_no_rows_are_no_detections_and_reset_forgets() -> None:
    detector = Detector()
    assert detector.push(np.zeros((0, 12)), np.zeros(0)) == []
    first = detector.push(posteriors(30, (YES, 5, 30, 0.9)), times(30))
    detector.reset()
    assert detector.push(posteriors(30, (YES, 5, 30, 0.9)), times(30)) == first != []


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"threshold": 1.1}, {"refractory": -1.0}, {"smoothing": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        Detector(LABELS, **settings)  # type: ignore[arg-type]


def test_rows_without_their_times_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[5, 12\] and \[4\]"):
        Detector().push(np.zeros((5, 12)), np.zeros(4))
