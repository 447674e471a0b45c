"""What Loop and Scan share: a body that is written out once for each turn."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Builder, sizes
from edgemem.export.adopt.freeze import Freezer, copied_out, where

MOST_NODES = 1 << 16  # that all turns of all loops may come to


def turn(freezer: Freezer, node: ir.Node, body: ir.Graph, arguments: Sequence[ir.Value]) -> list[ir.Value]:
    """One turn of a body on its arguments, in front of a node; the body's results."""
    once = body.clone(allow_outer_scope_values=True)
    copied_out(once)
    for port, argument in zip(once.inputs, arguments, strict=True):
        port.replace_all_uses_with(argument, replace_graph_outputs=True)
    return freezer.inlined(once, node)


def check_size(freezer: Freezer, node: ir.Node, body: ir.Graph, turns: int, ahead: bool = False) -> None:
    """Count turns that are to be written out, empty ones too, and refuse what would become too large a graph.

    `ahead` of turns that are counted one by one, they are only looked at.
    """
    written = freezer.written_out + turns * (1 + sum(1 for _ in ir.traversal.RecursiveGraphIterator(body)))
    freezer.written_out = freezer.written_out if ahead else written
    if written > MOST_NODES:
        raise ExportError(
            f"{where(node)}: with its turns {written} operators of loops would be written out, "
            f"{MOST_NODES} are the limit; choose a shorter step by --chunk"
        )


def stacked(freezer: Freezer, node: ir.Node, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """Values of all turns beside each other along a new axis."""
    build, shape = Builder(freezer.graph, node, node.name or node.op_type), list(sizes(values[0]))
    axis = axis % (len(shape) + 1)
    rows = [build.reshape(value, [*shape[:axis], 1, *shape[axis:]]) for value in values]
    found = rows[0] if len(rows) == 1 else build.op("Concat", *rows, axis=axis)
    freezer.visit(build.nodes)
    return found
