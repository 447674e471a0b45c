"""LSTM -> products and gates.

i = f(W_i x + R_i h + P_i c + b_i)      o = f(W_o x + R_o h + P_o C + b_o)      f: activation 1, Sigmoid
F = f(W_f x + R_f h + P_f c + b_f)      g = g(W_c x + R_c h + b_c)              g: activation 2, Tanh
C = F c + i g                           H = o h(C)                              h: activation 3, Tanh
input_forget: F = 1 - i                 gates are stored in the order i o f c, peepholes P as i o f
"""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite.recurrent import Recurrent, Values


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the step of an LSTM in its place."""
    cell = Recurrent(freezer.graph, node, 4, ("Sigmoid", "Tanh", "Tanh"))
    build, width, rows = cell.build, 4 * cell.hidden, cell.rows()
    frames, recurrent, peepholes, starts = [], [], [], []
    for d in range(len(cell.reversed)):
        frames.append(cell.projected(rows, d, cell.vector(3, d, [(0, width), (width, 2 * width)], "b")))
        recurrent.append(cell.matrix(cell.required(2), d, "R"))
        peepholes.append([cell.vector(7, d, [(k * cell.hidden, (k + 1) * cell.hidden)], "P") for k in range(3)])
        starts.append((cell.initial(5, d, "h"), cell.initial(6, d, "c")))
    coupled = cell.integer("input_forget") == 1

    def step(d: int, frame: int, state: Values) -> Values:
        (h, c), (f, g, last) = state, cell.activations[d]
        peep_i, peep_o, peep_f = peepholes[d]
        gates = build.op("Add", frames[d][frame], build.op("MatMul", h, recurrent[d]))
        i, o, forget, new = cell.split(gates, 4)

        def gate(x: ir.Value, peephole: ir.Value | None, memory: ir.Value) -> ir.Value:
            seen = x if peephole is None else build.op("Add", x, build.op("Mul", peephole, memory))
            return f(build, cell.bounded(seen))

        i = gate(i, peep_i, c)
        forget = build.op("Sub", build.floats("one", 1.0), i) if coupled else gate(forget, peep_f, c)
        new = g(build, cell.bounded(new))
        memory = build.op("Add", build.op("Mul", forget, c), build.op("Mul", i, new))
        output = build.op("Mul", gate(o, peep_o, memory), last(build, memory))
        return output, memory

    cell.walk(step, starts)
    freezer.visit(build.nodes)
