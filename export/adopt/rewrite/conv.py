"""Conv over one axis, of few rows -> a product with a constant matrix, for which compiled steps have better kernels.

    before                              after
    Conv(x [batch, inputs, time], W)    rows [batch, time', inputs * kernel], row t what the window sees at t
                                        Transpose(rows W^T + b)

In a step, time' is small: a row is a Slice. Groups, several axes and many rows stay a Conv.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemem.export.adopt.build import Builder, known, replace, sizes
from edgemem.export.adopt.flow import attribute_int, attribute_ints
from edgemem.export.adopt.freeze import Freezer

MOST_ROWS = 16  # beyond, the slices cost more than the product


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the product in a convolution's place, where it is one of few rows."""
    freezer.infer(node)
    x, weight = node.inputs[0], known(node.inputs[1])
    assert x is not None
    auto = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET"
    rows = sizes(node.outputs[0])[-1]
    if weight is None or weight.ndim != 3 or attribute_int(node, "group", 1) != 1 or auto or rows > MOST_ROWS:
        return
    build = Builder(freezer.graph, node, node.name or node.outputs[0].name or "Conv")
    (batch, inputs, time), (outputs, _, kernel) = sizes(x), weight.shape
    (left, right), (stride,), (dilation,) = (
        attribute_ints(node, name, default)
        for name, default in (("pads", [0, 0]), ("strides", [1]), ("dilations", [1]))
    )
    if left or right:
        zeros = build.constant("fill", np.zeros((), weight.dtype))
        x = build.op("Pad", x, build.ints("pads", [0, 0, left, 0, 0, right]), zeros)
        time += left + right
    seen = [windowed(build, x, t * stride, kernel, dilation, time) for t in range(rows)]
    flat = [build.reshape(window, [batch, 1, inputs * kernel]) for window in seen]
    stacked = flat[0] if rows == 1 else build.op("Concat", *flat, axis=1)
    y = build.op("MatMul", stacked, build.constant("W", weight.reshape(outputs, -1).T))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    y = y if bias is None else build.op("Add", y, bias)
    moved = build.reshape(y, [batch, outputs, 1]) if rows == 1 else build.op("Transpose", y, perm=[0, 2, 1])
    replace(node.outputs[0], moved)
    freezer.graph.remove(node, safe=True)
    freezer.visit(build.nodes)


def windowed(build: Builder, x: ir.Value, start: int, kernel: int, dilation: int, time: int) -> ir.Value:
    """[batch, inputs, kernel] of x from `start` on, every `dilation`."""
    stop = start + (kernel - 1) * dilation + 1
    if (start, stop, dilation) == (0, time, 1):
        return x
    if dilation == 1:
        return build.slice(x, 2, start, stop)
    numbers = [build.ints(name, [n]) for name, n in (("start", start), ("stop", stop), ("axis", 2), ("step", dilation))]
    return build.op("Slice", x, *numbers)
