"""Raw samples as rows: cut anywhere, timed, saved and restored; what a contract may not say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgemem.errors import ContractError, SnapshotError
from edgemem.frontend import FrontEnd
from edgemem.samplerows import SampleRows, front_end

ROWS = SampleRows(sample_rate=8000, row_samples=5)
SOUND = np.arange(23, dtype=np.float32) / 32


@pytest.mark.parametrize("cuts", [[], [1], [5, 10], [4, 5, 6, 20]])
def test_rows_do_not_depend_on_how_sound_is_cut(cuts: list[int]) -> None:
    stream = ROWS.stream()
    found = np.concatenate([stream.push(piece) for piece in np.split(SOUND, cuts)])
    np.testing.assert_array_equal(found, SOUND[:20].reshape(4, 5))
    assert stream.snapshot()["tail"].tolist() == SOUND[20:].tolist()
    stream.reset()
    assert not len(stream.snapshot()["tail"])


def test_time_is_that_of_the_samples() -> None:
    assert ROWS.seconds_per_frame == 5 / 8000
    assert ROWS.frame_start_seconds(3) == ROWS.frame_end_seconds(2) == 15 / 8000
    np.testing.assert_array_equal(ROWS.frame_start_seconds(np.arange(2)), [0, 5 / 8000])


def test_contracts_say_which_front_end_it_is() -> None:
    assert front_end(ROWS.to_dict()) == ROWS
    assert front_end(FrontEnd().to_dict()) == FrontEnd()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"row_samples": 0}, "frontend.row_samples: 1 to 1048576 was wanted, 0 came"),
        ({"row_samples": 2.0}, "frontend.row_samples"),
        ({"sample_rate": True}, "frontend.sample_rate"),
        ({"sample_rate": 1 << 40}, "frontend.sample_rate"),
        ({"mels": 40}, "frontend.mels is not a parameter of raw samples"),
    ],
)
def test_bad_contracts_are_refused_by_field(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ContractError, match=match):
        front_end({**ROWS.to_dict(), **change})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ContractError, match=r"frontend\.row_samples is missing"):
        front_end({"kind": "samples", "sample_rate": 8000})


@pytest.mark.parametrize(
    ("state", "match"),
    [
        ({}, "frontend.tail is missing"),
        ({"tail": np.zeros(1, np.float32), "rows": np.zeros(1)}, "frontend.rows is unknown"),
        ({"tail": np.zeros(5, np.float32)}, "fewer than 5 float32 samples were wanted"),
        ({"tail": np.zeros(1)}, "float64"),
    ],
)
def test_bad_snapshots_change_nothing(state: dict[str, np.ndarray], match: str) -> None:
    stream = ROWS.stream()
    stream.push(SOUND[:3])
    with pytest.raises(SnapshotError, match=match):
        stream.restore(state)
    np.testing.assert_array_equal(stream.push(SOUND[3:5]), SOUND[None, :5])
