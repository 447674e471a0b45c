"""RNN -> products and one activation.

H = f(W x + R h + b)      f: activation 1, Tanh
"""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite.recurrent import Recurrent, Values


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the step of a plain recurrent layer in its place."""
    cell = Recurrent(freezer.graph, node, 1, ("Tanh",))
    build, width, rows = cell.build, cell.hidden, cell.rows()
    directions = range(len(cell.reversed))
    frames = [cell.projected(rows, d, cell.vector(3, d, [(0, width), (width, 2 * width)], "b")) for d in directions]
    recurrent = [cell.matrix(cell.required(2), d, "R") for d in directions]

    def step(d: int, frame: int, state: Values) -> Values:
        seen = build.op("Add", frames[d][frame], build.op("MatMul", state[0], recurrent[d]))
        return (cell.activations[d][0](build, cell.bounded(seen)),)

    cell.walk(step, [(cell.initial(5, d, "h"),) for d in directions])
    freezer.visit(build.nodes)
