"""Streams: any cut gives the same rows and times, whatever is refused changes nothing, snapshots go on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.errors import InputError, SnapshotError, StreamError, UsageError
from edgemem.snapshot import Position, encode
from edgemem.stream import Stream
from tests import toy

shapes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))


def cuts(x: np.ndarray, sizes: list[int]) -> Iterator[np.ndarray]:
    at = 0
    for size in sizes:
        yield x[at : at + size]
        at += size
    yield x[at:]


def frames(time: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(time, 2)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(shapes, st.integers(0, 40), st.lists(st.integers(0, 9), max_size=8))
def test_any_cut_gives_the_whole_sequence(shape: tuple[int, int, int], time: int, sizes: list[int]) -> None:
    segment, chunk, ahead = shape
    stream = toy.ToyProgram(toy.contract(segment, chunk, ahead, seconds=0.02 * segment)).stream()
    x = frames(time)
    rows = list(stream.run(cuts(x, sizes)))
    values = np.concatenate([r.values for r in rows])
    # a running float32 sum is rounded where the chunks meet, so sums of the same terms differ by some ulps
    np.testing.assert_allclose(values, toy.expected(x, ahead), rtol=1e-5, atol=1e-5)
    starts = np.concatenate([r.t_start for r in rows])
    np.testing.assert_allclose(starts, np.arange(time) * 0.02)
    np.testing.assert_allclose(np.concatenate([r.t_end for r in rows]), starts + 0.02)


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 30), st.integers(0, 30), st.integers(1, 3))
def test_a_snapshot_goes_on_at_any_chunk(shape: tuple[int, int, int], time: int, at: int, other_chunk: int) -> None:
    segment, chunk, ahead = shape
    other_chunk = chunk if ahead else other_chunk  # the toy's rows lie on a grid of its chunk when it looks ahead
    x = frames(time)
    first = toy.ToyProgram(toy.contract(segment, chunk, ahead)).stream()
    before = first.push(x[:at])
    second = toy.ToyProgram(toy.contract(segment, other_chunk, ahead)).stream()
    second.restore(first.snapshot())
    values = np.concatenate([before.values, second.push(x[at:]).values, second.flush().values])
    np.testing.assert_allclose(values, toy.expected(x, ahead), rtol=1e-5, atol=1e-5)


def test_step_leaves_out_the_axes_that_the_caller_left_out() -> None:
    stream = toy.ToyProgram(toy.contract()).stream()
    for shape in ((1, 1, 2), (1, 2), (2,)):
        assert stream.step(np.ones(shape, np.float32)).shape == shape


def test_valid_counts_the_real_frames_of_a_short_chunk() -> None:
    stream = toy.ToyProgram(toy.contract(chunk=3)).stream()
    x = frames(5)
    stream.step(x[None, :3])
    padded = np.concatenate([x[3:], np.full((1, 2), 9, np.float32)])
    stream.step(padded, valid=2)
    np.testing.assert_allclose(stream.state["sum"][0], x.sum(axis=0), rtol=1e-5)
    assert stream.position == 5


BAD_STEPS = {
    "shape": (np.zeros((1, 2, 2), np.float32), r"input x: shape \[1, 1, 2\].*\[1, 2, 2\] came"),
    "dtype": (np.zeros((1, 1, 2), np.complex64), "input x: float32 was wanted, complex64 came"),
    "integers": (np.zeros((1, 1, 2), np.int16), "input x: float32 was wanted, int16 came"),
    "nan": (np.full((1, 1, 2), np.nan, np.float32), "finite numbers were wanted, NaN or infinity came"),
    "too large": (np.full((1, 1, 2), 1e300), "NaN or infinity"),
    "ragged": ([[1.0, 2.0], [3.0]], "input x: an array of numbers was wanted, list came"),
    "objects": (np.array([[[None, 1.0]]]), "input x: float32 was wanted, object came"),
    "infinity": (np.full((1, 1, 2), -np.inf, np.float32), "NaN or infinity"),
    "text": ("hello", "input x: shape"),
    "dict": ({"u": np.zeros((1, 1, 2), np.float32)}, r"inputs \['x'\] were wanted, \['u'\] came"),
}


@pytest.mark.parametrize("name", BAD_STEPS)
def test_a_refused_step_changes_nothing(name: str) -> None:
    bad, message = BAD_STEPS[name]
    stream = toy.ToyProgram(toy.contract()).stream()
    stream.step(np.ones((1, 1, 2), np.float32))
    before = stream.snapshot()
    with pytest.raises(InputError, match=message):
        stream.step(bad)
    assert stream.snapshot() == before


def test_nan_passes_when_it_is_allowed() -> None:
    stream = toy.ToyProgram(toy.contract()).stream(nan="allow")
    assert np.isnan(stream.step(np.full((1, 1, 2), np.nan, np.float32))).all()
    with pytest.raises(UsageError, match="'zero'"):
        Stream(stream.program, nan="zero")


@pytest.mark.parametrize("valid", [-1, 4, 1.5, [1, 2]])
def test_a_wrong_valid_count_is_refused(valid: object) -> None:
    stream = toy.ToyProgram(toy.contract(chunk=3)).stream()
    with pytest.raises(InputError, match="valid"):
        stream.step(np.zeros((1, 3, 2), np.float32), valid=valid)  # type: ignore[arg-type]


def test_a_push_of_another_width_is_refused_and_keeps_what_waits() -> None:
    stream = toy.ToyProgram(toy.contract(chunk=3)).stream()
    stream.push(frames(2))
    before = stream.snapshot()
    with pytest.raises(InputError, match=r"input x: .* came"):
        stream.push(np.zeros((4, 3), np.float32))
    assert stream.snapshot() == before


def test_a_flushed_look_ahead_stream_wants_a_reset() -> None:
    stream = toy.ToyProgram(toy.contract(2, 1, 1)).stream()
    stream.push(frames(3))
    stream.flush()
    for call in (lambda: stream.push(frames(1)), lambda: stream.step(np.zeros((1, 2, 2), np.float32))):
        with pytest.raises(StreamError, match="reset"):
            call()
    stream.reset()
    stream.push(frames(4))


@settings(max_examples=100, deadline=None)
@given(shapes, st.lists(st.integers(1, 3), max_size=5), st.integers(0, 20))
def test_steps_and_pushes_share_one_clock(shape: tuple[int, int, int], steps: list[int], time: int) -> None:
    segment, chunk, ahead = shape
    stream = toy.ToyProgram(toy.contract(segment, chunk, ahead)).stream()
    size = segment * chunk
    x = frames(len(steps) * size + time)
    values = [stream.step(x[None, at * size : (at + 1) * size])[0] for at in range(len(steps))]
    done = len(steps) * size
    rows = [stream.push(x[done:]), stream.flush()]
    values = [np.concatenate(values)[ahead:]] if steps else []  # steps give the rows of the warm-up too
    np.testing.assert_allclose(
        np.concatenate([*values, *(r.values for r in rows)]), toy.expected(x, ahead), rtol=1e-5, atol=1e-5
    )
    starts = np.concatenate([r.t_start for r in rows])
    np.testing.assert_array_equal(starts, np.arange(max(0, done - ahead), len(x)))


def test_a_step_cannot_overtake_frames_that_wait() -> None:
    stream = toy.ToyProgram(toy.contract(chunk=4)).stream()
    stream.push(frames(3))
    before = stream.snapshot()
    with pytest.raises(StreamError, match="3 frames of a push wait"):
        stream.step(np.ones((1, 4, 2), np.float32))
    assert stream.snapshot() == before


def test_no_frames_follow_a_short_chunk_when_rows_are_late() -> None:
    stream = toy.ToyProgram(toy.contract(chunk=4, ahead=2)).stream()
    stream.step(np.ones((1, 4, 2), np.float32), valid=3)
    with pytest.raises(StreamError, match="short chunk"):
        stream.step(np.ones((1, 4, 2), np.float32))
    assert len(stream.flush()) == 1  # two came in the step


def test_a_stream_that_ended_stays_ended() -> None:
    stream = toy.ToyProgram(toy.contract(segment=4)).stream()
    stream.push(frames(3))
    assert len(stream.flush()) == 3 and len(stream.flush()) == 0
    with pytest.raises(StreamError, match="reset"):
        stream.push(frames(1))


def test_frames_that_wait_move_to_a_smaller_chunk() -> None:
    first, second = (toy.ToyProgram(toy.contract(chunk=size)).stream() for size in (8, 2))
    x = frames(7)
    first.push(x)
    second.restore(first.snapshot())
    np.testing.assert_allclose(second.peek().values, toy.expected(x, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second.flush().values, toy.expected(x, 0), rtol=1e-5, atol=1e-5)
    assert second.position == 7


def test_a_snapshot_that_fits_its_checksum_is_still_checked() -> None:
    """Whoever can write a snapshot can write its checksum too."""
    stream = toy.ToyProgram(toy.contract(chunk=4)).stream()
    stream.push(frames(3))
    good = {"state.sum": stream.state["sum"], "pending.x": frames(3)[None]}
    for change, position, message in (
        ({"pending.x": np.zeros((1, 2, 3), np.float32)}, Position(), "do not fit"),
        ({"pending.x": np.zeros((1, 3, 2), np.int8)}, Position(), "do not fit"),
        ({"state.sum": np.zeros(2, np.float32)}, Position(), "state sum"),
        ({"state.more": np.zeros(2, np.float32)}, Position(), "more is unknown"),
        ({}, Position(taken=2, rows=1), "taken <= rows"),
        ({}, Position(taken=-1), "taken <= rows"),
        ({}, Position(taken=1 << 62, rows=1 << 62), "taken <= rows"),
        ({}, Position(taken=True), "taken <= rows"),
    ):
        before = stream.snapshot()
        with pytest.raises(SnapshotError, match=message):
            stream.restore(encode({**good, **change}, position, stream.contract))
        assert stream.snapshot() == before
    stream.restore(bytearray(encode(good, Position(), stream.contract)))


def test_peek_shows_the_waiting_rows_and_changes_nothing() -> None:
    stream = toy.ToyProgram(toy.contract(chunk=4)).stream()
    x = frames(6)
    stream.push(x)
    before = stream.snapshot()
    np.testing.assert_allclose(stream.peek().values, toy.expected(x, 0)[4:], rtol=1e-5, atol=1e-5)
    assert stream.snapshot() == before


def test_forks_go_their_own_ways() -> None:
    stream = toy.ToyProgram(toy.contract()).stream()
    stream.push(frames(3))
    twin = stream.fork()
    twin.push(frames(2))
    assert stream.position == 3 and twin.position == 5
    assert not np.array_equal(stream.state["sum"], twin.state["sum"])


def test_reset_overwrites_every_state() -> None:
    stream = toy.ToyProgram(toy.contract(2, 1, 1)).stream()
    fresh = stream.snapshot()
    stream.push(frames(5))
    stream.set_state({name: np.full_like(value, np.nan) for name, value in stream.state.items()})
    stream.reset()
    assert stream.snapshot() == fresh


def test_a_state_of_another_shape_is_refused() -> None:
    stream = toy.ToyProgram(toy.contract()).stream()
    for bad, message in (
        ({}, "sum is missing"),
        ({"sum": np.zeros((1, 3), np.float32)}, r"state sum: float32\[1, 2\] was wanted"),
        ({"sum": np.zeros((1, 2))}, "float64"),
        ({"sum": np.zeros((1, 2), np.float32), "more": np.zeros(1)}, "more is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            stream.set_state(bad)


def test_a_snapshot_of_another_model_is_refused() -> None:
    stream = toy.ToyProgram(toy.contract()).stream()
    other = toy.ToyProgram(toy.contract(name="other")).stream()
    with pytest.raises(SnapshotError, match="fingerprint"):
        stream.restore(other.snapshot())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_snapshot_is_refused_and_changes_nothing(data: st.DataObject) -> None:
    stream = toy.ToyProgram(toy.contract(2, 1, 1)).stream()
    stream.push(frames(5))
    good = stream.snapshot()
    if data.draw(st.booleans(), "truncate"):
        bad = good[: data.draw(st.integers(0, len(good) - 1), "length")]
    else:
        place = data.draw(st.integers(0, len(good) - 1), "place")
        bad = good[:place] + bytes([good[place] ^ (1 << data.draw(st.integers(0, 7), "bit"))]) + good[place + 1 :]
    with pytest.raises(SnapshotError):
        stream.restore(bad)
    assert stream.snapshot() == good


def test_a_snapshot_survives_on_disk(tmp_path) -> None:  # type: ignore[no-untyped-def]
    stream = toy.ToyProgram(toy.contract(chunk=2)).stream()
    stream.push(frames(5))
    stream.snapshot(tmp_path / "s.safetensors")
    twin = toy.ToyProgram(toy.contract(chunk=2)).stream()
    twin.restore(tmp_path / "s.safetensors")
    assert twin.snapshot() == stream.snapshot()
    with pytest.raises(SnapshotError, match="cannot be read"):
        twin.restore(tmp_path / "nowhere")
