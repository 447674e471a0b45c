"""Models of whole sequences as steps: what they stream equals what the foreign file gives for the whole sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

import edgemem
from edgemem.errors import ExportError, InputError, UsageError
from edgemem.export.adopt import Adopted, Request, adopt
from edgemem.export.adopt.flow import Flow, Window
from edgemem.foreign import ForeignProgram, over_whole_sequence
from edgemem.modelfile import open_model, start_values
from edgemem.verify import verify

FLOAT = TensorProto.FLOAT
STEPS = 24


def exported(module: nn.Module, shape: tuple[int, ...], time: int, path: Path) -> Path:
    """A module of whole sequences as torch writes it, its time axis dynamic."""
    torch.onnx.export(module.eval(), (torch.randn(shape),), path, dynamo=False, input_names=["x"], output_names=["y"],
                      dynamic_axes={"x": {time: "time"}, "y": {1: "frames"}}, opset_version=17)  # fmt: skip
    return path


def streaming(path: Path, chunk: int = 1, **options: Any) -> Adopted:
    """Adopted for steps of `chunk` frames, and compared with the whole sequence by `adopt` itself."""
    return adopt(path, path.with_suffix(".step.onnx"), Request(streaming=True, chunk=chunk, **options), steps=STEPS)


class Causal(nn.Module):
    """A temporal convolutional network as they are written: padded on both sides, the end cut off, a residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Conv1d(4, 6, 3, padding=2), nn.Conv1d(6, 6, 3, dilation=2, padding=4)
        self.last = nn.Conv1d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x)[:, :, :-2])
        return self.last(torch.relu(self.second(y)[:, :, :-4]) + y)


class Centred(nn.Module):
    """Windows around every row: convolutions and a mean with look-ahead, a residual that has to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 6, 5, padding=2)
        self.mean, self.norm, self.last = nn.AvgPool1d(3, 1, 1), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(self.mean(self.second(y))) + y
        return self.last(self.norm(y.transpose(1, 2)))


class Sound(nn.Module):
    """Raw samples through strided convolutions into a recurrent layer: one row for eight samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Conv1d(1, 6, 10, stride=4), nn.Conv1d(6, 6, 3, stride=2)
        self.layer, self.last = nn.GRU(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.tanh(self.first(x[:, None, :])))
        return self.last(self.layer(y.transpose(1, 2))[0])


class Layers(nn.Module):
    """Two LSTM layers, time first, that start from zeros inside of the model."""

    def __init__(self, bidirectional: bool = False) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layer = nn.LSTM(4, 5, 2, bidirectional=bidirectional)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("chunk", [1, 4])
def test_a_causal_network_has_no_latency(chunk: int, tmp_path: Path) -> None:
    contract = streaming(exported(Causal(), (1, 4, 20), 2, tmp_path / "f.onnx"), chunk).contract
    assert contract.latency.look_ahead == contract.latency.warm_up == 0
    assert [(s.shape, s.role) for s in contract.states] == [((1, 1, 4, 2), "tail"), ((1, 1, 6, 4), "tail")]
    assert contract.inputs[0].shape == (1, chunk, 4)


@pytest.mark.parametrize("chunk", [1, 3])
def test_windows_around_a_row_wait_for_what_comes_later(chunk: int, tmp_path: Path) -> None:
    path = exported(Centred(), (1, 4, 20), 2, tmp_path / "f.onnx")
    contract = streaming(path, chunk).contract
    assert contract.latency.look_ahead == 1 + 2 + 1
    assert contract.valid_input is not None
    report = verify(path.with_suffix(".step.onnx"), STEPS, reference=path)
    assert report.ok and {s.name: s.reference for s in report.stages}["ort"] == "foreign"


def test_strided_windows_take_several_rows_as_one_frame(tmp_path: Path) -> None:
    path = exported(Sound(), (1, 400), 1, tmp_path / "f.onnx")
    contract = streaming(path, 2, sound=8000).contract
    assert contract.inputs[0].shape == (1, 2, 8) and contract.seconds_per_frame == 8 / 8000
    assert contract.latency.look_ahead == 0 and contract.latency.warm_up == 2  # windows reach 18 samples back
    assert edgemem.load(path.with_suffix(".step.onnx")).stream().sample_rate == 8000


