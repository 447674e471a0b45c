"""Loops, attention and products in few bits written out in primitive operators, against onnxruntime on the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgemem.errors import ExportError
from edgemem.export.adopt import adopt
from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite import REWRITES
from edgemem.onnxsession import session
from edgemem.verify import verify

FLOAT = TensorProto.FLOAT
Feeds = dict[str, np.ndarray]


def model(nodes: list[onnx.NodeProto], feeds: Feeds, outputs: list[str], constants: Feeds | None = None,
          opset: int = 20) -> onnx.ModelProto:  # fmt: skip
    """A model of these nodes, its inputs as in `feeds`."""
    kind = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        nodes, "one", [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def check(proto: onnx.ModelProto, feeds: Feeds, gone: str, close: float = 1e-5) -> onnx.ModelProto:
    """The rewritten model gives what the original does, without the operator; the rewritten model."""
    read = ir.from_proto(proto)
    names = [value.name for value in read.graph.outputs]
    Freezer(read, REWRITES).run()
    ir.passes.common.OutputFixPass()(read)
    for value, name in zip(read.graph.outputs, names, strict=True):
        value.name = name
    ir.passes.common.NameFixPass()(read)
    ir.passes.common.TopologicalSortPass()(read)
    found = ir.to_proto(read)
    assert gone not in {node.op_type for node in found.graph.node}
    assert all(d.HasField("dim_value") for v in found.graph.output for d in v.type.tensor_type.shape.dim)
    wanted = session(proto.SerializeToString()).run(names, feeds)
    came = session(found.SerializeToString()).run(names, feeds)
    for name, w, c in zip(names, wanted, came, strict=True):
        assert w.shape == c.shape and w.dtype == c.dtype, name
        np.testing.assert_allclose(c, w, rtol=close, atol=close, err_msg=name)
    return found


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def test_written_out_steps_compile(tmp_path: Path) -> None:
    """A gated delta layer behind its convolution, a scan, and products in four bits and in integers, in one step."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    rng = np.random.default_rng(17)
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["xt"], perm=[0, 2, 1]),
        node("CausalConvWithState", ["xt", "kernel", "", "past_conv"], ["conv", "present_conv"], activation="silu"),
        node("Transpose", ["conv"], ["u"], perm=[0, 2, 1]),
        *(node("MatMul", ["u", f"w{name}"], [name]) for name in ("q", "k", "v", "b0")),
        node("Sigmoid", ["b0"], ["b"]),
        node("Neg", ["b"], ["g"]),
        node("LinearAttention", ["q", "k", "v", "past_memory", "g", "b"], ["read", "present_memory"], q_num_heads=4,
             kv_num_heads=2, update_rule="gated_delta"),
        node("MatMulNBits", ["read", "B", "scale"], ["z"], domain="com.microsoft", K=32, N=3, bits=4, block_size=32),
        node("QuantizeLinear", ["z", "sa", "za"], ["qz"]),
        node("QLinearMatMul", ["qz", "sa", "za", "Q", "sb", "zb", "sy", "za"], ["qy"]),
        node("DequantizeLinear", ["qy", "sy", "za"], ["wide"]),
        node("Tanh", ["wide"], ["rows"]),
        node("Squeeze", ["rows", "zero"], ["flat"]),
        node("Squeeze", ["past_sum", "zero"], ["start"]),
    ]  # fmt: skip
    scan = cumulative(0, 0)
    scan.input[1], scan.output[0], scan.output[1] = "flat", "sum", "out"
    nodes += [scan, node("Unsqueeze", ["sum", "zero"], ["present_sum"]), node("Unsqueeze", ["out", "zero"], ["y"])]
    constants = {
        "kernel": floats(rng, 6, 1, 4), "wq": floats(rng, 6, 16) / 4, "wk": floats(rng, 6, 8) / 4, "w": floats(rng, 3),
        "wv": floats(rng, 6, 16), "wb0": floats(rng, 6, 2), "B": rng.integers(0, 256, (3, 1, 16)).astype(np.uint8),
        "scale": np.full((3, 1), 0.05, np.float32), "sa": np.array(0.02, np.float32), "za": np.array(3, np.int8),
        "Q": rng.integers(-127, 128, (3, 3)).astype(np.int8), "sb": np.array(0.01, np.float32),
        "zb": np.array(0, np.int8), "sy": np.array(0.03, np.float32), "zero": np.array([0]),
    }  # fmt: skip
    shapes = {"x": (1, 2, 6), "past_conv": (1, 6, 3), "past_memory": (1, 2, 4, 8), "past_sum": (1, 3)}
    feeds = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    outputs = ["y", "present_conv", "present_memory", "present_sum"]
    onnx.save(model(nodes, feeds, outputs, constants, 27), tmp_path / "f.onnx")
    adopt(tmp_path / "f.onnx", tmp_path / "m.onnx", steps=32)
    report = verify(tmp_path / "m.onnx", 32, ("ort", "aot"), reference=tmp_path / "f.onnx")
    assert report.ok, report


