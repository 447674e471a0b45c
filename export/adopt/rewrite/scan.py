"""Scan -> its body, once for each turn.

Scan(state..., x...)    body(state..., x[t]...) -> (state'..., y[t]...)    t along an axis of x and of y
"""

from __future__ import annotations

import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Builder, sizes
from edgemem.export.adopt.freeze import Freezer, where
from edgemem.export.adopt.rewrite.turns import check_size, stacked, turn

FIRST_VERSION = 9  # before, a Scan had a batch axis of its own


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put all turns in a scan's place.

    Raises:
        ExportError: a Scan of version 8.
    """
    if freezer.version < FIRST_VERSION:
        raise ExportError(f"{where(node)}: Scan of opset 8 is not supported; export the model with opset 9 or newer")
    body, scanned = node.attributes["body"].as_graph(), node.attributes["num_scan_inputs"].as_int()
    values = [value for value in node.inputs if value is not None]
    states, inputs = values[: len(values) - scanned], values[len(values) - scanned :]
    axes = numbers(node, "scan_input_axes", [0] * scanned)
    backwards = numbers(node, "scan_input_directions", [0] * scanned)
    turns = sizes(inputs[0])[axes[0]]
    check_size(freezer, node, body, turns)
    seen: list[list[ir.Value]] = []
    for t in range(turns):
        slices = [
            one(freezer, node, x, axis, turns - 1 - t if back else t)
            for x, axis, back in zip(inputs, axes, backwards, strict=True)
        ]
        results = turn(freezer, node, body, [*states, *slices])
        states, outputs = results[: len(states)], results[len(states) :]
        seen.append(outputs)
    count = len(node.outputs) - len(states)
    places, reversed_ = (
        numbers(node, "scan_output_axes", [0] * count),
        numbers(node, "scan_output_directions", [0] * count),
    )
    stacks = [
        stacked(freezer, node, [row[i] for row in (reversed(seen) if reversed_[i] else seen)], places[i])
        for i in range(count)
    ]
    freezer.become(node, [*states, *stacks])


def numbers(node: ir.Node, name: str, default: list[int]) -> list[int]:
    found = node.attributes.get(name)
    return default if found is None else list(found.as_ints())


def one(freezer: Freezer, node: ir.Node, x: ir.Value, axis: int, index: int) -> ir.Value:
    """x at one place of an axis, without that axis."""
    build, shape = Builder(freezer.graph, node, node.name or "Scan"), list(sizes(x))
    axis %= len(shape)
    if shape[axis] > 1:
        x = build.slice(x, axis, index, index + 1)
    found = build.reshape(x, [*shape[:axis], *shape[axis + 1 :]])
    freezer.visit(build.nodes)
    return found
