"""What Loop and Scan share: a body that is written out once for each turn."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Builder, sizes
from edgemem.export.adopt.freeze import Freezer, where

MOST_NODES = 1 << 16  # that all turns of one body may come to


def turn(freezer: Freezer, node: ir.Node, body: ir.Graph, arguments: Sequence[ir.Value]) -> list[ir.Value]:
    """One turn of a body on its arguments, in front of a node; the body's results."""
    once = body.clone(allow_outer_scope_values=True)
    for port, argument in zip(once.inputs, arguments, strict=True):
        port.replace_all_uses_with(argument, replace_graph_outputs=True)
    return freezer.inlined(once, node)


def check_size(node: ir.Node, body: ir.Graph, turns: int) -> None:
    """Refuse what would become too large a graph."""
    nodes = turns * len(list(body))
    if nodes > MOST_NODES:
        raise ExportError(
            f"{where(node)}: {turns} turns of {len(list(body))} operators would be written out, {MOST_NODES} operators "
            "are the limit; choose a shorter step by --chunk"
        )


def stacked(freezer: Freezer, node: ir.Node, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """Values of all turns beside each other along a new axis."""
    build, shape = Builder(freezer.graph, node, node.name or node.op_type), list(sizes(values[0]))
    axis = axis % (len(shape) + 1)
    rows = [build.reshape(value, [*shape[:axis], 1, *shape[axis:]]) for value in values]
    found = rows[0] if len(rows) == 1 else build.op("Concat", *rows, axis=axis)
    freezer.visit(build.nodes)
    return found
