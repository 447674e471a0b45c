"""Adoption of files that are malformed or ask for too much: refused in words, before anything is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import helper

from edgemem import contract as contracts
from edgemem.cli.main import cli
from edgemem.errors import ContractError, ExportError, ModelFileError, UsageError
from edgemem.export.adopt import Request, adopt, detect
from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite import UNROLLED, turns
from edgemem.foreign import adoption_of, constant, foreign_program, over_whole_sequence
from edgemem.modelfile import open_model
from edgemem.program import load
from edgemem.verify import verify
from tests.hostile import ADD, BOOL, FLOAT, HUGE, INT64, TANH, refused, written

# --- malformed graphs --------------------------------------------------------------------------------------------


def branch(name: str, reads: str) -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Tanh", [reads], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, None)]
    )


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ([helper.make_node("Add", ["b", "x"], ["a"]), helper.make_node("Add", ["a", "s"], ["b"]),
          helper.make_node("Identity", ["b"], ["y"]), ADD], "its nodes form a cycle"),
        ([helper.make_node("Add", ["nowhere", "x"], ["y"], name="sum"), ADD], "sum reads 'nowhere', which nothing def"),
        ([ADD], "the graph's outputs reads 'y', which nothing defines"),
        ([helper.make_node("If", ["flag"], ["y"], then_branch=branch("p", "nowhere"), else_branch=branch("q", "x")),
          ADD], "Tanh reads 'nowhere', which nothing defines"),
    ],
)  # fmt: skip
def test_graphs_with_cycles_and_undefined_values(nodes: list[onnx.NodeProto], match: str, tmp_path: Path) -> None:
    refused(written(tmp_path / "f.onnx", nodes, {"flag": True}), ModelFileError, match)


def test_nodes_out_of_order_are_brought_into_it(tmp_path: Path) -> None:
    found = adopt(written(tmp_path / "f.onnx", [TANH, ADD]), tmp_path / "m.onnx", steps=8)
    assert [state.name for state in found.contract.states] == ["s"] and found.contract.parity[0].steps == 8


def test_a_corrupt_archive(tmp_path: Path) -> None:
    path = tmp_path / "f.zip"
    end = b"PK\x05\x06" + bytes(4) + (1).to_bytes(2, "little") * 2 + (46).to_bytes(4, "little") + bytes(6)
    path.write_bytes(bytes(64) + end)  # an end of a directory that is not there
    refused(path, ModelFileError, "cannot be read as a model")


@pytest.mark.parametrize("text", ["²", "9" * 5000, "-1"])
def test_sizes_that_are_no_numbers(text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [ADD, TANH], shape=(1, "a"))
    refused(path, UsageError, f"--set a={text[:9]}.*: a size from 1", Request(sets={"a": text}))
    result = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(tmp_path / "m.onnx"), "--tail", f"x={text}"])
    assert isinstance(result.exception, UsageError) and "a whole number above 0" in str(result.exception)


def test_a_long_chain_of_reshapes(tmp_path: Path) -> None:
    """Longer than Python's stack is deep; and values that are read twice, as often as would never end."""
    depth = 1500
    chain = [helper.make_node("Reshape", [f"v{i}", "shape"], [f"v{i + 1}"]) for i in range(depth)]
    twice = [helper.make_node("Concat", [f"w{i}", f"w{i}"], [f"w{i + 1}"], axis=0) for i in range(60)]
    graph = helper.make_graph(
        [*chain, *twice], "g",
        [helper.make_tensor_value_info("v0", FLOAT, [4]), helper.make_tensor_value_info("w0", FLOAT, [1])],
        [helper.make_tensor_value_info(f"v{depth}", FLOAT, [4])],
        [onnx.numpy_helper.from_array(np.array([4]), "shape")],
    )  # fmt: skip
    model = ir.from_proto(helper.make_model(graph))
    long, doubled = model.graph.inputs
    assert len(list(detect.reached(long))) == depth
    assert [value.name for value in detect.downstream(long)] == [f"v{i}" for i in range(depth + 1)]
    assert [value.name for value in detect.downstream(doubled)] == [f"w{i}" for i in range(61)]