def test_what_a_frame_of_several_rows_is_stands_in_the_table(tmp_path: Path) -> None:
    path = exported(nn.Conv1d(4, 3, 3, stride=2, padding=1), (1, 4, 20), 2, tmp_path / "f.onnx")
    found = streaming(path)
    said = {d.what: (d.value, d.reason) for d in found.decisions}
    assert found.contract.inputs[0].shape == (1, 1, 2, 4)
    assert said["step"][0] == "1 frame of 2 rows"
    assert said["input x"][0] == "axes BFT [1, 4, 2]"
    assert said["output y"] == ("axes BFT [1, 3, 1]", "time, followed through the graph")
    stream = edgemem.load(path.with_suffix(".step.onnx")).stream()
    with pytest.raises(InputError, match=r"\[time, 2, 4\] was wanted.*2 rows are one frame: x.reshape\(-1, 2, 4\)"):
        stream.push(np.zeros((40, 4), np.float32))
    assert len(stream.push(np.zeros((40, 4), np.float32).reshape(-1, 2, 4)).values) > 0


def test_recurrent_layers_become_states(tmp_path: Path) -> None:
    path = exported(Layers(), (20, 1, 4), 0, tmp_path / "f.onnx")
    contract = streaming(path, layouts={"x": "TBF"}).contract
    assert [s.role for s in contract.states] == ["recurrent"] * 4


def test_compiled_steps_with_latency(tmp_path: Path) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    path = exported(Centred(), (1, 4, 20), 2, tmp_path / "f.onnx")
    streaming(path, 3)
    program = edgemem.load(path.with_suffix(".step.onnx"), runtime="aot")
    report = verify(path.with_suffix(".step.onnx"), STEPS, (), reference=path, programs={"aot": program})
    assert report.ok and any(stage.name == "aot" for stage in report.stages)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layers=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 3), st.integers(0, 4), st.integers(0, 4)),
        min_size=1,
        max_size=3,
    ),
    chunk=st.integers(1, 3),
    explicit=st.booleans(),
)
def test_any_chain_of_windows(layers: list[tuple[int, ...]], chunk: int, explicit: bool, tmp_path: Path) -> None:
    """Kernels, dilations, strides and padding of any kind, as attributes or as a Pad of its own."""
    rng, nodes, constants, value = np.random.default_rng(0), [], {}, "x"
    for index, (kernel, dilation, stride, left, right) in enumerate(layers):
        constants[f"w{index}"] = rng.normal(size=(2, 2, kernel)).astype(np.float32) / 2
        constants[f"b{index}"] = rng.normal(size=2).astype(np.float32)  # rows of padding differ from rows of zeros
        pads = [0, 0] if explicit else [left, right]
        if explicit:
            constants[f"p{index}"] = np.array([0, 0, left, 0, 0, right])
            nodes.append(helper.make_node("Pad", [value, f"p{index}"], [f"padded{index}"]))
            value = f"padded{index}"
        nodes.append(helper.make_node("Conv", [value, f"w{index}", f"b{index}"], [f"c{index}"], kernel_shape=[kernel],
                                      dilations=[dilation], strides=[stride], pads=pads))  # fmt: skip
        value = f"c{index}"
    nodes.append(helper.make_node("Tanh", [value], ["y"]))
    graph = helper.make_graph(
        nodes, "f", [helper.make_tensor_value_info("x", FLOAT, [1, 2, "time"])],
        [helper.make_tensor_value_info("y", FLOAT, [1, 2, "frames"])],
        [onnx.numpy_helper.from_array(a, n) for n, a in constants.items()],
    )  # fmt: skip
    path = tmp_path / "f.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    streaming(path, chunk)


def test_a_wrong_offset_shows(tmp_path: Path) -> None:
    """The comparison with the whole sequence can fail: a contract that says another latency does."""
    path = exported(Centred(), (1, 4, 20), 2, tmp_path / "f.onnx")
    streaming(path, 1)
    model = open_model(path.with_suffix(".step.onnx"))
    program = edgemem.load(model.path)
    latency = model.contract.latency.model_copy(update={"look_ahead": 3})
    program.contract = model.contract.model_copy(update={"latency": latency})
    reference = ForeignProgram(path, model.contract, start_values(model))
    assert not over_whole_sequence(reference, program, STEPS).holds


