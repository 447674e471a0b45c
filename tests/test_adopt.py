"""Adoption: which states are found, how sure, and what is refused with nothing written."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper

import edgemem
from edgemem import contract as contracts
from edgemem.cli.main import cli
from edgemem.errors import ContractError, EdgememError, ExportError, InputError, ModelFileError, UsageError
from edgemem.export.adopt import Request, adopt
from edgemem.verify import verify
from tests.foreign_files import FLOAT, refused, states, written

WEIGHTS = np.linspace(-0.5, 0.5, 8, dtype=np.float32)


def average(path: Path, state: str = "mean", after: str = "mean_out", shape: list[Any] | None = None) -> Path:
    """m' = (m + x) / 2; y = m' - x: one state, under any name."""
    axes = shape or ["batch", 8]
    nodes = [
        helper.make_node("Add", [state, "x"], ["sum"]),
        helper.make_node("Mul", ["sum", "half"], [after]),
        helper.make_node("Sub", [after, "x"], ["y"]),
    ]
    half = {"half": np.array(0.5, np.float32)}
    return written(path, nodes, {"x": axes, state: axes}, {"y": axes, after: axes}, half)


def two(path: Path, names: tuple[str, str, str, str]) -> Path:
    """Two states of one shape: a' = a + x, b' = b * a'."""
    a, b, a_after, b_after = names
    nodes = [
        helper.make_node("Add", [a, "x"], [a_after]),
        helper.make_node("Mul", [b, a_after], [b_after]),
        helper.make_node("Tanh", [b_after], ["y"]),
    ]
    shape = [1, 4]
    return written(path, nodes, {"x": shape, a: shape, b: shape}, {"y": shape, a_after: shape, b_after: shape})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("mem", "mem_out"), ("h0", "h0_out"), ("h0", "hn"), ("h_0", "h_n"), ("state", "stateN"), ("s", "s_new"),
        ("past_key_values.0.key", "present.0.key"), ("past.0.v", "present.0.v"), ("cached_key_1", "new_cached_key_1"),
        ("cache_in", "cache_out"), ("prev_h", "next_h"), ("prev_h", "h"), ("h_prev", "h_next"), ("in_s", "out_s"),
        ("conv_state", "new_conv_state"), ("Hidden_in:0", "Hidden_out:0"), ("initial_c", "final_c"),
        ("input_s", "output_s"), ("memory_t-1", "memory_t"), ("s", "updated_s"), ("k.in", "k.out"),
        ("past_a", "present_a"),
    ],
)  # fmt: skip
def test_pairs_are_found_by_their_names(before: str, after: str, tmp_path: Path) -> None:
    found = adopt(average(tmp_path / "f.onnx", before, after), tmp_path / "m.onnx", steps=16)
    assert states(found) == {before: "sure"}
    assert len(found.contract.states) == 1


def test_a_pair_that_nothing_else_fits_is_likely(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["u"]), helper.make_node("Add", ["u", "foo"], ["bar"]),
             helper.make_node("Tanh", ["bar"], ["t"]), helper.make_node("MatMul", ["t", "w2"], ["y"])]  # fmt: skip
    constants = {"w": np.ones((3, 4), np.float32), "w2": np.ones((4, 2), np.float32)}
    path = written(tmp_path / "f.onnx", nodes, {"x": [1, 3], "foo": [1, 4]}, {"y": [1, 2], "bar": [1, 4]}, constants)
    assert states(adopt(path, tmp_path / "m.onnx", steps=16)) == {"foo": "likely"}


def test_ambiguous_pairs_are_asked_for(tmp_path: Path) -> None:
    path, out = two(tmp_path / "f.onnx", ("p", "q", "r", "t")), tmp_path / "m.onnx"
    with pytest.raises(UsageError, match=r"could be a state with the output .* or .*say --state"):
        adopt(path, out)
    assert not out.exists()
    found = adopt(path, out, Request(states={"p": "r", "q": "t", "x": ""}), steps=16)
    assert states(found) == {"p": "sure", "q": "sure"}
    result = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(tmp_path / "n.onnx")])
    assert isinstance(result.exception, UsageError) and result.exception.exit_code == 2


