"""Caches that slide without being copied: the same outputs and states as in onnxruntime, wherever a window starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.program import Array, Program
from edgemem.stream import Stream
from tests.aot_programs import compiled, run_guarded

# Rows of 128 bytes, caches of 64 frames, twice as many as the rows that a step's kernels treat together.
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "token": ("lm-transformer", {"layers": 1, "width": 32, "heads": 2, "context": 64}),
    "segment": (
        "folding",
        {"layers": 2, "width": 32, "heads": 1, "fold": 2, "left": 64, "segment": 3, "look_ahead": 1, "features": 3},
    ),
    "few": ("folding", {"layers": 1, "width": 32, "heads": 2, "fold": 1, "left": 96, "segment": 2, "look_ahead": 2}),
}
NAMES = tuple(MODELS)
FEW_ROWS = ("token", "few")  # ask in a step: their scores are shared by threads, and smaller than the caches
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.onnx and NAME/, compiled, for each model."""
    from edgemem.export import export_model

    folder = tmp_path_factory.mktemp("rings")
    for name, (model, settings) in MODELS.items():
        export_model(model, folder / f"{name}.onnx", settings, seed=1, certified_steps=8)
        compiled(folder / f"{name}.onnx", folder / name)
    return folder


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def rings(folder: Path) -> dict[str, dict[str, int]]:
    """The rings of a program by the names of their states."""
    return {name: state["ring"] for name, state in manifest(folder)["states"].items() if "ring" in state}


