"""CausalConvWithState (opset 27) -> Concat, Conv, Slice.

seen = [past, x]      y = act(Conv(seen, W) + b), a kernel for each channel      present = the last k - 1 of seen
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemem.export.adopt.build import Builder, replace, sizes
from edgemem.export.adopt.freeze import Freezer


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the convolution in the operator's place."""
    build = Builder(freezer.graph, node, node.name or "CausalConvWithState")
    x, weight = node.inputs[0], node.inputs[1]
    bias, past = (node.inputs[i] if i < len(node.inputs) else None for i in (2, 3))
    assert x is not None and weight is not None
    (batch, channels, length), kernel = sizes(x), sizes(weight)[2]
    if past is None:
        past = build.floats("start", np.zeros((batch, channels, kernel - 1)))
    seen = build.op("Concat", past, x, axis=2) if kernel > 1 else x
    inputs = [seen, weight] if bias is None else [seen, weight, bias]
    y = build.op("Conv", *inputs, group=channels, kernel_shape=[kernel])
    if "activation" in node.attributes and node.attributes["activation"].as_string() in ("silu", "swish"):
        y = build.op("Mul", y, build.op("Sigmoid", y))
    replace(node.outputs[0], y)
    if len(node.outputs) > 1:
        replace(node.outputs[1], build.slice(seen, 2, length, length + kernel - 1))
    freezer.graph.remove(node, safe=True)
    freezer.visit(build.nodes)