def test_start_values(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    np.save(tmp_path / "start.npy", WEIGHTS[None])
    adopt(path, tmp_path / "m.onnx", Request(inits={"mean": tmp_path / "start.npy"}), steps=16)
    stream = edgemem.load(tmp_path / "m.onnx").stream()
    np.testing.assert_array_equal(stream.state["mean"], WEIGHTS[None])
    x = np.ones((1, 1, 8), np.float32)
    np.testing.assert_allclose(stream.step(x)[0, 0], (WEIGHTS + 1) / 2 - 1, rtol=1e-6)
    np.save(tmp_path / "short.npy", WEIGHTS)
    with pytest.raises(InputError, match=r"--init mean: float\[1, 8\] was wanted, .*float32\[8\]"):
        adopt(path, tmp_path / "n.onnx", Request(inits={"mean": tmp_path / "short.npy"}))
    with pytest.raises(UsageError, match="--init other: there is no such state; there are mean"):
        adopt(path, tmp_path / "n.onnx", Request(inits={"other": tmp_path / "start.npy"}))


def test_an_altered_weight_fails_verify(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    adopt(path, tmp_path / "m.onnx", steps=16)
    model = onnx.load(tmp_path / "m.onnx")
    half = next(tensor for tensor in model.graph.initializer if tensor.name == "half")
    half.CopyFrom(onnx.numpy_helper.from_array(np.array(0.25, np.float32), "half"))
    onnx.save(model, tmp_path / "m.onnx")
    stages = {stage.name: stage for stage in verify(tmp_path / "m.onnx", 16, reference=path).stages}
    assert not stages["weights"].holds and "half" in str(stages["weights"].first)
    assert not stages["ort"].holds and str(stages["ort"].first).endswith("at step 0")


def test_a_contract_that_names_other_tensors_is_refused(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    adopt(path, tmp_path / "m.onnx", steps=16)
    model = onnx.load(tmp_path / "m.onnx")
    entry = next(prop for prop in model.metadata_props if prop.key == contracts.KEY)
    contract = contracts.decode(entry.value)
    config = contract.model.config["adopted"]
    assert isinstance(config, dict)
    facts = contract.model.model_copy(update={"config": {"adopted": {**config, "constants": {"z": 1}}}})
    entry.value = contracts.encode(contract.model_copy(update={"model": facts}))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ContractError, match=r"contract field model\.config\.adopted: .*f\.onnx has no input z"):
        verify(tmp_path / "m.onnx", 8, reference=path)


def test_the_command_shows_what_it_decided(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    shown = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(tmp_path / "m.onnx")])
    assert shown.exit_code == 0 and "state mean" in shown.stderr and "their names" in shown.stderr
    result = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(tmp_path / "m.onnx"), "--json", "--name", "a b/*c"])
    found = json.loads(result.stdout)
    assert found["model"]["name"] == "a-b-c" and found["parity"][0]["reference"] == "foreign"
    assert {"what": "axis batch", "value": "1", "certainty": "likely", "reason": "one stream"} in found["decisions"]


@pytest.mark.parametrize(
    "options",
    [
        ["--state", "mean"],
        ["--set", "x"],
        ["--tail", "x=0"],
        ["--range", "mean=2"],
        ["--state", "a=b", "--state", "a=c"],
    ],
)
def test_wrong_options_leave_2(options: list[str], tmp_path: Path) -> None:
    command = ["adopt", str(average(tmp_path / "f.onnx")), "-o", str(tmp_path / "m.onnx"), *options]
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, UsageError) and options[0] in str(result.exception)
    assert result.exception.exit_code == 2


# --- questions: each names the option that answers it, with an example ----------------------------------------------


def asked(path: Path, match: str, request: Request | None = None) -> None:
    with pytest.raises(UsageError, match=match):
        adopt(path, path.parent / "out.onnx", request)
    assert not (path.parent / "out.onnx").exists()