# --- too much ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "inputs", "constants"),
    [
        ("ConstantOfShape", ["n"], {"n": [HUGE]}),
        ("Expand", ["one", "n"], {"one": np.float32(1), "n": [10**6, 10**6]}),
        ("Range", ["a", "n", "b"], {"a": np.int64(0), "n": np.int64(HUGE), "b": np.int64(1)}),
        ("Tile", ["ones", "n"], {"ones": np.ones(2, np.float32), "n": [HUGE]}),
        ("OneHot", ["places", "n", "values"], {"places": [0], "n": [HUGE], "values": np.zeros(2, np.float32)}),
    ],
)
def test_constants_that_would_be_too_large(
    kind: str, inputs: list[str], constants: dict[str, Any], tmp_path: Path
) -> None:
    bomb = [helper.make_node(kind, inputs, ["bomb"], name="bomb"),
            helper.make_node("ReduceMax", ["bomb"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["most_float"], to=FLOAT),
            helper.make_node("Mul", ["s_out", "most_float"], ["y"])]  # fmt: skip
    path = written(tmp_path / "f.onnx", [ADD, *bomb], constants)
    refused(path, ExportError, rf"{kind} \(bomb\) gives \d{{13}} elements, \d+ are the limit")


def test_sizes_that_are_only_known_by_trying(tmp_path: Path) -> None:
    """What the operator reads, and what a number in it says that it gives."""
    wide = [helper.make_node("Expand", ["x", "n"], ["wide"]), helper.make_node("Det", ["wide"], ["y"])]
    model = ir.load(written(tmp_path / "f.onnx", wide, {"n": [5000, 5000]}, (1, 1)))
    freezer = Freezer(model, {})
    expand, det = list(model.graph)
    freezer.one(expand)
    with pytest.raises(ExportError, match=r"Det .* reads 25000000 elements"):
        freezer.tried(det, freezer.single(det), "out0")


def test_an_input_of_one_number_and_a_huge_shape(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [ADD, TANH], shape=(5000, 5000))
    refused(path, UsageError, r"--set x=1: \[5000, 5000\] is more than", Request(sets={"x": "1"}))
    with pytest.raises(ContractError, match="constants: a tensor"):
        constant(1, "tensor(float)", [10**6, 10**6])


def nested_loops(path: Path, count: int) -> Path:
    """A loop of `count` turns in a loop of `count` turns, each adding x once."""

    def body(nodes: list[onnx.NodeProto], name: str, result: str) -> onnx.GraphProto:
        flag = helper.make_tensor_value_info(f"{name}_go", BOOL, [])
        turn = helper.make_tensor_value_info(f"{name}_turn", INT64, [])
        inputs = [turn, flag, helper.make_tensor_value_info(f"{name}_in", FLOAT, [1, 4])]
        return helper.make_graph(nodes, name, inputs, [flag, helper.make_tensor_value_info(result, FLOAT, [1, 4])])

    inner = body([helper.make_node("Add", ["inner_in", "x"], ["sum"])], "inner", "sum")
    loop = helper.make_node("Loop", ["count", "", "outer_in"], ["after"], body=inner)
    outer = helper.make_node("Loop", ["count", "", "s"], ["s_out"], body=body([loop], "outer", "after"))
    return written(path, [outer, TANH], {"count": np.int64(count)})


def test_nested_loops_share_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.load(nested_loops(tmp_path / "f.onnx", 4))
    freezer = Freezer(model, UNROLLED)
    freezer.run()
    assert sum(node.op_type == "Add" for node in model.graph) == 16
    assert freezer.written_out == 4 * 3 + 16 * 2  # a turn, and what is in it
    found = adopt(tmp_path / "f.onnx", tmp_path / "m.onnx", steps=8)  # bodies that hand their conditions through
    assert [state.name for state in found.contract.states] == ["s"]
    monkeypatch.setattr(turns, "MOST_NODES", 40)  # more than any one loop comes to
    with pytest.raises(ExportError, match="operators of loops would be written out, 40 are the limit"):
        Freezer(ir.load(nested_loops(tmp_path / "f.onnx", 4)), UNROLLED).run()


# --- contracts that say what cannot be ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A foreign file, and what became of it."""
    folder = tmp_path_factory.mktemp("adopted")
    foreign = written(folder / "f.onnx", [ADD, TANH])
    adopt(foreign, folder / "m.onnx", Request(layouts={"x": "TF", "y": "TF"}), steps=8)
    return foreign, folder / "m.onnx"


def changed(model: Path, target: Path, **fields: Any) -> Path:
    """The adopted file with other fields in what it says of its adoption."""
    proto = onnx.load(model)
    entry = next(prop for prop in proto.metadata_props if prop.key == contracts.KEY)
    contract = contracts.decode(entry.value)
    said = adoption_of(contract).model_dump()
    for name, value in fields.items():
        said[name] = [{**said[name][0], **value}] if isinstance(said[name], list) else value
    facts = contract.model.model_copy(update={"config": {"adopted": said}})
    entry.value = contracts.encode(contract.model_copy(update={"model": facts}))
    onnx.save(proto, target)
    return target


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"inputs": {"axes": "TX"}}, "x has the axes 'TX', a letter for each was wanted"),
        ({"inputs": {"axes": "TT"}}, "x has the axes 'TT', a letter"),
        ({"inputs": {"axes": "TFF"}}, "x has the axes 'TFF', which do not fit its shape"),
        ({"outputs": {"axes": "B"}}, "y has the axes 'B', which do not fit"),
        ({"states": {"axes": "TF"}}, "s has the axes 'TF', a letter"),
        ({"states": {"axes": "FFF"}}, "s has the axes 'FFF', which do not fit"),
        ({"frame_rows": 0}, "frame_rows is 0, 1 or more"),
        ({"frame_rows": 3}, "x has no 3 rows in a frame"),
        ({"tails": {"x": 0}}, "x has 0 rows, 1 or more"),
        ({"tails": {"z": 1}}, "tails has z, which is no input"),
        ({"short": {"y": -1}}, "y has -1 rows, 0 or more"),
        ({"outputs": {"name": "z"}}, "lacks outputs of the contract"),
        ({"states": {"name": "z"}}, "lacks states of the contract"),
        ({"inputs": {"axes": "BF"}, "streaming": True}, "x has no time axis"),
        ({"constants": {"x": "text"}}, r"constants: a tensor\(float\) of shape \[1, 4\] cannot have such a value"),
        ({"constants": {"x": {"a": 1}}}, r"constants: a tensor\(float\)"),
    ],
)  # fmt: skip
def test_adoptions_that_cannot_be(
    fields: dict[str, Any], match: str, adopted: tuple[Path, Path], tmp_path: Path
) -> None:
    foreign, model = adopted
    with pytest.raises(ContractError, match=rf"contract field model\.config\.adopted.*{match}"):
        verify(changed(model, tmp_path / "m.onnx", **fields), 8, reference=foreign)