@settings(max_examples=25)
@given(st.data())
def test_linear_attention(data: Any) -> None:
    rule = data.draw(st.sampled_from(["linear", "gated", "delta", "gated_delta"]))
    batch, tokens, kv, group, d_k, d_v = (data.draw(st.integers(1, 3)) for _ in range(6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    feeds = {
        "q": floats(rng, batch, tokens, kv * group * d_k),
        "k": floats(rng, batch, tokens, kv * d_k),
        "v": floats(rng, batch, tokens, kv * d_v),
    }
    names = ["q", "k", "v", "", "", ""]
    if data.draw(st.booleans()):
        feeds["s"], names[3] = floats(rng, batch, kv, d_k, d_v), "s"
    if "gated" in rule:
        wide = data.draw(st.booleans())
        feeds["g"], names[4] = -np.abs(floats(rng, batch, tokens, kv * (d_k if wide else 1))), "g"
    if "delta" in rule:
        one = data.draw(st.booleans())
        feeds["b"], names[5] = np.abs(floats(rng, batch, tokens, 1 if one else kv)), "b"
    scale = data.draw(st.sampled_from([0.0, 0.3]))
    node = helper.make_node("LinearAttention", names, ["y", "after"], q_num_heads=kv * group, kv_num_heads=kv,
                            update_rule=rule, scale=scale)  # fmt: skip
    check(model([node], feeds, ["y", "after"], opset=27), feeds, "LinearAttention")


@settings(max_examples=25)
@given(st.data())
def test_convolutions_of_few_rows_become_products(data: Any) -> None:
    batch, inputs, outputs, kernel, dilation, stride = (data.draw(st.integers(1, 3)) for _ in range(6))
    left, right, rows = (data.draw(st.integers(0, most)) for most in (2, 2, 5))
    time = max(1, (kernel - 1) * dilation + 1 + rows * stride - left - right)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    constants = {"w": floats(rng, outputs, inputs, kernel)}
    if data.draw(st.booleans()):
        constants["b"] = floats(rng, outputs)
    node = helper.make_node("Conv", ["x", *constants], ["y"], kernel_shape=[kernel], dilations=[dilation],
                            strides=[stride], pads=[left, right])  # fmt: skip
    feeds = {"x": floats(rng, batch, inputs, time)}
    check(model([node], feeds, ["y"], constants), feeds, "Conv")


@pytest.mark.parametrize(("group", "time", "kernel"), [(2, 4, (3,)), (1, 40, (3,)), (1, 4, (2, 2))])
def test_other_convolutions_stay(group: int, time: int, kernel: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    feeds = {"x": floats(rng, 1, 2, *([time] * len(kernel)))}
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=group)
    found = check(model([node], feeds, ["y"], {"w": floats(rng, 2, 2 // group, *kernel)}), feeds, "MatMul")
    assert [node.op_type for node in found.graph.node] == ["Conv"]


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize(("bias", "past"), [(True, True), (False, False)])
@pytest.mark.parametrize(("length", "kernel"), [(1, 4), (5, 3), (2, 2)])
def test_causal_convolution(activation: str, bias: bool, past: bool, length: int, kernel: int) -> None:
    rng = np.random.default_rng(3)
    feeds, constants = {"x": floats(rng, 2, 3, length)}, {"w": floats(rng, 3, 1, kernel)}
    if bias:
        constants["b"] = floats(rng, 3)
    if past:
        feeds["p"] = floats(rng, 2, 3, kernel - 1)
    names = ["x", "w", "b" if bias else "", "p" if "p" in feeds else ""]
    node = helper.make_node("CausalConvWithState", names, ["y", "after"], activation=activation)
    check(model([node], feeds, ["y", "after"], constants, 27), feeds, "CausalConvWithState")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("columns", [True, False])
def test_integer_products(signed: bool, columns: bool) -> None:
    rng, kind = np.random.default_rng(5), np.int8 if signed else np.uint8
    low, high = (-128, 128) if signed else (0, 256)
    constants = {
        "b": rng.integers(low, high, (6, 4)).astype(kind),
        "sa": np.float32(0.02), "za": kind(3), "zb": np.array(7 if not signed else 0, kind),
        "sb": (rng.random(4) * 0.02 + 0.01).astype(np.float32) if columns else np.float32(0.013),
        "sy": np.float32(0.05), "zy": kind(11),
    }  # fmt: skip
    if columns:
        constants["zb"] = np.full(4, constants["zb"], kind)
    feeds = {"a": rng.integers(low, high, (3, 6)).astype(kind)}
    node = helper.make_node("QLinearMatMul", ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"], ["y"])
    proto = model([node], feeds, ["y"], {n: np.asarray(a) for n, a in constants.items()})
    check(proto, feeds, "QLinearMatMul", close=0)  # the same integers


@pytest.mark.parametrize(  # onnxruntime has no kernel for 8 bits with zeros in float
    ("bits", "zeros"), [(4, "none"), (4, "packed"), (4, "float"), (8, "none"), (8, "packed")]
)
@pytest.mark.parametrize(("k", "size"), [(64, 32), (128, 64), (40, 16)])
def test_products_in_few_bits(bits: int, zeros: str, k: int, size: int) -> None:
    rng, n = np.random.default_rng(7), 5
    groups = -(-k // size)
    constants = {
        "B": rng.integers(0, 256, (n, groups, size * bits // 8)).astype(np.uint8),
        "scale": (rng.random((n, groups)) * 0.1).astype(np.float32),
        "bias": floats(rng, n),
    }
    if zeros == "packed":
        constants["zero"] = rng.integers(0, 256, (n, -(-groups * bits // 8))).astype(np.uint8)
    elif zeros == "float":
        constants["zero"] = (rng.random((n, groups)) * 4).astype(np.float32)
    names = ["x", "B", "scale", "zero" if zeros != "none" else "", "", "bias"]
    node = helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=size)
    feeds = {"x": floats(np.random.default_rng(1), 2, k)}
    found = check(model([node], feeds, ["y"], constants), feeds, "MatMulNBits", close=1e-4)
    stored = {tensor.data_type for tensor in found.graph.initializer}
    assert (TensorProto.INT4 in stored) == (bits == 4 and zeros == "none" and size % 32 == 0)


def cumulative(direction: int, axis: int) -> onnx.NodeProto:
    """A Scan: s' = s + x[t] * w, y[t] = tanh(s'), w from outside of the body."""
    body = helper.make_graph(
        [
            helper.make_node("Mul", ["x_t", "w"], ["product"]),
            helper.make_node("Add", ["s", "product"], ["s_after"]),
            helper.make_node("Tanh", ["s_after"], ["y_t"]),
        ],
        "body",
        [helper.make_tensor_value_info("s", FLOAT, [3]), helper.make_tensor_value_info("x_t", FLOAT, [3])],
        [helper.make_tensor_value_info("s_after", FLOAT, [3]), helper.make_tensor_value_info("y_t", FLOAT, [3])],
    )
    return helper.make_node("Scan", ["start", "x"], ["end", "y"], body=body, num_scan_inputs=1, scan_input_axes=[axis],
                            scan_input_directions=[direction], scan_output_axes=[axis],
                            scan_output_directions=[direction])  # fmt: skip


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_scans(direction: int, axis: int) -> None:
    rng = np.random.default_rng(11)
    feeds = {"start": floats(rng, 3), "x": floats(rng, 4, 3) if axis == 0 else floats(rng, 3, 4)}
    check(model([cumulative(direction, axis)], feeds, ["end", "y"], {"w": floats(rng, 3)}), feeds, "Scan")


def looped(trips: int | None, stop: str) -> list[onnx.NodeProto]:
    """A Loop: v' = v * w + turn; its end is never, at turn 2, or where the sum of v is above 1."""
    info = helper.make_tensor_value_info
    ends = {
        "never": [helper.make_node("Identity", ["go"], ["go_on"])],
        "turn": [helper.make_node("Less", ["i", "two"], ["go_on"])],
        "data": [helper.make_node("ReduceSum", ["v_after"], ["total"], keepdims=0),
                 helper.make_node("Less", ["total", "one"], ["go_on"])],
    }  # fmt: skip
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["i"], ["turn"], to=FLOAT),
            helper.make_node("Mul", ["v", "w"], ["scaled"]),
            helper.make_node("Add", ["scaled", "turn"], ["v_after"]),
            helper.make_node("Identity", ["v_after"], ["shown"]),
            *ends[stop],
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("v", FLOAT, [2])],
        [info("go_on", TensorProto.BOOL, []), info("v_after", FLOAT, [2]), info("shown", FLOAT, [2])],
    )
    return [helper.make_node("Loop", ["" if trips is None else "trips", "true", "start"], ["end", "all"], body=body)]


@pytest.mark.parametrize(
    ("trips", "stop", "turns"), [(4, "never", 4), (4, "turn", 3), (None, "turn", 3), (1, "turn", 1)]
)
def test_loops(trips: int | None, stop: str, turns: int) -> None:
    rng = np.random.default_rng(13)
    constants = {"true": np.array(True), "w": floats(rng, 2), "two": np.array(2), "one": np.float32(1)}
    if trips is not None:
        constants["trips"] = np.array(trips, np.int64)
    feeds = {"start": floats(rng, 2)}
    proto = model(looped(trips, stop), feeds, ["end", "all"], {n: np.asarray(a) for n, a in constants.items()})
    found = check(proto, feeds, "Loop")
    assert [node.op_type for node in found.graph.node].count("Mul") == turns


def test_loops_that_the_data_ends_are_refused() -> None:
    constants = {
        "true": np.array(True),
        "w": np.ones(2, np.float32),
        "two": np.array(2),
        "one": np.array(1, np.float32),
    }
    feeds = {"start": np.ones(2, np.float32)}
    proto = model(looped(None, "data"), feeds, ["end", "all"], constants)
    with pytest.raises(ExportError, match="how often it turns depends on the data of a step"):
        Freezer(ir.from_proto(proto), REWRITES).run()