def test_a_dynamic_axis_is_asked_for(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx", shape=[1, "width"])
    asked(
        path,
        r"input x \[1, width\]: how long is axis 1 \(width\)\?.*--set width=16; or, if it is time, --layout x=BT and",
    )
    assert states(adopt(path, tmp_path / "m.onnx", Request(sets={"width": "16"}), steps=8)) == {"mean": "sure"}
    asked(average(tmp_path / "g.onnx", shape=[1, None]), r"axis 1\?.*--set x.1=16")


@pytest.mark.parametrize("symbol", ["past_sequence_length", "cache_len", "total_sequence_length", "max_seq"])
def test_rows_that_were_are_no_steps(symbol: str, tmp_path: Path) -> None:
    """A cache's axis is called a length, but nothing says that it is one step long."""
    path = average(tmp_path / "f.onnx", "past_key", "present_key", [1, 2, symbol, 4])
    asked(path, rf"axis 2 \({symbol}\)\?.*\(of a cache, the rows that it keeps: --set {symbol}=64\)")


def test_a_start_that_is_not_there(tmp_path: Path) -> None:
    request = Request(inits={"mean": tmp_path / "none.npy"})
    refused(average(tmp_path / "f.onnx"), InputError, r"--init mean=.*none.npy: there is no such file; save", request)


def test_the_example_for_ambiguous_states_answers(tmp_path: Path) -> None:
    path = two(tmp_path / "f.onnx", ("p", "q", "r", "t"))
    with pytest.raises(UsageError, match="for example --state") as caught:
        adopt(path, tmp_path / "m.onnx")
    example = str(caught.value).split("for example ")[1].split(";")[0]
    result = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(tmp_path / "m.onnx"), *example.split()])
    assert result.exit_code == 0, result.exception


def test_an_example_pairs_states_and_leaves_data_alone(tmp_path: Path) -> None:
    """x could be p's rival by its shape, but is not called like a state; q has a plain partner."""
    nodes = [
        helper.make_node("Add", ["p_in", "x"], ["sum"]), helper.make_node("Tanh", ["sum"], ["state_1"]),
        helper.make_node("Tanh", ["q_in"], ["state_2"]), helper.make_node("Neg", ["sum"], ["y"]),
    ]  # fmt: skip
    inputs, outputs = {"x": [1, 8], "p_in": [1, 8], "q_in": [1, 8]}, {"y": [1, 8], "state_1": [1, 8], "state_2": [1, 8]}
    path = written(tmp_path / "f.onnx", nodes, inputs, outputs)
    asked(path, "for example --state x= --state p_in=state_1 --state q_in=state_2; IN=OUT")


