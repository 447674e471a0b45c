"""Nodes that lack inputs, outputs or attributes, or have too many: refused in words, nothing is written."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgemem.errors import EdgememError, ModelFileError
from edgemem.export.adopt import Request, adopt

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
STEPS = 2
STATIC, SEQUENCE = Request(chunk=2), Request(chunk=2, streaming=True)


def info(name: str, shape: list[Any], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    constants: dict[str, np.ndarray],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "foreign", [info(*item) for item in inputs.items()], [info(*item) for item in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) / 4


def recurrent(kind: str, gates: int, cell: bool) -> onnx.ModelProto:
    """A recurrent layer, its state in and out, and operators around it."""
    states = ["h", "c"] if cell else ["h"]
    nodes = [
        helper.make_node("Transpose", ["x"], ["rows"], perm=[1, 0, 2]),
        helper.make_node(kind, ["rows", "W", "R", "B", "", *states], ["all", *(f"{s}n" for s in states)], hidden_size=4,
                         direction="forward"),
        helper.make_node("Squeeze", ["all", "one"], ["each"]),
        helper.make_node("Transpose", ["each"], ["y"], perm=[1, 0, 2]),
    ]  # fmt: skip
    constants = {"W": weights(1, 4 * gates, 3), "R": weights(1, 4 * gates, 4), "B": weights(1, 8 * gates),
                 "one": np.array([1])}  # fmt: skip
    kept = {name: [1, "batch", 4] for name in states}
    return model(nodes, {"x": ["batch", "time", 3]} | kept, {"y": ["batch", "time", 4]} |
                 {f"{name}n": shape for name, shape in kept.items()}, constants)  # fmt: skip


def loop() -> onnx.ModelProto:
    """A state that a loop of two turns and a Scan over the features change."""
    turn = helper.make_graph(
        [helper.make_node("Add", ["v", "x"], ["v_after"]), helper.make_node("Identity", ["go"], ["go_on"])], "turn",
        [info("i", [], INT64), info("go", [], BOOL), info("v", [1, 4])],
        [info("go_on", [], BOOL), info("v_after", [1, 4])],
    )  # fmt: skip
    each = helper.make_graph(
        [helper.make_node("Add", ["sum", "part"], ["sum_after"]), helper.make_node("Tanh", ["sum_after"], ["shown"])],
        "each", [info("sum", [1]), info("part", [1])], [info("sum_after", [1]), info("shown", [1])],
    )  # fmt: skip
    nodes = [
        helper.make_node("Loop", ["count", "", "s"], ["s_out"], body=turn),
        helper.make_node("Scan", ["zero", "s_out"], ["total", "y"], body=each, num_scan_inputs=1, scan_input_axes=[1],
                         scan_output_axes=[1]),
    ]  # fmt: skip
    constants = {"count": np.array(2), "zero": np.zeros(1, np.float32)}
    return model(nodes, {"x": [1, 4], "s": [1, 4]}, {"y": [1, 4], "s_out": [1, 4]}, constants)


def sequence() -> onnx.ModelProto:
    """A model of whole sequences: a causal convolution, a pool, a recurrent layer."""
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["wide"]),
        helper.make_node("Conv", ["wide", "K"], ["seen"], dilations=[1], kernel_shape=[3]),
        helper.make_node("AveragePool", ["seen"], ["mean"], kernel_shape=[2], pads=[1, 0], count_include_pad=1),
        helper.make_node("Transpose", ["mean"], ["rows"], perm=[2, 0, 1]),
        helper.make_node("GRU", ["rows", "W", "R"], ["all", ""], hidden_size=4),
        helper.make_node("Squeeze", ["all", "one"], ["each"]),
        helper.make_node("LayerNormalization", ["each", "scale"], ["y"], axis=-1),
    ]
    constants = {"pads": np.array([0, 0, 2, 0, 0, 0]), "K": weights(5, 3, 3), "W": weights(1, 12, 5),
                 "R": weights(1, 12, 4), "one": np.array([1]), "scale": weights(4)}  # fmt: skip
    return model(nodes, {"x": [1, 3, "time"]}, {"y": ["time", 1, 4]}, constants)


MODELS = {
    "lstm": (recurrent("LSTM", 4, cell=True), STATIC),
    "gru": (recurrent("GRU", 3, cell=False), STATIC),
    "rnn": (recurrent("RNN", 1, cell=False), STATIC),
    "loop": (loop(), Request()),
    "sequence": (sequence(), SEQUENCE),
}


def tried(proto: onnx.ModelProto, request: Request) -> EdgememError | None:
    """What adoption says of a model; nothing is left behind where it refuses."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "f.onnx", Path(folder) / "m.onnx"
        path.write_bytes(proto.SerializeToString())
        try:
            adopt(path, out, request, steps=STEPS)
        except EdgememError as error:
            assert [file.name for file in Path(folder).iterdir()] == ["f.onnx"]
            return error
        assert out.is_file()
        return None


