"""Many streams in one program: each as if it were alone, in every runtime."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.errors import InputError, SnapshotError, StreamError, UsageError
from edgemem.export import export_model
from edgemem.inputs import Inputs
from edgemem.program import Program, spans
from edgemem.streams import Streams
from tests.gpus import has_pocl
from tests.zoo import SMALL

BATCH = 3
Files = Callable[[str, int], Path]
FAMILIES = {  # a model that looks ahead ends its streams one by one
    **{name: (name, SMALL[name]) for name in ("rwkv4", "kws-lmuformer", "memformer")},
    "folding": ("folding", {**SMALL["folding"], "look_ahead": 0}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """A model of `FAMILIES`, or one that looks ahead, for a number of streams; exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("streams")

    def file(name: str, batch: int) -> Path:
        path = folder / f"{name}-{batch}.onnx"
        if not path.exists():
            model, chosen = FAMILIES.get(name, ("folding", SMALL["folding"]))
            export_model(model, path, chosen, seed=1, batch=batch, certified_steps=4)
        return path

    return file


def chunk(program: Program, seed: int) -> Any:
    port = program.contract.inputs[0]
    rng = np.random.default_rng(seed)
    if port.range is not None:
        return rng.integers(port.range[0], port.range[1] + 1, port.shape[1:])
    return rng.normal(size=port.shape[1:]).astype(port.dtype)


