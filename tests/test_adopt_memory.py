"""What an adopted step remembers, and what it must not: one model of all that is written out, as a stream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgemem
from edgemem import modelfile
from edgemem.export.adopt import Request, adopt
from edgemem.foreign import foreign_program
from edgemem.program import Program
from edgemem.trial import poisoned, random_inputs, random_state, trial
from edgemem.verify import verify

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
WIDTH, FRAMES, STATES = 5, 2, "hcgpq"  # 5: no kernel's lanes are full
node, info = helper.make_node, helper.make_tensor_value_info


def foreign(path: Path) -> Path:
    """x [2, 1, 3] through LSTM with peepholes, GRU, Scan and Loop, each with a state of its own."""
    rng = np.random.default_rng(3)

    def floats(*shape: int) -> np.ndarray:
        return (rng.normal(size=shape) / 2).astype(np.float32)

    each = helper.make_graph(
        [node("Mul", ["s", "ws"], ["kept"]), node("Add", ["kept", "row"], ["seen"]), node("Tanh", ["seen"], ["after"]),
         node("Mul", ["after", "wr"], ["shown"])],
        "each", [info("s", FLOAT, [WIDTH]), info("row", FLOAT, [WIDTH])],
        [info("after", FLOAT, [WIDTH]), info("shown", FLOAT, [WIDTH])],
    )  # fmt: skip
    turn = helper.make_graph(
        [node("Mul", ["v", "wq"], ["scaled"]), node("Add", ["scaled", "sum"], ["v_seen"]),
         node("Tanh", ["v_seen"], ["v_after"])],
        "turn", [info("i", INT64, []), info("go", BOOL, []), info("v", FLOAT, [WIDTH])],
        [info("go", BOOL, []), info("v_after", FLOAT, [WIDTH])],
    )  # fmt: skip
    nodes = [
        node("LSTM", ["x", "Wl", "Rl", "Bl", "", "h", "c", "Pl"], ["Yl", "hn", "cn"], hidden_size=WIDTH),
        node("Squeeze", ["Yl", "one"], ["u"]),
        node("GRU", ["u", "Wg", "Rg", "Bg", "", "g"], ["Yg", "gn"], hidden_size=WIDTH, linear_before_reset=1),
        node("Reshape", ["Yg", "flat"], ["rows"]),
        node("Scan", ["p", "rows"], ["pn", "z"], body=each, num_scan_inputs=1),
        node("ReduceSum", ["z", "zero"], ["sum"], keepdims=0),
        node("Loop", ["three", "", "q"], ["qn"], body=turn),
        node("Add", ["z", "qn"], ["out"]),
        node("Reshape", ["out", "apart"], ["y"]),
    ]
    constants = {
        "Wl": floats(1, 4 * WIDTH, 3), "Rl": floats(1, 4 * WIDTH, WIDTH), "Bl": floats(1, 8 * WIDTH),
        "Pl": floats(1, 3 * WIDTH), "Wg": floats(1, 3 * WIDTH, WIDTH), "Rg": floats(1, 3 * WIDTH, WIDTH),
        "Bg": floats(1, 6 * WIDTH), "ws": floats(WIDTH), "wr": floats(WIDTH), "wq": floats(WIDTH),
        "one": np.array([1]), "zero": np.array([0]), "three": np.array(3), "flat": np.array([FRAMES, WIDTH]),
        "apart": np.array([FRAMES, 1, WIDTH]),
    }  # fmt: skip
    kept = {name: [1, 1, WIDTH] if name in "hcg" else [WIDTH] for name in STATES}
    graph = helper.make_graph(
        nodes, "foreign", [info("x", FLOAT, [FRAMES, 1, 3]), *(info(n, FLOAT, s) for n, s in kept.items())],
        [info("y", FLOAT, [FRAMES, 1, WIDTH]), *(info(f"{n}n", FLOAT, s) for n, s in kept.items())],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    request = Request(layouts={"x": "TBF", "y": "TBF"})
    found = adopt(foreign(folder / "f.onnx"), folder / "m.onnx", request, steps=32)
    assert [state.name for state in found.contract.states] == list(STATES)
    return folder / "m.onnx"


@pytest.fixture(scope="module", params=["ort", "aot"])
def program(request: pytest.FixtureRequest, model: Path) -> Program:
    if request.param == "aot":
        pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    return edgemem.load(model, runtime=request.param)


def frames(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, 1, FRAMES, 3)).astype(np.float32)


def test_states_full_of_nan_leave_no_trace_of_it(program: Program) -> None:
    compared = list(poisoned(program, 8))
    assert {name for name, _, _ in compared} == {"y", *(f"{s}_out" for s in STATES)}
    assert all(np.isfinite(fresh).all() and fresh.tobytes() == again.tobytes() for _, fresh, again in compared)


def test_every_state_of_its_own_decides_what_comes(program: Program) -> None:
    """A NaN in any one state is in the output: none of the checks here is of a state that nothing reads."""
    x, contract = frames(1)[0], program.contract
    for name in STATES:
        state = program.new_state()
        start = state.get()
        start[name] = np.full_like(start[name], np.nan)
        state.set(start)
        assert np.isnan(program.step({contract.inputs[0].name: x}, state)["y"]).any(), name


def test_arrays_of_the_caller_stay_the_callers(program: Program) -> None:
    """What went in and what came out may be written over: the stream has its own."""
    given = frames(6)
    plain = program.stream()
    wanted = [plain.step(x.copy()).copy() for x in given]
    stream, came = program.stream(), []
    for x in given:
        mine = x.copy()
        y = stream.step(mine)
        came.append(y.copy())
        mine[:] = np.nan
        y[:] = np.nan
        for array in stream.state.values():
            array[:] = np.nan
    assert all(a.tobytes() == b.tobytes() for a, b in zip(wanted, came, strict=True))
    start = {name: np.full_like(array, 0.25) for name, array in program.new_state().get().items()}
    one, two = program.new_state(), program.new_state()
    one.set(start)
    two.set({name: array.copy() for name, array in start.items()})
    for array in start.values():
        array[:] = np.nan
    results = [np.array(program.step({"x": given[0]}, state)["y"]) for state in (one, two)]
    assert results[0].tobytes() == results[1].tobytes() and np.isfinite(results[0]).all()


def test_a_reset_in_the_middle_is_a_fresh_start(program: Program) -> None:
    given = frames(6)
    stream, fresh = program.stream(), program.stream()
    for x in given[:3]:
        stream.step(x)
    stream.reset()
    assert all(stream.step(x).tobytes() == fresh.step(x).tobytes() for x in given)
    assert all(a.tobytes() == fresh.state[name].tobytes() for name, a in stream.state.items())


def test_streams_share_weights_and_nothing_else(program: Program) -> None:
    """Two in turns, a third that is full of NaN between them, and a twin of the first."""
    a, b = frames(6, seed=1), frames(6, seed=2)
    alone = {name: [program_step.copy() for program_step in steps(program, x)] for name, x in (("a", a), ("b", b))}
    one, two, third = program.stream(), program.stream(), program.new_state()
    third.set({name: np.full_like(array, np.nan) for name, array in third.get().items()})
    for index in range(6):
        assert one.step(a[index]).tobytes() == alone["a"][index].tobytes()
        program.step({"x": a[index]}, third)
        twin = one.fork()
        assert two.step(b[index]).tobytes() == alone["b"][index].tobytes()
        twin.step(b[index])


def steps(program: Program, given: np.ndarray) -> list[np.ndarray]:
    stream = program.stream()
    return [stream.step(x).copy() for x in given]


def test_any_state_in_its_range_goes_as_the_foreign_file_has_it(model: Path) -> None:
    """From random states, in float32, tensor by tensor."""
    program, rng = edgemem.load(model), np.random.default_rng(4)
    reference = foreign_program(modelfile.open_model(model), model.with_name("f.onnx"))
    for _ in range(8):
        start = {state.name: random_state(state, rng) for state in program.contract.states}
        inputs, here, there = random_inputs(program.contract, rng), program.new_state(), reference.new_state()
        here.set(start)
        there.set(start)
        np.testing.assert_allclose(program.step(inputs, here)["y"], reference.step(inputs, there)["y"], atol=2e-6)
        for name, array in there.get().items():
            np.testing.assert_allclose(here.get()[name], array, atol=2e-6, err_msg=name)


def test_every_weight_that_is_altered_shows(model: Path, tmp_path: Path) -> None:
    """Each of the adopted file, one element of it; and `verify` says which, by its digest and by its effect."""
    reference = foreign_program(modelfile.open_model(model), model.with_name("f.onnx"))
    proto = onnx.load(model)
    names = [tensor.name for tensor in proto.graph.initializer if tensor.data_type == FLOAT]
    assert len(names) > 8
    for name in names:
        altered = onnx.ModelProto()
        altered.CopyFrom(proto)
        tensor = next(t for t in altered.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[array.size // 2] += 0.125
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        onnx.save(altered, tmp_path / "m.onnx")
        assert not trial(reference, edgemem.load(tmp_path / "m.onnx"), 8).holds, name
    report = verify(tmp_path / "m.onnx", 8, reference=model.with_name("f.onnx"))
    stages = {stage.name: stage for stage in report.stages}
    assert not report.ok and not stages["weights"].holds and not stages["ort"].holds
    assert names[-1] in str(stages["weights"].first)


def looking_ahead(path: Path) -> Path:
    """Windows around a row, twice, and a recurrent layer behind them: a model of whole sequences."""
    rng = np.random.default_rng(5)
    nodes = [
        node("Conv", ["x", "k1"], ["a"], kernel_shape=[3], pads=[1, 1]),
        node("Relu", ["a"], ["r"]),
        node("Conv", ["r", "k2"], ["b"], kernel_shape=[5], pads=[2, 2]),
        node("Transpose", ["b"], ["rows"], perm=[2, 0, 1]),
        node("GRU", ["rows", "W", "R"], ["Y"], hidden_size=WIDTH),
        node("Squeeze", ["Y", "one"], ["y"]),
    ]
    shapes = {"k1": (4, 3, 3), "k2": (4, 4, 5), "W": (1, 3 * WIDTH, 4), "R": (1, 3 * WIDTH, WIDTH)}
    constants = {name: (rng.normal(size=shape) / 3).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes, "foreign", [info("x", FLOAT, [1, 3, "time"])], [info("y", FLOAT, ["time", 1, WIDTH])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in {**constants, "one": np.array([1])}.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_rows_behind_the_end_are_not_seen(tmp_path: Path) -> None:
    """The last step of a sequence is filled up, and more follow for what the windows see ahead: with NaN, it does not
    matter; the rows that are the sequence's own are the same to the bit, and all there."""
    request = Request(streaming=True, chunk=4)
    contract = adopt(looking_ahead(tmp_path / "f.onnx"), tmp_path / "m.onnx", request, steps=8).contract
    assert contract.latency.look_ahead == 3
    program, x = edgemem.load(tmp_path / "m.onnx"), np.random.default_rng(6).normal(size=(1, 10, 3)).astype(np.float32)
    found = []
    for fill in (0.0, np.nan):
        padded = np.concatenate([x, np.full((1, 6, 3), fill, np.float32)], axis=1)
        state, rows = program.new_state(), []
        for at, valid in zip(range(0, 16, 4), (4, 4, 2, 0), strict=True):
            given = {"x": padded[:, at : at + 4], "valid": np.array([valid])}
            rows.append(np.array(program.step(given, state)["y"]))
        found.append(np.concatenate(rows, axis=1)[:, 3 : 3 + 10])
    assert np.isfinite(found[0]).all() and found[0].tobytes() == found[1].tobytes()
