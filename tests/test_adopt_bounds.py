"""What a file may ask for: names, types, sizes and places beyond all bounds, and what a terminal makes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import edgemem
from edgemem.cli import main
from edgemem.cli.main import cli
from edgemem.cli.options import progress_bar, stdout, table
from edgemem.errors import EdgememError, ExportError, InputError, ModelFileError, StreamError
from edgemem.export.adopt import Request, adopt, freeze
from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite import UNROLLED
from edgemem.text import printable
from tests.hostile import ADD, BOOL, FLOAT, HUGE, INT64, TANH, refused, written

node, info = helper.make_node, helper.make_tensor_value_info
Change = Callable[[onnx.ModelProto], Any]


def changed(path: Path, change: Change) -> Path:
    """A small file of a state, with something else in it."""
    proto = onnx.load(written(path, [ADD, TANH]))
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def external(tensor: onnx.TensorProto, place: str) -> onnx.TensorProto:
    """A tensor that lies in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    return tensor


# --- inputs ------------------------------------------------------------------------------------------------------


def sized(*shape: int) -> Change:
    return lambda proto: proto.graph.input[0].CopyFrom(info("x", FLOAT, shape))


def another(kind: Any) -> Change:
    return lambda proto: proto.graph.input.add(name="q").type.CopyFrom(kind)


def tensor_type(kind: int) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(kind, [1, 4])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (sized(0, 4), r"input x has the sizes \[0, 4\]; each has to be 1 or more"),
        (sized(-1, 4), r"input x has the sizes \[-1, 4\]"),
        (sized(1, HUGE), "input x has 1000000000000 elements, 67108864 are the limit"),
        (sized(*[1] * 70), "input x has 70 axes, 16 are the limit"),
        (another(onnx.TypeProto()), "input q is of no type"),
        (another(tensor_type(TensorProto.STRING)), "input q is of string; a tensor of numbers was wanted"),
        (another(tensor_type(TensorProto.COMPLEX64)), "input q is of complex64"),
        (another(tensor_type(TensorProto.FLOAT8E4M3FN)), "input q is of float8e4m3fn"),
        (another(helper.make_sequence_type_proto(tensor_type(FLOAT))), r"input q is of sequence\(tensor\(float\)\)"),
        (lambda p: p.graph.input[0].type.tensor_type.ClearField("shape"), "input x has no shape"),
        (lambda p: p.graph.input.append(p.graph.input[0]), "several values are called 'x'"),
        (lambda p: p.graph.output.append(p.graph.output[0]), "the output 'y' is there twice"),
        (lambda p: setattr(p.graph.input.add(), "name", ""), "an input has no name"),
        (lambda p: p.graph.node.append(node("Relu", ["x"], ["y"])), "cannot be read as a model"),
    ],
)  # fmt: skip
def test_inputs_and_names_that_cannot_be(change: Change, match: str, tmp_path: Path) -> None:
    refused(changed(tmp_path / "f.onnx", change), ModelFileError, match)


def test_sizes_that_the_user_says_are_held_against_the_limit(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [ADD, TANH], shape=("a", "b"))
    request = Request(sets={"a": "1000000", "b": "1000000"})
    refused(path, ModelFileError, "1000000000000 elements, 67108864 are the limit; choose a shorter step", request)


# --- places and constants ----------------------------------------------------------------------------------------


def nested(place: str) -> list[onnx.NodeProto]:
    """A branch with a constant of its own, which lies in another file."""
    body = helper.make_graph([node("Add", ["x", "w"], ["p"])], "b", [], [info("p", FLOAT, None)])
    body.initializer.append(external(numpy_helper.from_array(np.zeros((1, 4), np.float32), "w"), place))
    return [node("If", ["flag"], ["y"], then_branch=body, else_branch=body), ADD]


