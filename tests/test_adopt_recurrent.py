"""LSTM, GRU and RNN written out in primitive operators, on random cases.

Against onnxruntime's own operators, and against the standard in plain NumPy, which has what onnxruntime has not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgemem.errors import ExportError
from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite import REWRITES
from edgemem.onnxsession import session
from tests.oracles.onnx_recurrent import FUNCTIONS, Function, layer

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
COUNTS = {"LSTM": 3, "GRU": 2, "RNN": 1}  # of activations
# With the alpha and beta of each: None is one that the activation does not take.
ACTIVATIONS = {
    "Relu": (None, None), "Tanh": (None, None), "Sigmoid": (None, None), "Softsign": (None, None),
    "Softplus": (None, None), "Affine": (0.7, 0.1), "LeakyRelu": (0.2, None), "ThresholdedRelu": (0.3, None),
    "ScaledTanh": (0.8, 1.2), "HardSigmoid": (0.25, 0.4), "Elu": (0.9, None),
}  # fmt: skip
CLOSE = 1e-5  # float32, a handful of frames
LARGE = 1e4  # beyond, float32 and float64 go different ways where functions have no bound


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(GATES)))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    count = COUNTS[kind] * (2 if direction == "bidirectional" else 1)
    return {
        "kind": kind,
        "direction": direction,
        "time": draw(st.integers(1, 4)),
        "batch": draw(st.integers(1, 3)),
        "inputs": draw(st.integers(1, 3)),
        "hidden": draw(st.integers(1, 4)),
        "activations": draw(st.none() | st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=count, max_size=count)),
        "clip": draw(st.none() | st.just(0.5)),
        "bias": draw(st.booleans()),
        "initial": draw(st.booleans()),
        "peepholes": draw(st.booleans()),
        "lengths": draw(st.booleans()),
        "linear_before_reset": draw(st.booleans()),
        "seed": draw(st.integers(0, 1000)),
    }


def graph(case: dict[str, Any]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of one recurrent node, weights constant, and inputs for it."""
    rng, kind = np.random.default_rng(case["seed"]), case["kind"]
    directions = 2 if case["direction"] == "bidirectional" else 1
    gates, hidden, batch, time = GATES[kind], case["hidden"], case["batch"], case["time"]
    weights = {
        "W": rng.normal(size=(directions, gates * hidden, case["inputs"])),
        "R": rng.normal(size=(directions, gates * hidden, hidden)),
        "B": rng.normal(size=(directions, 2 * gates * hidden)),
        "P": rng.normal(size=(directions, 3 * hidden)),
    }
    feeds = {"X": rng.normal(size=(time, batch, case["inputs"])).astype(np.float32)}
    names = ["X", "W", "R", "B" if case["bias"] else "", "", "", "", ""]
    if case["lengths"]:
        feeds["lengths"], names[4] = rng.integers(1, time + 1, batch).astype(np.int32), "lengths"
    for place, name in ((5, "h0"), (6, "c0")):
        if case["initial"] and (place == 5 or kind == "LSTM"):
            feeds[name], names[place] = rng.normal(size=(directions, batch, hidden)).astype(np.float32), name
    if kind == "LSTM" and case["peepholes"]:
        names[7] = "P"
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": case["direction"]}
    if case["clip"] is not None:
        attributes["clip"] = case["clip"]
    if kind == "GRU":
        attributes["linear_before_reset"] = int(case["linear_before_reset"])
    if case["activations"] is not None:
        attributes["activations"] = case["activations"]
        for place, key in enumerate(("activation_alpha", "activation_beta")):
            numbers = [v for name in case["activations"] if (v := ACTIVATIONS[name][place]) is not None]
            if numbers:
                attributes[key] = numbers
    outputs = ["Y", "Y_h"] + (["Y_c"] if kind == "LSTM" else [])
    while not names[-1]:
        names.pop()
    node = helper.make_node(kind, names, outputs, **attributes)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    made = helper.make_graph(
        [node], "one", inputs, [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [onnx.numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items() if n in names],
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), feeds


def rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    names = [value.name for value in model.graph.outputs]
    Freezer(model, REWRITES).run()
    for value, name in zip(model.graph.outputs, names, strict=True):
        value.name = name
    return ir.to_proto(model)


@settings(max_examples=60)
@given(cases())
def test_written_out_as_onnxruntime_computes(case: dict[str, Any]) -> None:
    proto, feeds = graph(case)
    found = rewritten(proto)
    assert not {node.op_type for node in found.graph.node} & set(GATES)
    names = [value.name for value in proto.graph.output]
    wanted = session(proto.SerializeToString()).run(names, feeds)
    came = session(found.SerializeToString()).run(names, feeds)
    assume(all(np.isfinite(w).all() for w in wanted))  # onnxruntime's Softplus overflows where its result does not
    for name, w, c in zip(names, wanted, came, strict=True):
        np.testing.assert_allclose(c, w, rtol=CLOSE, atol=CLOSE, err_msg=name)


def functions(case: dict[str, Any]) -> list[list[Function]]:
    """The activations of each direction, with what the node says of them, or the standard's own."""
    defaults = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}[case["kind"]]
    names = case["activations"] or defaults * (2 if case["direction"] == "bidirectional" else 1)
    found = [FUNCTIONS[name](*(v for v in ACTIVATIONS[name] if v is not None)) for name in names]
    return [found[at : at + len(defaults)] for at in range(0, len(found), len(defaults))]