def test_an_example_gives_every_state_an_output(tmp_path: Path) -> None:
    """u depends on both states, v on q alone: p can only be u."""
    nodes = [
        helper.make_node("Add", ["p", "q"], ["u"]), helper.make_node("Tanh", ["q"], ["v"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]  # fmt: skip
    inputs, outputs = {"x": [1, 3], "p": [1, 4], "q": [1, 4]}, {"u": [1, 4], "v": [1, 4], "y": [1, 2]}
    path = written(tmp_path / "f.onnx", nodes, inputs, outputs, {"w": np.ones((3, 2), np.float32)})
    asked(path, "for example --state p=u --state q=v; IN=OUT")


def test_no_example_where_none_would_do(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["p", "q"], ["u"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs, outputs = {"x": [1, 3], "p": [1, 4], "q": [1, 4]}, {"u": [1, 4], "y": [1, 2]}
    path = written(tmp_path / "f.onnx", nodes, inputs, outputs, {"w": np.ones((3, 2), np.float32)})
    asked(path, "say --state of each; IN=OUT")


def test_a_range_that_nothing_heeds(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    asked(path, r"--range x=-1,1: input x is of floats, .* a range is of", Request(ranges={"x": (-1.0, 1.0)}))
    asked(path, r"--range meen=0,1: there is no input or state meen .*'mean'", Request(ranges={"meen": (0.0, 1.0)}))
    found = adopt(path, tmp_path / "m.onnx", Request(ranges={"mean": (0.0, 2.0)}), steps=8)
    assert found.contract.states[0].range == (0.0, 2.0)


def test_a_layout_against_the_names_of_axes_is_said(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx", shape=["seq", 8])
    result = CliRunner().invoke(cli, ["adopt", str(path), "-o", str(tmp_path / "m.onnx"), "--layout", "x=BF"])
    assert "warning: --layout x=BF: axis 0 is B, and it is called seq" in result.stderr


def test_a_foreign_file_that_gives_no_numbers(tmp_path: Path) -> None:
    """log of a number with a sign, on both sides: equal, and worth nothing."""
    nodes = [helper.make_node("Add", ["s", "x"], ["s_out"]), helper.make_node("Log", ["s_out"], ["y"])]
    path = written(tmp_path / "f.onnx", nodes, {"x": [1, 4], "s": [1, 4]}, {"y": [1, 4], "s_out": [1, 4]})
    refused(
        path, ExportError, r"f\.onnx itself gives NaN in y at step 0, from finite inputs and the start of its states"
    )


def test_a_start_that_is_no_number(tmp_path: Path) -> None:
    start = np.where(np.arange(8) == 3, np.nan, WEIGHTS).astype(np.float32)[None]
    np.save(tmp_path / "start.npy", start)
    request = Request(inits={"mean": tmp_path / "start.npy"})
    with pytest.raises(
        InputError, match=r"--init mean: .* holds nan at \[0, 3\].*save finite numbers, for example numpy"
    ):
        adopt(average(tmp_path / "f.onnx"), tmp_path / "m.onnx", request)
    assert not (tmp_path / "m.onnx").exists()


def test_integers_of_no_known_range(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["length"], ["real"], to=FLOAT),
        helper.make_node("Add", ["s", "real"], ["s_out"]),
        helper.make_node("Mul", ["s_out", "x"], ["y"]),
    ]
    inputs, outputs = {"x": [1, 4], "length": [1], "s": [1, 4]}, {"y": [1, 4], "s_out": [1, 4]}
    path = written(tmp_path / "f.onnx", nodes, inputs, outputs, types={"length": TensorProto.INT64})
    asked(path, r"input length is of integers.*--range length=0,255, or, if .* same in every step .*--set length=VALUE")
    assert states(adopt(path, tmp_path / "m.onnx", Request(sets={"length": "1"}), steps=8)) == {"s": "sure"}


def test_a_chunk_that_the_file_does_not_take(tmp_path: Path) -> None:
    asked(average(tmp_path / "f.onnx"), r"--chunk 4: a step of .*f\.onnx takes 1, and no dynamic", Request(chunk=4))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing\.onnx does not exist; give the ONNX file that is to be adopted"):
        adopt(tmp_path / "missing.onnx", tmp_path / "m.onnx")


def test_one_state_is_one_state(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["adopt", str(average(tmp_path / "f.onnx")), "-o", str(tmp_path / "m.onnx")])
    assert "bytes, 1 state);" in result.stderr.replace("\n", " ")


def test_what_a_step_is_stands_in_the_table(tmp_path: Path) -> None:
    np.save(tmp_path / "start.npy", WEIGHTS[None])
    request = Request(inits={"mean": tmp_path / "start.npy"}, seconds=0.01)
    found = adopt(average(tmp_path / "f.onnx"), tmp_path / "m.onnx", request, steps=8)
    rows = {d.what: (d.value, d.reason) for d in found.decisions}
    assert rows["step"] == ("1 frame, 10 ms", "--seconds")
    assert rows["start of mean"] == (str(tmp_path / "start.npy"), "--init")


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_state_that_changes_its_shape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["past_key", "x"], ["present_key"], axis=1),
        helper.make_node("Tanh", ["x"], ["y"]),
    ]
    shapes = {"x": [1, 1, 4], "past_key": [1, 7, 4]}, {"y": [1, 1, 4], "present_key": [1, 8, 4]}
    path = written(tmp_path / "f.onnx", nodes, *shapes)
    refused(path, UsageError, r"past_key -> present_key: .*\[1, 7, 4\].*\[1, 8, 4\]; export the model with a cache of")
    said = Request(states={"past_key": "present_key"})
    refused(path, UsageError, r"--state past_key=present_key: a state keeps dtype and shape", said)


def test_a_dynamic_axis_that_nobody_knows(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx", shape=["batch", "width"])
    refused(path, UsageError, r"input x \[batch, width\]: how long is axis 1 \(width\)\?.*--set width=N")
    refused(path, UsageError, r"--set widht=3: there is no dynamic axis .*did you mean 'width'",
            Request(sets={"width": "4", "widht": "3"}))  # fmt: skip
    refused(path, UsageError, "--set width=0: a size from 1", Request(sets={"width": "0"}))
    found = adopt(path, tmp_path / "m.onnx", Request(sets={"width": "4", "batch": "2"}), steps=16)
    assert found.contract.inputs[0].shape == (2, 1, 4)


def test_operators_of_nobodys_standard(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    model = onnx.load(path)
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.acme", "Magic"
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    onnx.save(model, path)
    refused(path, ModelFileError, r"operator com\.acme::Magic .* is not standard ONNX")


@pytest.mark.parametrize("where", ["initializer", "attribute", "nested"])
def test_external_data_outside_the_folder(where: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4))
    folder = tmp_path / "model"
    folder.mkdir()
    path = average(folder / "f.onnx")
    model = onnx.load(path)
    tensor = onnx.TensorProto(name="half", data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["half"], value=tensor)
    del model.graph.initializer[:]
    if where == "initializer":
        model.graph.initializer.append(tensor)
    elif where == "attribute":
        model.graph.node.insert(0, constant)
    else:
        body = helper.make_graph([], "body", [], [helper.make_tensor_value_info("half_of", FLOAT, [])])
        tensor.name = "half_of"
        body.initializer.append(tensor)
        flag = onnx.numpy_helper.from_array(np.array(True), "flag")
        model.graph.initializer.append(flag)
        model.graph.node.insert(0, helper.make_node("If", ["flag"], ["half"], then_branch=body, else_branch=body))
    path.write_bytes(model.SerializeToString())
    refused(path, ModelFileError, r"lies in '../secret', outside the model's folder; this is refused")


def test_pickles(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.pt")
    refused(tmp_path / "m.pt", ModelFileError, "is a Python pickle, which can run any program")
    (tmp_path / "n.pkl").write_bytes(b"\x80\x04K\x01.")
    refused(tmp_path / "n.pkl", ModelFileError, "is a Python pickle")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("m.onnx", b"")
    refused(tmp_path / "a.zip", ModelFileError, "is an archive; unpack it")


def test_a_condition_on_the_data(tmp_path: Path) -> None:
    branch = []
    for kind in ("Tanh", "Relu"):
        result = helper.make_tensor_value_info(kind, FLOAT, None)
        branch.append(helper.make_graph([helper.make_node(kind, ["x"], [kind])], kind, [], [result]))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], name="choice", then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("Add", ["s", "x"], ["s_out"]),
    ]
    path = written(tmp_path / "f.onnx", nodes, {"x": [1, 4], "s": [1, 4]}, {"y": [1, 4], "s_out": [1, 4]},
                   {"zero": np.array(0, np.float32)})  # fmt: skip
    refused(path, ExportError, r"If \(choice\): its condition depends on the data of a step.*--set INPUT=VALUE")


def test_no_state_and_a_contract_already(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", [helper.make_node("Tanh", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]})
    refused(path, UsageError, "no state was found among the inputs x and outputs y; name it by --state")
    adopt(average(tmp_path / "g.onnx"), tmp_path / "m.onnx", steps=8)
    refused(tmp_path / "m.onnx", UsageError, "has a contract already")


def test_layouts_and_frames_that_do_not_fit(tmp_path: Path) -> None:
    path = average(tmp_path / "f.onnx")
    refused(path, UsageError, "--layout x=BX: a letter for each axis was wanted", Request(layouts={"x": "BX"}))
    refused(path, UsageError, "--layout z=BF: no input or output z", Request(layouts={"z": "BF"}))
    refused(path, UsageError, r"--layout x=BTF: 2 letters were wanted, for \[1, 8\]", Request(layouts={"x": "BTF"}))
    refused(path, UsageError, "y has 1 frame in 1 stream where x has 8", Request(layouts={"x": "BT", "y": "BF"}))
    refused(path, UsageError, "--drop z: there is no such output", Request(drops=("z",)))


def test_the_message_of_a_file_without_contract_names_adopt(tmp_path: Path) -> None:
    with pytest.raises(EdgememError, match="`edgemem adopt` for an ONNX file from elsewhere"):
        edgemem.load(average(tmp_path / "f.onnx"))