@pytest.mark.parametrize("place", ["a\0b", "a" * 5000, "pipe", "folder", "nowhere", ""])
def test_places_that_are_no_files(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which would wait for ever
    (tmp_path / "folder").mkdir()
    path = written(tmp_path / "f.onnx", nested(place), {"flag": True})
    refused(path, ModelFileError, "is missing|is too short|outside the model's folder")
    path = written(tmp_path / "f.onnx", [node("Add", ["x", "w"], ["y"]), ADD], {"w": np.zeros((1, 4), np.float32)})
    proto = onnx.load(path)
    external(proto.graph.initializer[0], place)
    path.write_bytes(proto.SerializeToString())
    refused(path, ModelFileError, "is missing|is too short|outside the model's folder")


def test_a_model_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.onnx")
    refused(tmp_path / "f.onnx", ModelFileError, "f.onnx is no file but a device or a pipe")


def test_data_beside_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    """What is checked is what is read: the file's own folder, not that of the link."""
    (tmp_path / "there").mkdir()
    real = written(tmp_path / "there" / "m.onnx", [node("Add", ["x", "w"], ["y"]), ADD],
                   {"w": np.full((1, 4), 2, np.float32)})  # fmt: skip
    proto = onnx.load(real)
    (tmp_path / "there" / "w.bin").write_bytes(proto.graph.initializer[0].raw_data)
    (tmp_path / "w.bin").write_bytes(np.full((1, 4), 9, np.float32).tobytes())  # a decoy beside the link
    external(proto.graph.initializer[0], "w.bin")
    real.write_bytes(proto.SerializeToString())
    (tmp_path / "f.onnx").symlink_to(real)
    adopt(tmp_path / "f.onnx", tmp_path / "m.onnx", steps=8)
    assert edgemem.load(tmp_path / "m.onnx").stream().step(np.zeros((1, 4), np.float32)).max() == 2.0


def test_constants_that_are_no_numbers(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [node("Add", ["x", "w"], ["y"]), ADD], {"w": np.float32([[1, np.nan, 0, 0]])})
    refused(path, ModelFileError, r"the constant w holds NaN at \[0, 1\]")
    mask = written(tmp_path / "g.onnx", [node("Max", ["x", "w"], ["y"]), ADD], {"w": np.float32(-np.inf)})
    assert adopt(mask, tmp_path / "m.onnx", steps=8).contract.parity[0].steps == 8  # masks are made of infinity


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n", "greater than file size"),
        (b"(" * 300 + b"\n", "not a readable .npy array"),
        (b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n", "not a readable .npy array"),
    ],
)
def test_start_values_that_claim_more_than_there_is(header: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "h.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    path = written(tmp_path / "f.onnx", [ADD, TANH])
    refused(path, InputError, match, Request(inits={"s": tmp_path / "h.npy"}))


def test_start_values_of_another_kind(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [ADD, TANH])
    np.savez(tmp_path / "h.npz", s=np.zeros((1, 4), np.float32))
    os.mkfifo(tmp_path / "pipe")
    for name, match in (("h.npz", "holds several arrays"), ("pipe", "pipe is no file")):
        refused(path, InputError, match, Request(inits={"s": tmp_path / name}))


# --- sizes in the graph ------------------------------------------------------------------------------------------


FOLDED = [node("ReduceMax", ["wide"], ["most"], keepdims=0), node("Add", ["s_out", "most"], ["y"])]


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Expand", ["s_out", "n"], ["wide"])], {"n": np.array([1 << 15, 1 << 14, 4])}),
        ([node("Tile", ["s_out", "n"], ["wide"])], {"n": np.array([1 << 15, 1 << 14])}),
        ([node("Pad", ["s_out", "n"], ["wide"])], {"n": np.array([1 << 15, 0, 0, 1 << 17])}),
        ([node("Pad", ["s_out", "n"], ["wide"])], {"n": np.array([-5, 0, 0, 0])}),
        ([node("Resize", ["s_out", "", "n"], ["wide"])], {"n": np.array([1e5, 1e4], np.float32)}),
        ([node("Unsqueeze", ["s_out", "zero"], ["u"]), node("ConvTranspose", ["u", "w"], ["wide"], strides=[1 << 29])],
         {"zero": np.array([0]), "w": np.ones((1, 1, 3), np.float32)}),
        ([node("Concat", ["s_out", "s_out"], ["d0"], axis=0),
          *(node("Concat", [f"d{i}", f"d{i}"], [f"d{i + 1}"], axis=0) for i in range(40)),
          node("Identity", ["d40"], ["wide"])], {}),
    ],
)  # fmt: skip
def test_steps_that_would_be_too_large(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = written(tmp_path / "f.onnx", [ADD, *nodes, *FOLDED], constants)
    refused(path, ExportError, r"(?s)elements in a step, 67108864 are the limit")


DATA = [ADD, node("ReduceSum", ["s_out"], ["sum"], keepdims=0), node("Cast", ["sum"], ["i"], to=INT64),
        node("Reshape", ["i", "one"], ["i1"])]  # fmt: skip


@pytest.mark.parametrize(
    "nodes",
    [
        [node("ConstantOfShape", ["i1"], ["wide"])],
        [node("Range", ["first", "i", "step"], ["r"]), node("Cast", ["r"], ["wide"], to=FLOAT)],
        [node("Cast", ["s_out"], ["b"], to=BOOL), node("Reshape", ["b", "minus"], ["flat"]),
         node("Compress", ["s_out", "flat"], ["wide"], axis=1)],
        [node("TopK", ["s_out", "i1"], ["wide", "places"])],
        [node("Add", ["i1", "one"], ["i2"]), node("Slice", ["s_out", "i1", "i2", "one"], ["wide"])],
        [node("Concat", ["i1", "i1"], ["i2"], axis=0), node("Tile", ["s_out", "i2"], ["wide"])],
        [node("Expand", ["s_out", "i1"], ["wide"])],
    ],
    ids=lambda nodes: nodes[-1].op_type,
)  # fmt: skip
def test_sizes_that_depend_on_the_data_are_named(nodes: list[onnx.NodeProto], tmp_path: Path) -> None:
    """What onnxruntime allows, and a static step cannot have; tried on zeros, it would look static."""
    constants = {"one": np.array([1]), "minus": np.array([-1]), "first": np.int64(0), "step": np.int64(1)}
    path = written(tmp_path / "f.onnx", [*DATA, *nodes, *FOLDED], constants)
    refused(path, ExportError, "has no static form: what it gives has a size that depends on the data of a step")


def loop(count: int, nodes: Sequence[onnx.NodeProto], go: str = "go") -> list[onnx.NodeProto]:
    """A loop over a state of any size; its condition is `go` of the body."""
    body = helper.make_graph(
        nodes, "turn", [info("i", INT64, []), info("go", BOOL, []), info("v", FLOAT, None)],
        [info(go, BOOL, []), info("w", FLOAT, None)],
    )  # fmt: skip
    return [node("Constant", [], ["count"], value=numpy_helper.from_array(np.int64(count))),
            node("Loop", ["count", "", "start"], ["wide"], body=body)]  # fmt: skip


def test_loops_that_would_never_end_are_refused_at_once(tmp_path: Path) -> None:
    turns = loop(HUGE, [node("Add", ["v", "x"], ["w"])])
    path = written(tmp_path / "f.onnx", [*turns, *FOLDED, ADD], {"start": np.zeros((1, 4), np.float32)})
    refused(path, ExportError, rf"with its turns {2 * HUGE} operators of loops would be written out, 65536")


def test_constants_that_double_in_every_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = loop(40, [node("Concat", ["v", "v"], ["w"], axis=0)])
    path = written(tmp_path / "f.onnx", [*turns, *FOLDED, ADD], {"start": np.zeros((1, 4), np.float32)})
    monkeypatch.setattr(freeze, "MOST_FOLDED", 1 << 16)
    refused(path, ExportError, "constants come to more than 65536 elements, computed from others")


@pytest.mark.parametrize("count", [0, -5])
def test_a_loop_without_turns_hands_its_state_through(count: int, tmp_path: Path) -> None:
    """The state of the file is a result as it came: input and output keep their names."""
    body = loop(count, [node("Add", ["v", "x"], ["w"])])
    body[1].input[2], body[1].output[0] = "s", "s_out"
    found = adopt(written(tmp_path / "f.onnx", [*body, node("Tanh", ["x"], ["y"])]), tmp_path / "m.onnx", steps=8)
    assert [state.name for state in found.contract.states] == ["s"]


def test_many_constants_of_one_name_take_no_time(tmp_path: Path) -> None:
    """Every name is free at once, and used once."""
    model = ir.load(written(tmp_path / "f.onnx", [*loop(60, [node("Add", ["v", "x"], ["w"])]), *FOLDED, ADD],
                            {"start": np.zeros((1, 4), np.float32), "turn.7": np.float32(1)}))  # fmt: skip
    Freezer(model, UNROLLED).run()
    assert {f"turn.{i}" for i in range(1, 60)} < set(model.graph.initializers)
    assert model.graph.meta["edgemem.counts"]["turn"] == 60


def test_functions_that_grow_without_end(tmp_path: Path) -> None:
    """Each calls the next twice: a billion operators in a few lines."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]

    def function(name: str, calls: list[str]) -> onnx.FunctionProto:
        values = ["a", *(f"v{i}" for i in range(len(calls) - 1)), "b"]
        nodes = [node(kind, [values[i]], [values[i + 1]], domain="own" if kind[0] == "f" else "")
                 for i, kind in enumerate(calls)]  # fmt: skip
        return helper.make_function("own", name, ["a"], ["b"], nodes, opsets)

    def call(depth: int, last: list[str]) -> Change:
        def change(proto: onnx.ModelProto) -> None:
            proto.opset_import.append(opsets[1])
            proto.functions.extend(function(f"f{i}", [f"f{i + 1}"] * 2) for i in range(depth))
            proto.functions.append(function(f"f{depth}", last))
            proto.graph.node[1].CopyFrom(node("f0", ["s_out"], ["y"], domain="own"))

        return change

    refused(changed(tmp_path / "f.onnx", call(30, ["Tanh"])), ModelFileError, "more than 262,144 operators")
    refused(changed(tmp_path / "f.onnx", call(2, ["f0"])), ModelFileError, "its function f. calls itself")
    found = adopt(changed(tmp_path / "f.onnx", call(2, ["Tanh"])), tmp_path / "m.onnx", steps=8)
    assert found.contract.parity[0].max_abs_error <= found.contract.parity[0].tolerance


def test_attributes_that_stand_for_those_of_a_function(tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.node[1].op_type = "Softmax"
        proto.graph.node[1].attribute.add(name="axis", ref_attr_name="which", type=onnx.AttributeProto.INT)

    refused(changed(tmp_path / "f.onnx", change), ModelFileError, "has an attribute axis that stands for one of a func")


def test_text_and_pictures_are_not_for_a_step(tmp_path: Path) -> None:
    """A pattern that takes an hour for forty letters is not even looked at."""
    letters = node("Constant", [], ["t"], value_strings=[b"a" * 40 + b"!"])
    match = node("RegexFullMatch", ["t"], ["b"], pattern="(a+)+$")
    path = changed(tmp_path / "f.onnx", lambda p: p.graph.node.extend([letters, match]))
    refused(path, ModelFileError, "operator RegexFullMatch .* works on text or pictures")


@pytest.mark.parametrize("version", [99, 1 << 40])
def test_versions_that_are_not_there(version: int, tmp_path: Path) -> None:
    path = changed(tmp_path / "f.onnx", lambda p: setattr(p, "ir_version", version))
    refused(path, ExportError, rf"no valid ONNX graph \(Your model ir_version {version}")


def test_weights_in_few_bits_that_are_not_there(tmp_path: Path) -> None:
    product = node("MatMulNBits", ["x", "q", "scale"], ["y"], domain="com.microsoft", K=4, N=1 << 30, block_size=32)
    model = ir.load(written(tmp_path / "f.onnx", [product, ADD], {"q": np.zeros((0,), np.uint8),
                                                                  "scale": np.zeros(0, np.float32)}))  # fmt: skip
    from edgemem.export.adopt.rewrite import matmul_nbits

    with pytest.raises(ExportError, match=r"1073741824 x 1 groups of 32 codes of 4 bits were wanted.*0 bytes"):
        matmul_nbits.parts(next(iter(model.graph)))


# --- whole sequences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ([node("Conv", ["x", "k"], ["y"], dilations=[HUGE], pads=[HUGE, 0])], {}),
        ([node("Conv", ["x", "k"], ["y"], dilations=[1 << 29], pads=[0, 1 << 29])], {}),
        ([node("Slice", ["x", "a", "b", "c"], ["w"]), node("Add", ["x", "w"], ["y"])],
         {"a": np.array([1 << 29]), "b": np.array([1 << 62]), "c": np.array([2])}),
    ],
)  # fmt: skip
def test_windows_that_no_memory_holds(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], tmp_path: Path
) -> None:
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, [1, 2, "time"])], [info("y", FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in {"k": np.ones((2, 2, 2), np.float32), **constants}.items()],
    )  # fmt: skip
    path = tmp_path / "f.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    refused(path, ExportError, r"would remember \d+ rows of \[1, 2, 1\]", Request(streaming=True))


LOWEST = np.float32(-np.inf)


def test_padding_of_infinity_in_front_of_a_maximum(tmp_path: Path) -> None:
    """A state starts from finite numbers: the lowest does as well."""
    nodes = [node("Pad", ["x", "p", "low"], ["w"]), node("MaxPool", ["w"], ["y"], kernel_shape=[3])]
    graph = helper.make_graph(
        nodes, "g", [info("x", FLOAT, [1, 2, "time"])], [info("y", FLOAT, [1, 2, "time"])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in {"p": [0, 0, 2, 0, 0, 0], "low": LOWEST}.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "f.onnx")
    found = adopt(tmp_path / "f.onnx", tmp_path / "m.onnx", Request(streaming=True), steps=8)
    assert found.contract.states[0].start == -float(np.finfo(np.float32).max)


# --- what is left behind, and what is shown ----------------------------------------------------------------------


def test_no_folder_is_left_where_nothing_is_written(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [ADD, node("Gather", ["s_out", "far"], ["y"], axis=1)], {"far": np.array([99])})
    with pytest.raises(EdgememError):
        adopt(path, tmp_path / "new" / "deep" / "m.onnx", steps=8)
    assert [place.name for place in tmp_path.iterdir()] == ["f.onnx"]


def test_a_start_value_is_not_written_over(tmp_path: Path) -> None:
    np.save(tmp_path / "h.npy", np.zeros((1, 4), np.float32))
    path = written(tmp_path / "f.onnx", [ADD, TANH])
    with pytest.raises(EdgememError, match="is read and would be written over"):
        adopt(path, tmp_path / "h.npy", Request(inits={"s": tmp_path / "h.npy"}), steps=8)


def test_a_count_that_passes_the_end_of_its_table(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [node("Gather", ["table", "n"], ["e"]), node("Add", ["e", "x"], ["y"]), node("Add", ["n", "one"], ["n_out"])],
        "g", [info("x", FLOAT, [1, 4]), info("n", INT64, [1])], [info("y", FLOAT, [1, 4]), info("n_out", INT64, [1])],
        [numpy_helper.from_array(np.ones((5, 4), np.float32), "table"), numpy_helper.from_array(np.array([1]), "one")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "f.onnx")
    adopt(tmp_path / "f.onnx", tmp_path / "m.onnx", steps=4)
    stream = edgemem.load(tmp_path / "m.onnx").stream()
    for _ in range(5):
        stream.step(np.zeros((1, 4), np.float32))
    with pytest.raises(StreamError, match=r"onnxruntime cannot take this step.*out of data bounds"):
        stream.step(np.zeros((1, 4), np.float32))


EVIL = "\x1b]0;owned\x07[bold red]x[/bold red][/]\u202e"


def test_names_of_a_file_are_no_commands_to_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape codes are written out, and what looks like markup stays as it is; in tables, status lines and errors."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "250")
    folder = tmp_path / "a[/b]"
    folder.mkdir(parents=True)
    nodes = [node("Add", ["s", EVIL], ["s_out"]), node("Tanh", ["s_out"], ["y"])]
    shape = [1, 4]
    graph = helper.make_graph(
        nodes, "g", [info(EVIL, FLOAT, shape), info("s", FLOAT, shape)],
        [info("y", FLOAT, shape), info("s_out", FLOAT, shape)],
    )  # fmt: skip
    path = folder / "f.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    result = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(folder / "m.onnx")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "[bold red]x[/bold red][/]" in result.stderr and "\\x1b]0;owned\\x07" in result.stderr
    assert "\x1b]" not in result.stderr and "\x07" not in result.stderr and "\u202e" not in result.stderr
    with pytest.raises(SystemExit):
        main.stop(f"no input {EVIL}" + "x" * 10_000, 2)
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and "\\u202e" in shown and len(shown) < 4500
    stdout().print(table(("name",), [(EVIL,)], title=EVIL))
    shown = capsys.readouterr().out
    assert shown.count("\\x1b]0;owned\\x07[bold red]x[/bold red][/]\\u202e") == 2
    with progress_bar() as bar:
        bar.add_task(f"quantizing {EVIL}")
        bar.refresh()
    shown = capsys.readouterr().err
    assert "quantizing \\x1b]0;owned\\x07[bold red]x[/bold red][/]\\u202e" in shown and "\x1b]" not in shown


def test_what_is_printable() -> None:
    assert printable("h₀ → größe\n世界") == "h₀ → größe\n世界"
    assert printable("a\x1b[0m\r\x00\x9b\u2028b") == "a\\x1b[0m\\r\\x00\\x9b\\u2028b"