def test_windows_by_hand() -> None:
    causal, centred = Window(4, 1, 4, 0), Window(4, 1, 2, 2)
    assert (causal.tail(0), causal.after(Flow(2))) == (4, (0, 0))
    assert (centred.tail(0), centred.after(Flow(2))) == (4, (2, 0))
    assert Window(2, 1, 0, 0).after(Flow(2)) == (2, 2)  # two rows fewer, each two rows late


# --- what cannot stream ------------------------------------------------------------------------------------------


def one_node(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None) -> Path:
    graph = helper.make_graph(
        nodes, "f", [helper.make_tensor_value_info("x", FLOAT, ["batch", "time", 4])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=f"the_{kind}", **attributes)


ONE = np.ones(4, np.float32)
REFUSED: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]] = {
    "mean": ([node("ReduceMean", "x", "m", axes=[1]), node("Add", "x m", "y")], {}, "goes over all of the sequence"),
    "attention": ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "y")], {},
                  "multiplies along time"),
    "softmax": ([node("Softmax", "x", "y", axis=1)], {}, "goes over all of the sequence"),
    "norm": ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("InstanceNormalization", "t one one", "y")],
             {"one": ONE}, "is not known to work row by row"),
    "reflect": ([node("Pad", "x p", "q", mode="reflect"), node("Tanh", "q", "y")],
                {"p": np.array([0, 1, 0, 0, 1, 0])}, "pads the sequence with reflect rows"),
    "order": ([node("Gather", "x i", "y", axis=1)], {"i": np.array([0])}, "takes rows of the sequence by number"),
    "end": ([node("Slice", "x a b c", "y")], {"a": np.array([0]), "b": np.array([5]), "c": np.array([1])},
            "takes rows 0 to 5 by 1 of the whole sequence"),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_cannot_stream_is_named(case: str, tmp_path: Path) -> None:
    nodes, constants, match = REFUSED[case]
    with pytest.raises(ExportError, match=rf"the_\w+\) cannot stream: it {match}") as caught:
        streaming(one_node(tmp_path / "f.onnx", nodes, constants))
    assert [file.name for file in tmp_path.iterdir()] == ["f.onnx"]
    whole = case in ("mean", "attention", "softmax")
    assert ("no state would help" in str(caught.value)) == whole == ("with its state" not in str(caught.value))


class Carried(nn.Module):
    """Its states are inputs and outputs already."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 6)

    def forward(self, x: torch.Tensor, h0: torch.Tensor, c0: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, (hn, cn) = self.layer(x, (h0, c0))
        return y, hn, cn


def test_a_file_with_states_of_its_own_has_nothing_to_carry(tmp_path: Path) -> None:
    path, start = tmp_path / "f.onnx", torch.zeros(1, 1, 6)
    torch.onnx.export(Carried(), (torch.zeros(5, 1, 4), start, start), path, dynamo=False, opset_version=17,
                      input_names=["x", "h0", "c0"], output_names=["y", "hn", "cn"],
                      dynamic_axes={"x": {0: "time"}, "y": {0: "time"}})  # fmt: skip
    with pytest.raises(UsageError, match=r"has states already \(c0, h0\), .*; leave --streaming out"):
        streaming(path)


def test_a_layer_along_another_axis_names_both(tmp_path: Path) -> None:
    path = exported(Layers(), (20, 1, 4), 0, tmp_path / "f.onnx")
    with pytest.raises(ExportError, match=r"it walks along axis 0 of .*, and time is axis 1; say which .*--layout"):
        streaming(path, layouts={"x": "BTF"})


def test_two_directions_and_models_without_time(tmp_path: Path) -> None:
    path = exported(Layers(bidirectional=True), (20, 1, 4), 0, tmp_path / "f.onnx")
    with pytest.raises(ExportError, match=r"LSTM .* cannot stream: it walks bidirectional, so it sees the future"):
        streaming(path, layouts={"x": "TBF"})
    with pytest.raises(UsageError, match="no input has a time axis; say which one it is by --layout INPUT=AXES"):
        streaming(path, layouts={"x": "FBF"}, sets={"time": "5"})