def test_a_range_of_integers_has_whole_numbers(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["i"], ["x"], to=FLOAT), ADD, TANH], "g",
        [helper.make_tensor_value_info("i", INT64, [1, 4]), helper.make_tensor_value_info("s", FLOAT, [1, 4])],
        [helper.make_tensor_value_info(n, FLOAT, [1, 4]) for n in ("y", "s_out")],
    )  # fmt: skip
    path = tmp_path / "f.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    said = {"layouts": {"i": "BF"}}
    refused(path, UsageError, "two whole numbers were wanted", Request(**said, ranges={"i": (0.5, 3.0)}))
    found = adopt(path, tmp_path / "m.onnx", Request(**said, ranges={"i": (0.0, 3.0)}), steps=8)
    assert found.contract.inputs[0].range == (0, 3)


def test_progress_over_a_whole_sequence_is_told_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Tanh", ["x"], ["y"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", FLOAT, [1, "time", 3])],
        [helper.make_tensor_value_info("y", FLOAT, [1, "time", 3])],
    )  # fmt: skip
    path = tmp_path / "f.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    adopt(path, tmp_path / "m.onnx", Request(streaming=True), steps=8)
    program, events = load(tmp_path / "m.onnx"), []
    step = program.step
    monkeypatch.setattr(program, "step", lambda *args: (events.append("step"), step(*args))[1])
    reference = foreign_program(open_model(tmp_path / "m.onnx"), path)
    assert over_whole_sequence(reference, program, 12, tick=lambda: events.append("tick")).holds
    assert events.count("tick") == 12 and events.index("tick") < len(events) - 1 - events[::-1].index("step")