def wrap(folder: Path) -> int:
    """Steps until every window of a program is back where it started."""
    return max(ring["period"] // ring["kept"] for ring in rings(folder).values())


def chunks(program: Program, count: int, seed: int = 0) -> list[Array]:
    """Random chunks of a model's first input."""
    rng, port = np.random.default_rng(seed), program.contract.inputs[0]
    if port.range is not None:
        return list(rng.integers(port.range[0], port.range[1] + 1, (count, *port.shape)))
    return list(rng.standard_normal((count, *port.shape)).astype(np.float32))


def agree(one: Stream, other: Stream, inputs: list[Array]) -> None:
    for x in inputs:
        np.testing.assert_allclose(one.step(x), other.step(x), **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_caches_become_rings(programs: Path, name: str) -> None:
    """Every cache is a ring of rows."""
    found, facts = rings(programs / name), manifest(programs / name)
    caches = {state["name"]: state for state in facts["contract"]["states"] if state["role"] == "cache"}
    assert set(found) == set(caches) and len(caches) >= 2
    for state, ring in found.items():
        rows, width = caches[state]["shape"][1:]
        assert (ring["rows"], ring["row_bytes"]) == (rows, 4 * width)
        assert ring["period"] > rows and ring["period"] % ring["kept"] == 0


@pytest.mark.parametrize("name", FEW_ROWS)
def test_no_kernel_moves_a_cache(programs: Path, name: str) -> None:
    """Kernels write far less in a step than the caches hold."""
    found, facts = rings(programs / name), manifest(programs / name)
    smallest = min(ring["rows"] * ring["row_bytes"] for ring in found.values())
    written = [np.prod(result) * 4 for call in facts["calls"] for result in call["result"]]
    assert max(written) < smallest


@pytest.mark.parametrize("name", NAMES)
def test_a_ring_equals_onnxruntime_over_many_turns(programs: Path, name: str) -> None:
    """Nothing looks at the states on the way, which would put every row in both of its places."""
    ort, aot = edgemem.load(programs / f"{name}.onnx"), edgemem.load(programs / name)
    one, other = ort.stream(), aot.stream()
    for _ in range(2):
        agree(one, other, chunks(ort, wrap(programs / name) + 5))
    state = other.state
    for key, value in one.state.items():
        np.testing.assert_allclose(state[key], value, **TOLERANCE)
    agree(one, other, chunks(ort, wrap(programs / name) + 5, seed=2))


@pytest.mark.parametrize("name", NAMES)
def test_snapshots_enter_and_leave_a_ring_anywhere(programs: Path, name: str) -> None:
    ort, aot = edgemem.load(programs / f"{name}.onnx"), edgemem.load(programs / name)
    turn = wrap(programs / name)
    inputs = chunks(ort, 4 * turn)
    for steps in (1, turn // 2, turn - 1, turn + 3):
        begun = aot.stream()
        for x in inputs[:steps]:
            begun.step(x)
        resumed = ort.stream()
        resumed.restore(begun.snapshot())
        agree(begun, resumed, inputs[steps : steps + 7])
        back = aot.stream()  # its window is elsewhere, and its old rows are another stream's
        for x in inputs[turn : turn + steps // 2]:
            back.step(x)
        back.restore(resumed.snapshot())
        agree(resumed, back, inputs[2 * turn : 3 * turn + 5])


@pytest.mark.parametrize("name", NAMES)
def test_reset_reaches_both_places(programs: Path, name: str) -> None:
    program = edgemem.load(programs / name)
    used, fresh = program.stream(), program.stream()
    inputs = chunks(program, wrap(programs / name) + 9)
    for x in inputs[:40]:
        used.step(x)
    used.set_state({key: np.full_like(value, np.nan) for key, value in used.state.items()})
    assert np.isnan(np.asarray(used.step(inputs[0]))).any()
    used.reset()
    for x in inputs:
        assert used.step(x).tobytes() == fresh.step(x).tobytes()
    assert used.snapshot() == fresh.snapshot()


def test_streams_have_windows_of_their_own(programs: Path) -> None:
    program = edgemem.load(programs / "token")
    inputs = chunks(program, 150)
    alone, one, other = program.stream(), program.stream(), program.stream()
    for x in inputs[:23]:
        other.step(x)
    for index, x in enumerate(inputs):
        wanted = alone.step(x)
        assert one.step(x).tobytes() == wanted.tobytes()
        other.step(inputs[-1 - index])


def test_a_fork_goes_on_and_leaves_its_origin_alone(programs: Path) -> None:
    program = edgemem.load(programs / "segment")
    inputs = chunks(program, 3 * wrap(programs / "segment"))
    stream, whole = program.stream(), program.stream()
    for index, x in enumerate(inputs):
        if index % 11 == 5:
            stream, kept = stream.fork(), stream
            kept.step(inputs[0])
        assert stream.step(x).tobytes() == whole.step(x).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_threads_share_the_rows_of_a_cache(programs: Path, name: str) -> None:
    one, several = (edgemem.load(programs / name, threads=threads).stream() for threads in (1, 3))
    for x in chunks(one.program, wrap(programs / name) + 5):
        assert one.step(x).tobytes() == several.step(x).tobytes()


@pytest.mark.parametrize("name", FEW_ROWS)
def test_attention_of_few_rows_is_shared(programs: Path, name: str) -> None:
    shared = {kernel["primfunc"] for kernel in manifest(programs / name)["kernels"] if kernel["shares"]}
    assert {"attend_scores", "attend_parts"} <= shared


def test_a_program_of_another_chunk_takes_the_cache_over(programs: Path, tmp_path: Path) -> None:
    from edgemem.export import export_model

    model, settings = MODELS["token"]
    export_model(model, tmp_path / "c.onnx", settings, seed=1, chunk=3, certified_steps=8)
    compiled(tmp_path / "c.onnx", tmp_path / "c")
    single, several = edgemem.load(programs / "token"), edgemem.load(tmp_path / "c")
    tokens = np.concatenate(chunks(single, 300), axis=1)[0]
    whole, stream = single.stream(), several.stream()
    wanted = whole.push(tokens).values
    came = [np.asarray(stream.push(tokens[:60]).values)]
    for first in range(60, 300, 60):
        turn = (single if first % 120 else several).stream()
        turn.restore(stream.snapshot())
        stream = turn
        came.append(np.asarray(stream.push(tokens[first : first + 60]).values))
    np.testing.assert_allclose(np.concatenate(came), wanted, **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_rings_under_sanitizers(programs: Path, tmp_path: Path, name: str) -> None:
    import shutil

    shutil.copytree(programs / name, tmp_path / "p")
    done = run_guarded(tmp_path / "p", edgemem.load(tmp_path / "p").contract, steps=2 * wrap(programs / name) + 3)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({"width": 8}, 1),  # rows of 32 bytes: most windows would start where no vector may be read
        ({"context": 4, "width": 64}, 1),  # a cache of 1 KiB
        ({}, 2),  # rows of two streams lie apart: no window holds those of both
    ],
)
def test_other_caches_are_copied_as_before(tmp_path: Path, changes: dict[str, object], batch: int) -> None:
    from edgemem.boards import board
    from edgemem.export import export_model
    from edgemem.runtimes.aot.compiler import generated

    settings = MODELS["token"][1] | changes
    export_model("lm-transformer", tmp_path / "m.onnx", settings, seed=1, batch=batch, certified_steps=2)
    plan = generated(tmp_path / "m.onnx", board("host")).source.plan
    assert len(plan.states) == 3 and not any(slot.ring for slot in plan.states.values())