@pytest.mark.parametrize("runtime", ["ort", "aot", "tvm", "opencl"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_is_as_if_alone(name: str, runtime: str, files: Files) -> None:
    """Streams come, pause, are reset and go; each gives what one stream of its own does, whatever its neighbours do."""
    program = loaded(files(name, BATCH), runtime)
    of_nan_spoils_nobody(program)
    of_rows(program)
    alone = edgemem.load(files(name, 1))
    streams = Streams(program)
    a, b = streams.open(), streams.open()
    twin_a, twin_b, twin_c = alone.stream(), alone.stream(), alone.stream()

    def compare(steps: dict[Any, tuple[Any, int]]) -> None:
        given = {place: chunk(program, seed) for place, (_, seed) in steps.items()}
        found = streams.step(given)
        for place, (twin, _) in steps.items():
            np.testing.assert_allclose(found[place], twin.step(given[place][None])[0], rtol=1e-4, atol=1e-5)

    compare({a: (twin_a, 1), b: (twin_b, 2)})
    compare({a: (twin_a, 3)})
    c = streams.open()
    compare({c: (twin_c, 4), b: (twin_b, 5)})
    streams.reset(a)
    twin_a.reset()
    compare({a: (twin_a, 6), b: (twin_b, 7), c: (twin_c, 8)})
    streams.close(b)
    d = streams.open()
    assert d.row == b.row
    compare({d: (alone.stream(), 9), a: (twin_a, 10)})


def loaded(path: Path, runtime: str) -> Program:
    if runtime in ("aot", "tvm", "opencl"):
        pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    if runtime == "opencl" and not has_pocl():
        pytest.skip("no PoCL on this machine: make boards")
    options = {"board": "host"} if runtime == "tvm" else {}
    return edgemem.load(path, runtime=runtime, **options)


def of_nan_spoils_nobody(program: Program) -> None:
    """Bit for bit: neighbours full of NaN (of tokens: with a state of NaN), or none at all, change nothing."""
    quiet, loud = Streams(program, nan="allow"), Streams(program, nan="allow")
    alone = Streams(program, nan="allow")
    places = [(quiet.open(), loud.open(), alone.open()) for _ in range(BATCH)]
    tokens = program.contract.inputs[0].range is not None
    for step in range(4):
        chunks = [chunk(program, 10 * step + row) for row in range(BATCH)]
        good = quiet.step({places[row][0]: chunks[row] for row in range(BATCH)})
        if tokens and step == 0:
            loud._state.set_rows([1], {n: np.full_like(a, np.nan) for n, a in loud._state.rows([1]).items()})
        elif not tokens:
            chunks[1] = np.full_like(chunks[1], np.nan)
        bad = loud.step({places[row][1]: chunks[row] for row in range(BATCH)})
        single = alone.step({places[0][2]: chunks[0]})
        for row in (0, 2):
            assert np.array_equal(good[places[row][0]], bad[places[row][1]])
        assert np.array_equal(good[places[0][0]], single[places[0][2]])
        assert not np.array_equal(
            good[places[1][0]], bad[places[1][1]]
        )  # not always NaN: a compiled ReLU makes 0 of it


def of_rows(program: Program) -> None:
    """Some rows of a state are those of the whole; kept ones come back after a step, other streams' steps amid it."""
    rng, state, other = np.random.default_rng(2), program.new_state(), program.new_state()
    inputs = Inputs(program.contract, finite_only=False).zeros()
    if (valid := program.contract.valid_input) is not None:
        inputs[valid.name] = np.full(valid.shape, program.contract.chunk.frames, valid.dtype)
    program.step(inputs, state)
    before = state.get()
    for name, array in state.rows([2, 0]).items():
        assert np.array_equal(array, before[name][[2, 0]])
    changed = {name: rng.integers(0, 2, (2, *array.shape[1:])).astype(array.dtype) for name, array in before.items()}
    state.set_rows([2, 0], changed)
    for name, array in state.get().items():
        assert np.array_equal(array, np.stack([changed[name][1], before[name][1], changed[name][0]]))
    held = state.get()
    put_back = state.keep([0, 2])
    program.step(inputs, other)
    program.step(inputs, state)
    program.step(inputs, other)
    stepped = state.get()
    put_back()
    for name, array in state.get().items():
        assert np.array_equal(array, np.stack([held[name][0], stepped[name][1], held[name][2]]))
    put_back, stepped = state.keep([]), state.get()
    program.step(inputs, state)
    after = state.get()
    put_back()
    assert all(np.array_equal(array, after[name]) for name, array in state.get().items())
    assert any(not np.array_equal(array, after[name]) for name, array in stepped.items())


@given(rows=st.lists(st.integers(0, 9)))
def test_stretches_hold_each_row_once(rows: list[int]) -> None:
    found = spans(rows)
    assert [row for first, count in found for row in range(first, first + count)] == sorted(set(rows))
    assert all(first + count < then for (first, count), (then, _) in pairwise(found))


@pytest.mark.parametrize("runtime", ["tvm", "opencl"])
def test_idle_streams_do_not_leave_the_device(runtime: str, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    program = loaded(files("rwkv4", BATCH), runtime)
    streams = Streams(program)
    a, b = streams.open(), streams.open()
    first = streams.step({a: chunk(program, 1), b: chunk(program, 2)})[b]
    saved = streams.snapshot(b)
    for name in ("get", "set", "rows", "set_rows"):
        monkeypatch.setattr(type(streams._state), name, lambda *_: pytest.fail("a state was read or written"))
    streams.step({a: chunk(program, 3)})
    monkeypatch.undo()
    assert streams.snapshot(b) == saved
    streams.reset(b)
    assert np.array_equal(streams.step({b: chunk(program, 2)})[b], first)


@settings(max_examples=25, deadline=None)
@given(plan=st.lists(st.sets(st.integers(0, BATCH - 1)), max_size=8))
def test_any_schedule_is_the_same(plan: list[set[int]], files: Files) -> None:
    program, alone = edgemem.load(files("rwkv4", BATCH)), edgemem.load(files("rwkv4", 1))
    streams = Streams(program)
    places, twins = [streams.open() for _ in range(BATCH)], [alone.stream() for _ in range(BATCH)]
    for step, rows in enumerate(plan):
        given_ = {places[row]: chunk(program, 100 * step + row) for row in rows}
        found = streams.step(given_)
        for row in rows:
            np.testing.assert_allclose(found[places[row]], twins[row].step(given_[places[row]][None])[0], atol=1e-5)


def test_snapshots_go_between_batches(files: Files) -> None:
    program, alone = edgemem.load(files("rwkv4", BATCH)), edgemem.load(files("rwkv4", 1)).stream()
    streams = Streams(program)
    streams.open()
    place = streams.open()
    for seed in range(3):
        streams.step({place: chunk(program, seed)})
    alone.restore(streams.snapshot(place))
    third = streams.open(alone.snapshot())
    assert alone.position == 3
    found = streams.step({third: chunk(program, 9), place: chunk(program, 9)})
    assert np.array_equal(found[third], found[place])
    np.testing.assert_allclose(found[third], alone.step(chunk(program, 9)[None])[0], atol=1e-5)


def test_a_snapshot_goes_through_all_runtimes(files: Files) -> None:
    """ort -> opencl -> tvm -> aot -> ort, a step in each, as if nothing had happened."""
    path = files("rwkv4", 1)
    whole, saved = edgemem.load(path).stream(), edgemem.load(path).stream().snapshot()
    for seed, runtime in enumerate(("ort", "opencl", "tvm", "aot", "ort")):
        stream = loaded(path, runtime).stream()
        stream.restore(saved)
        token = chunk(stream.program, seed)[None]
        np.testing.assert_allclose(stream.step(token), whole.step(token), rtol=1e-4, atol=1e-5)
        saved = stream.snapshot()
    assert stream.position == 5


def test_what_cannot_be_is_refused(files: Files) -> None:
    program = edgemem.load(files("rwkv4", BATCH))
    streams = Streams(program)
    places = [streams.open() for _ in range(BATCH)]
    assert len(streams) == BATCH and streams.free == 0
    with pytest.raises(StreamError, match="all 3 places are taken; close a stream"):
        streams.open()
    before = [streams.snapshot(place) for place in places]
    with pytest.raises(InputError, match="stream in place 1: input tokens"):
        streams.step({places[0]: np.array([1]), places[1]: np.array([10_000])})
    assert [streams.snapshot(place) for place in places] == before
    streams.close(places[2])
    with pytest.raises(StreamError, match="place 2 was closed"):
        streams.step({places[2]: np.array([1])})
    with pytest.raises(SnapshotError, match="truncated or altered"):
        streams.open(b"nothing")
    with pytest.raises(UsageError, match="looks 2 frames ahead"):
        Streams(edgemem.load(files("ahead", BATCH)))
