"""Every node against the standard's description of its operator: how many inputs and outputs, which attributes.

What follows reads inputs and attributes by their place and name, as the standard has them. So a file in which one is
missing, or too many, is refused here, with the node's name, whatever the operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from edgemem.errors import ModelFileError
from edgemem.text import counted

STANDARD = ("", "ai.onnx")
Schema = onnx.defs.OpSchema
# Operators of other domains that are rewritten: least inputs, most inputs, attributes that must be there.
OTHERS = {("com.microsoft", "MatMulNBits"): (3, 6, ("K", "N"))}


def check_nodes(path: Path, model: ir.Model) -> None:
    """Refuse nodes that are none of their operator's.

    Raises:
        ModelFileError: the first of them, what was wanted and what came.
    """
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for problem in problems(node, version):
            name = node.name or next((value.name for value in node.outputs if value.name), "unnamed")
            raise ModelFileError(f"{path}: {node.op_type} ({name}) {problem}; the file is malformed, export it again")


def problems(node: ir.Node, version: int) -> Iterator[str]:
    """What is wrong with a node."""
    if node.domain not in STANDARD:
        least, most, needed = OTHERS.get((node.domain, node.op_type), (0, len(node.inputs), ()))
        yield from wrong_count("input", len(node.inputs), least, most)
        yield from missing(node, range(least))
        yield from (f"lacks its attribute {name}" for name in needed if name not in node.attributes)
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except Exception:  # onnx raises its own private kind
        yield f"is no operator of opset {version}"
        return
    yield from wrong_count("input", len(node.inputs), schema.min_input, schema.max_input)
    yield from wrong_count("output", len(node.outputs), schema.min_output, schema.max_output)
    single = Schema.FormalParameterOption.Single
    yield from missing(node, [i for i, port in enumerate(schema.inputs) if port.option == single])
    yield from wrong_attributes(node, schema)


def wrong_count(what: str, came: int, least: int, most: int) -> Iterator[str]:
    if not least <= came <= most:
        wanted = str(least) if least == most else f"{least} or more" if most > 1 << 20 else f"{least} to {most}"
        yield f"has {counted(came, what)}, {wanted} {'was' if wanted == '1' else 'were'} wanted"


def missing(node: ir.Node, places: range | list[int]) -> Iterator[str]:
    """Inputs that are left out, and must not be."""
    for index in places:
        if index < len(node.inputs) and node.inputs[index] is None:
            yield f"lacks its input {index}"


def wrong_attributes(node: ir.Node, schema: Schema) -> Iterator[str]:
    """Attributes that are missing, of another type, or none of the operator's."""
    for name, wanted in schema.attributes.items():
        if name not in node.attributes:
            if wanted.required:
                yield f"lacks its attribute {name}"
            continue
        if node.attributes[name].is_ref():
            yield f"has an attribute {name} that stands for one of a function, outside any"
            continue
        kind: Any = wanted.type  # an Enum, which onnx's stub does not say
        came = node.attributes[name].type.name
        if came != kind.name:
            yield f"has an attribute {name} of type {came.lower()}, {kind.name.lower()} was wanted"
    for name in node.attributes:
        if name not in schema.attributes:
            yield f"has an attribute {name}, which the operator has not"
