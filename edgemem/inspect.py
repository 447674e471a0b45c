"""What a model file says about itself, and what one step of it costs.

`macs_per_step` counts the multiply-accumulates of matrix products and convolutions (MatMul, Gemm, Conv and their
integer forms); elementwise operators, normalisations and lookups are not counted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from edgemem import contract as contracts
from edgemem.modelfile import ModelFile, open_model
from edgemem.onnxfile import Node

PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"}
CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv"}


def facts(path: str | Path) -> dict[str, Any]:
    """The contract and the costs of a model file, as JSON-able data.

    Raises:
        ModelFileError, ContractError: not a whole ONNX file, or its contract does not hold.
    """
    model = open_model(path)
    return {
        "file": str(path),
        "file_bytes": model.onnx.file_bytes,
        "opset": model.onnx.opset,
        "weight_bytes": model.onnx.weight_bytes,
        "state_bytes": state_bytes(model),
        "macs_per_step": macs_per_step(model),
        "operators": dict(sorted(Counter(node.op_type for node in model.onnx.nodes).items())),
        "contract": json.loads(model.onnx.metadata[contracts.KEY]),
    }


def state_bytes(model: ModelFile) -> int:
    """Bytes of the states of one step's streams, all `batch` of them."""
    return model.contract.state_bytes


def macs_per_step(model: ModelFile) -> int:
    """Multiply-accumulates of one step; a product whose shapes the file does not tell counts as 0."""
    shapes = shapes_of(model)
    return sum(macs(node, shapes) for node in model.onnx.nodes)


def byte_macs_per_step(model: ModelFile) -> int:
    """Those of them that multiply bytes with bytes: int8 weights, and activations that the file rounds to 8 bits."""
    shapes = shapes_of(model)
    made = {name: node for node in model.onnx.nodes for name in node.outputs}
    kinds = {name: kind.dtype for name, kind in model.onnx.values.items()}
    kinds |= {name: constant.dtype for name, constant in model.onnx.initializers.items()}

    def is_bytes(name: str) -> bool:
        node = made.get(name)
        stored = node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else name
        return kinds.get(stored) in ("int8", "uint8")

    products = (node for node in model.onnx.nodes if node.op_type in PRODUCTS)
    return sum(macs(node, shapes) for node in products if all(map(is_bytes, node.inputs[:2])))


def shapes_of(model: ModelFile) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that the file tells, by name."""
    file = model.onnx
    shapes = {name: kind.shape for group in (file.values, file.outputs, file.inputs) for name, kind in group.items()}
    return shapes | {name: stored.shape for name, stored in file.initializers.items()}


def macs(node: Node, shapes: dict[str, tuple[int, ...]]) -> int:
    """Output elements times the length of the sums that make them."""
    place = 3 if node.op_type.startswith("QLinear") else 1  # left, its scale and zero point, then right
    if node.op_type not in PRODUCTS | CONVOLUTIONS or len(node.inputs) <= place or not node.outputs:
        return 0
    left, right = (shapes.get(name, ()) for name in (node.inputs[0], node.inputs[place]))
    output = shapes.get(node.outputs[0], ())
    if not left or not right or min(left + right + output) < 0:
        return 0
    if node.op_type in CONVOLUTIONS:
        return math.prod(output) * math.prod(right[1:])
    transposed = node.op_type == "Gemm" and node.attributes.get("transA")
    return math.prod(output) * left[0 if transposed else -1]