def as_the_standard(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], case: dict[str, Any]
) -> dict[str, np.ndarray]:
    """What the case gives by the oracle, in layout 0."""
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    back = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[case["direction"]]
    zeros = np.zeros((len(back), case["batch"], case["hidden"]))
    names = {"h": "h0", "c": "c0"} if case["kind"] == "LSTM" else {"h": "h0"}
    return layer(
        case["kind"], feeds["X"], weights, {name: feeds.get(key, zeros) for name, key in names.items()},
        functions(case), back, feeds.get("lengths", np.full(case["batch"], case["time"])), case["clip"],
        case["linear_before_reset"], case["input_forget"],
    )  # fmt: skip


@settings(max_examples=60)
@given(cases(), st.booleans(), st.booleans(), st.data())
def test_written_out_as_the_standard_has_it(
    case: dict[str, Any], batch_first: bool, input_forget: bool, data: Any
) -> None:
    """Both layouts, coupled gates, streams of no frame; and frames behind the last of a stream are NaN."""
    case = {**case, "input_forget": input_forget and case["kind"] == "LSTM"}
    proto, feeds = graph(case)
    if case["input_forget"]:
        proto.graph.node[0].attribute.append(helper.make_attribute("input_forget", 1))
    if case["lengths"]:
        ends = [data.draw(st.integers(0, case["time"])) for _ in range(case["batch"])]
        feeds["lengths"] = np.array(ends, np.int32)
        for stream, end in enumerate(ends):
            feeds["X"][end:, stream] = np.nan
    with np.errstate(over="ignore"):
        wanted = as_the_standard(proto, feeds, case)
    assume(all(np.abs(w).max(initial=0) < LARGE for w in wanted.values()))  # functions without bound, of themselves
    if batch_first:
        proto.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
        feeds = {n: a.swapaxes(0, 1) if n != "lengths" else a for n, a in feeds.items()}
        for value in proto.graph.input:
            kind = helper.np_dtype_to_tensor_dtype(feeds[value.name].dtype)
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, feeds[value.name].shape))
        wanted = {n: w.transpose(2, 0, 1, 3) if n == "Y" else w.swapaxes(0, 1) for n, w in wanted.items()}
    found = rewritten(proto)
    assert not {node.op_type for node in found.graph.node} & set(GATES)
    came = dict(zip(wanted, session(found.SerializeToString()).run(list(wanted), feeds), strict=True))
    for name, w in wanted.items():
        np.testing.assert_allclose(came[name], w, rtol=CLOSE, atol=CLOSE * max(1, np.abs(w).max()), err_msg=name)


@pytest.mark.parametrize("kind", sorted(GATES))
def test_batch_first(kind: str) -> None:
    """Layout 1 is layout 0 with the axes moved; onnxruntime has no kernel for it."""
    case = {
        "kind": kind, "direction": "bidirectional", "time": 3, "batch": 2, "inputs": 2, "hidden": 3,
        "activations": None,
        "clip": None, "bias": True, "initial": True, "peepholes": False, "lengths": False, "linear_before_reset": True,
        "seed": 5,
    }  # fmt: skip
    proto, feeds = graph(case)
    wanted = session(proto.SerializeToString()).run(None, feeds)
    proto.graph.node[0].attribute.append(helper.make_attribute("layout", 1))
    moved = {name: array.swapaxes(0, 1) for name, array in feeds.items()}
    for value in proto.graph.input:
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, moved[value.name].shape))
    came = session(rewritten(proto).SerializeToString()).run(None, moved)
    np.testing.assert_allclose(came[0], wanted[0].transpose(2, 0, 1, 3), rtol=CLOSE, atol=CLOSE)
    for w, c in zip(wanted[1:], came[1:], strict=True):
        np.testing.assert_allclose(c, w.swapaxes(0, 1), rtol=CLOSE, atol=CLOSE)


def test_too_many_frames_are_refused() -> None:
    case = {
        "kind": "RNN", "direction": "forward", "time": 300, "batch": 1, "inputs": 1, "hidden": 1, "activations": None,
        "clip": None, "bias": True, "initial": True, "peepholes": False, "lengths": False, "linear_before_reset": True,
        "seed": 5,
    }  # fmt: skip
    with pytest.raises(ExportError, match=r"takes 300 frames a step.*256 at most.*--chunk"):
        rewritten(graph(case)[0])
