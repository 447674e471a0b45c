"""onnxruntime programs: states apart, resets total, threads safe, the reference's outputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem import modelfile
from edgemem.errors import ConfigError, InputError, ModelFileError, SnapshotError, UsageError
from edgemem.export import export_model
from edgemem.reference import rebuilt
from edgemem.runner import generated
from edgemem.trial import poisoned, random_inputs, random_state, trial
from edgemem.weights import stored_tensors

NAMES = ("lmu.onnx", "lmu4.onnx", "lm.onnx", "k.onnx")


def chunks(path: Path, count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    contract = modelfile.open_model(path).contract
    return [random_inputs(contract, rng) for _ in range(count)]


def features(chunk: dict[str, np.ndarray]) -> np.ndarray:
    return next(array for name, array in chunk.items() if name != "valid")


@pytest.mark.parametrize("name", NAMES)
def test_reset_is_total(models: Path, name: str) -> None:
    program = edgemem.load(models / name)
    for tensor, fresh, again in poisoned(program, 12):
        assert fresh.tobytes() == again.tobytes(), tensor


@pytest.mark.parametrize("name", NAMES)
def test_snapshot_and_fork_go_on_bit_for_bit(models: Path, name: str) -> None:
    program = edgemem.load(models / name)
    steps = chunks(models / name, 9)
    stream = program.stream()
    for chunk in steps[:5]:
        stream.step(features(chunk))
    twin, resumed = stream.fork(), program.stream()
    resumed.restore(stream.snapshot())
    for chunk in steps[5:]:
        wanted = stream.step(features(chunk))
        np.testing.assert_array_equal(twin.step(features(chunk)), wanted)
        np.testing.assert_array_equal(resumed.step(features(chunk)), wanted)
    assert stream.snapshot() == twin.snapshot() == resumed.snapshot()


def test_a_snapshot_moves_between_torch_and_onnxruntime(models: Path) -> None:
    model = modelfile.open_model(models / "lmu.onnx")
    torch_stream = rebuilt(model, stored_tensors(model)).stream()
    ort_stream = edgemem.load(models / "lmu.onnx").stream()
    steps = [features(chunk) for chunk in chunks(models / "lmu.onnx", 20)]
    for x in steps[:10]:
        torch_stream.step(x)
    ort_stream.restore(torch_stream.snapshot())
    for x in steps[10:]:
        np.testing.assert_allclose(ort_stream.step(x), torch_stream.step(x), rtol=1e-4, atol=1e-5)


def test_one_program_serves_threads_one_stream_each(models: Path) -> None:
    program = edgemem.load(models / "lm.onnx")
    inputs = [[features(c) for c in chunks(models / "lm.onnx", 60, seed)] for seed in range(8)]

    def streamed(steps: list[np.ndarray]) -> np.ndarray:
        stream = program.stream()
        return np.concatenate([stream.step(x) for x in steps])

    alone = [streamed(steps) for steps in inputs]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(streamed, inputs))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def test_two_streams_of_a_program_do_not_mix(models: Path) -> None:
    program = edgemem.load(models / "lmu.onnx")
    first, second, alone = program.stream(), program.stream(), program.stream()
    for a, b in zip(chunks(models / "lmu.onnx", 10, 1), chunks(models / "lmu.onnx", 10, 2), strict=True):
        second.step(features(b))
        np.testing.assert_array_equal(first.step(features(a)), alone.step(features(a)))


def test_steps_go_to_and_fro_between_two_sets_of_buffers(models: Path) -> None:
    program = edgemem.load(models / "lmu.onnx")
    state = program.new_state()
    outputs = {id(program.step(chunk, state)["y"]) for chunk in chunks(models / "lmu.onnx", 20)}
    assert len(outputs) == 1  # none is made in a step
    first, second = ({name: array.ctypes.data for name, array in half.items()} for half in state._sets)
    assert not set(first.values()) & set(second.values())  # a step that reads and writes one buffer gives wrong numbers
    for chunk in chunks(models / "lmu.onnx", 3):
        before, current = state.get(), state.phase
        program.step(chunk, state)
        assert state.phase == 1 - current
        for name, array in state._sets[current].items():
            np.testing.assert_array_equal(array, before[name])  # what the step read, it left alone


def test_outputs_are_the_callers_own(models: Path) -> None:
    stream = edgemem.load(models / "lmu.onnx").stream()
    steps = [features(chunk) for chunk in chunks(models / "lmu.onnx", 3)]
    rows = [stream.step(x) for x in steps]
    kept = [row.copy() for row in rows]
    stream.step(steps[0])
    for row, copy in zip(rows, kept, strict=True):
        np.testing.assert_array_equal(row, copy)


def test_every_random_state_is_legal(models: Path) -> None:
    program = edgemem.load(models / "k.onnx")
    rng = np.random.default_rng(0)
    state = program.new_state()
    state.set({s.name: random_state(s, rng) for s in program.contract.states})
    outputs = program.step(random_inputs(program.contract, rng), state)
    assert np.isfinite(outputs["logits"]).all()


def test_tokens_of_any_width_and_none_out_of_range(models: Path) -> None:
    stream = edgemem.load(models / "lm.onnx").stream()
    rows = [
        edgemem.load(models / "lm.onnx").stream().step(np.array([200], t))
        for t in ("uint8", "int16", "int64", "uint64")
    ]
    assert all(np.array_equal(rows[0], row) for row in rows)
    for token in (-1, 256):
        with pytest.raises(InputError, match=f"values from 0 to 255 were wanted, {token} came"):
            stream.step(np.array([token]))
    with pytest.raises(InputError, match="integers were wanted, float64 came"):
        stream.step(np.array([1.0]))
    assert stream.position == 0


def test_whoever_stops_generating_has_a_stream_that_saw_the_token(models: Path) -> None:
    stream = edgemem.load(models / "lm.onnx").stream()
    tokens = generated(stream, np.array([100, 101]), 9, lambda logits: int(logits.argmax()))
    first, second = next(tokens), next(tokens)
    tokens.close()
    other = edgemem.load(models / "lm.onnx").stream()
    other.push(np.array([100, 101, first, second]))
    assert stream.snapshot() == other.snapshot()


def test_a_snapshot_of_another_model_or_weights_is_refused(models: Path, tmp_path: Path) -> None:
    from edgemem.export import export_model
    from tests.conftest import SMALL_LMU

    export_model("lmu", tmp_path / "other.onnx", SMALL_LMU, seed=2)
    ours = edgemem.load(models / "lmu.onnx").stream()
    for path in (models / "lm.onnx", tmp_path / "other.onnx"):
        with pytest.raises(SnapshotError, match="fingerprint"):
            ours.restore(edgemem.load(path).stream().snapshot())


def test_what_cannot_be_loaded_is_named(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown runtime 'orrt'; there are ort"):
        edgemem.load(models / "lmu.onnx", runtime="orrt")
    with pytest.raises(ModelFileError, match="does not exist"):
        edgemem.load(tmp_path / "none.onnx")
    model = modelfile.open_model(models / "lmu.onnx")
    object.__setattr__(model.contract.model, "name", "MyOwn")
    with pytest.raises(ConfigError, match="--reference"):
        rebuilt(model, {})


def test_two_threads_of_one_step_change_nothing(models: Path) -> None:
    one, two = (edgemem.load(models / "lm.onnx", threads=n) for n in (1, 2))
    assert trial(one, two, 50).holds


def test_a_product_with_a_reciprocal_is_not_fused_into_a_graph_that_onnxruntime_refuses(tmp_path: Path) -> None:
    settings = {"layers": 1, "width": 5, "order": 5, "features": 6, "channels": 1, "convolutions": 1, "kernel": 1}
    export_model("kws-spiking-lmuformer", tmp_path / "one.onnx", settings, certified_steps=8)  # its gains: a single 1
    assert edgemem.load(tmp_path / "one.onnx").contract.outputs
