"""Conv over one axis, of few rows -> a product with a constant matrix, for which compiled steps have better kernels.

    before                              after
    Conv(x [batch, inputs, time], W)    rows [batch, time', inputs * kernel], row t what the window sees at t
                                        Transpose(rows W^T + b)

In a step, time' is small. Of few rows each is a Slice of x; where there are twice as many as taps of the kernel, each
tap is a Slice of x transposed, for all rows at once. Groups, several axes and many rows stay a Conv.
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
    if 2 * kernel <= rows:
        turned = build.op("Transpose", x, perm=[0, 2, 1])
        taps = [strided(build, turned, 1, k * dilation, rows, stride, time) for k in range(kernel)]
        stacked = taps[0] if kernel == 1 else build.op("Concat", *taps, axis=2)
        matrix = weight.transpose(2, 1, 0).reshape(-1, outputs)
    else:
        seen = [strided(build, x, 2, t * stride, kernel, dilation, time) for t in range(rows)]
        flat = [build.reshape(window, [batch, 1, inputs * kernel]) for window in seen]
        stacked = flat[0] if rows == 1 else build.op("Concat", *flat, axis=1)
        matrix = weight.reshape(outputs, -1).T
    y = build.op("MatMul", stacked, build.constant("W", matrix))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    y = y if bias is None else build.op("Add", y, bias)
    moved = build.reshape(y, [batch, outputs, 1]) if rows == 1 else build.op("Transpose", y, perm=[0, 2, 1])
    replace(node.outputs[0], moved)
    freezer.graph.remove(node, safe=True)
    freezer.visit(build.nodes)


def strided(build: Builder, x: ir.Value, axis: int, start: int, count: int, step: int, length: int) -> ir.Value:
    """`count` places of an axis, which is `length` long, from `start` on, every `step`."""
    stop = start + (count - 1) * step + 1
    if (start, stop) == (0, length) and (step == 1 or count == 1):
        return x
    if step == 1 or count == 1:
        return build.slice(x, axis, start, stop)
    numbers = (("start", start), ("stop", stop), ("axis", axis), ("step", step))
    return build.op("Slice", x, *(build.ints(name, [n]) for name, n in numbers))