@pytest.mark.parametrize("name", MODELS)
def test_whole_models_are_adopted(name: str) -> None:
    """What is broken below is whole here."""
    assert tried(*MODELS[name]) is None


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """All nodes, those of bodies too."""
    bodies = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    return [*graph.node, *(node for body in bodies for node in nodes_of(body))]


def broken(data: st.DataObject, proto: onnx.ModelProto) -> None:
    """One thing of one node is gone, doubled, left open, or another number."""
    node = data.draw(st.sampled_from(nodes_of(proto.graph)))
    how = data.draw(st.sampled_from(["drop", "blank", "double", "attribute", "number", "kind"]))
    if how in ("drop", "blank", "double"):
        ports = data.draw(st.sampled_from([node.input, node.output]))
        if not len(ports):
            return
        index = data.draw(st.integers(0, len(ports) - 1))
        if how == "drop":
            del ports[index]
        elif how == "blank":
            ports[index] = ""
        else:
            ports.append(ports[index] if ports is node.input else f"{ports[index]}.twice")
    elif how == "kind":
        node.op_type = data.draw(st.sampled_from(["LSTM", "GRU", "Scan", "Loop", "Conv", "MatMul", "Gather", "Split"]))
    elif len(node.attribute):
        index = data.draw(st.integers(0, len(node.attribute) - 1))
        attribute = node.attribute[index]
        if how == "attribute":
            del node.attribute[index]
        elif attribute.ints:
            attribute.ints[data.draw(st.integers(0, len(attribute.ints) - 1))] = data.draw(st.integers(-3, 9))
        elif attribute.type == onnx.AttributeProto.INT:
            attribute.i = data.draw(st.integers(-3, 9))
        elif attribute.type == onnx.AttributeProto.STRING:
            attribute.s = data.draw(st.sampled_from([b"reverse", b"bidirectional", b"sideways", b""]))


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(MODELS)), data=st.data())
def test_broken_nodes_are_refused_in_words(name: str, data: st.DataObject) -> None:
    """Whatever is broken: an error of edgemem's own that says which file or node, or a model that still is one."""
    proto, request = copy.deepcopy(MODELS[name][0]), MODELS[name][1]
    broken(data, proto)
    error = tried(proto, request)
    assert error is None or (len(str(error)) > 20 and "Traceback" not in str(error))


def without(name: str, index: int, ports: str, at: int) -> onnx.ModelProto:
    """A model of which one node lacks one of its last inputs or outputs."""
    proto = copy.deepcopy(MODELS[name][0])
    del getattr(proto.graph.node[index], ports)[at:]
    return proto


@pytest.mark.parametrize(
    ("proto", "match"),
    [
        (without("lstm", 1, "input", 2), r"LSTM \(all\) has 2 inputs, 3 to 8 were wanted; the file is malformed"),
        (without("lstm", 0, "input", 0), r"Transpose \(rows\) has 0 inputs, 1 was wanted"),
        (without("gru", 2, "output", 0), r"Squeeze \(unnamed\) has 0 outputs, 1 was wanted"),
        (without("loop", 1, "attribute", 0), r"Scan \(total\) lacks its attribute (body|num_scan_inputs)"),
    ],
)
def test_counts_are_those_of_the_standard(proto: onnx.ModelProto, match: str) -> None:
    error = tried(proto, STATIC)
    assert isinstance(error, ModelFileError)
    with pytest.raises(ModelFileError, match=match):
        raise error


def test_attributes_are_those_of_the_standard() -> None:
    proto = copy.deepcopy(MODELS["lstm"][0])
    proto.graph.node[1].attribute.append(helper.make_attribute("colour", 3))
    assert "LSTM (all) has an attribute colour, which the operator has not" in str(tried(proto, STATIC))
    del proto.graph.node[1].attribute[:]
    proto.graph.node[1].attribute.append(helper.make_attribute("hidden_size", 4.0))
    assert "has an attribute hidden_size of type float, int was wanted" in str(tried(proto, STATIC))
    proto.graph.node[1].op_type = "Memory"
    assert "Memory (all) is no operator of opset 17" in str(tried(proto, STATIC))


def test_products_in_few_bits_have_their_inputs() -> None:
    node = helper.make_node("MatMulNBits", ["x", "q"], ["y"], domain="com.microsoft", K=4, N=4)
    add = helper.make_node("Add", ["x", "s"], ["s_out"])
    proto = model([node, add], {"x": [1, 4], "s": [1, 4]}, {"y": [1, 4], "s_out": [1, 4]},
                  {"q": np.zeros((4, 1, 8), np.uint8)})  # fmt: skip
    assert "MatMulNBits (y) has 2 inputs, 3 to 6 were wanted" in str(tried(proto, Request()))
