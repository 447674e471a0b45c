"""QLinearMatMul -> an integer product, one factor, and a rounding.

y = clip(round(s_a s_b / s_y * (a - z_a)(b - z_b)) + z_y)        products and sums in int32
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Array, Builder, known, replace
from edgemem.export.adopt.freeze import Freezer, where


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the integer product in the operator's place.

    Raises:
        ExportError: scales that are no constants.
    """
    build = Builder(freezer.graph, node, node.name or "QLinearMatMul")
    a, _, a_zero, b, _, b_zero, _, y_zero = node.inputs
    scales = [constant(node, index).astype(np.float32) for index in (1, 4, 6)]
    factor = scales[0] * scales[1] / scales[2]  # of float32, as onnxruntime has it
    total = build.op("MatMulInteger", a, b, a_zero, b_zero, dtype=ir.DataType.INT32)
    wide = build.op("Cast", total, dtype=ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
    scaled = build.op("Mul", wide, build.floats("factor", factor))
    zero = known(y_zero)
    kind = ir.DataType.UINT8 if zero is None else ir.DataType.from_numpy(zero.dtype)
    low, high = (0, 255) if kind == ir.DataType.UINT8 else (-128, 127)
    moved = build.op("Add", build.op("Round", scaled), build.floats("zero", 0 if zero is None else zero))
    bounded = build.op("Clip", moved, build.floats("low", low), build.floats("high", high))
    replace(node.outputs[0], build.op("Cast", bounded, dtype=kind, to=int(kind)))
    freezer.graph.remove(node, safe=True)
    freezer.visit(build.nodes)


def constant(node: ir.Node, index: int) -> Array:
    """A constant input of the node."""
    found = known(node.inputs[index])
    if found is None:
        raise ExportError(f"{where(node)}: its input {index} is computed; a constant scale was wanted")
    return found
