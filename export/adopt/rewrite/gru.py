"""GRU -> products and gates.

z = f(W_z x + R_z h + b_z)                    f: activation 1, Sigmoid
r = f(W_r x + R_r h + b_r)
n = g(W_h x + R_h (r h) + Rb_h + Wb_h)        g: activation 2, Tanh
n = g(W_h x + r (R_h h + Rb_h) + Wb_h)        with linear_before_reset
H = (1 - z) n + z h                           gates are stored in the order z r h
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemem.export.adopt.build import known
from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.rewrite.recurrent import Recurrent, Values


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put the step of a GRU in its place."""
    cell = Recurrent(freezer.graph, node, 3, ("Sigmoid", "Tanh"))
    build, hidden, rows = cell.build, cell.hidden, cell.rows()
    frames, gates, last, inner, starts = [], [], [], [], []
    for d in range(len(cell.reversed)):
        linear = cell.integer("linear_before_reset") != 0
        frames.append(cell.projected(rows, d, biases(cell, d, linear)))
        first, second = recurrent(cell, d)
        gates.append(first)
        last.append(second)
        inner.append(cell.vector(3, d, [(5 * hidden, 6 * hidden)], "Rb") if linear else None)
        starts.append((cell.initial(5, d, "h"),))

    def step(d: int, frame: int, state: Values) -> Values:
        (h,), (f, g) = state, cell.activations[d]
        x_z, x_r, x_n = cell.split(frames[d][frame], 3)
        h_z, h_r = cell.split(build.op("MatMul", h, gates[d]), 2)
        z = f(build, cell.bounded(build.op("Add", x_z, h_z)))
        r = f(build, cell.bounded(build.op("Add", x_r, h_r)))
        if linear:
            seen = build.op("MatMul", h, last[d])
            seen = build.op("Mul", r, seen if inner[d] is None else build.op("Add", seen, inner[d]))
        else:
            seen = build.op("MatMul", build.op("Mul", r, h), last[d])
        n = g(build, cell.bounded(build.op("Add", x_n, seen)))
        kept = build.op("Mul", z, h)
        return (build.op("Add", build.op("Mul", build.op("Sub", build.floats("one", 1.0), z), n), kept),)

    cell.walk(step, starts)
    freezer.visit(build.nodes)


def biases(cell: Recurrent, direction: int, linear: bool) -> ir.Value | None:
    """What is added to the products with W: both biases, but for the one that r is multiplied with."""
    h = cell.hidden
    if not linear:
        return cell.vector(3, direction, [(0, 3 * h), (3 * h, 6 * h)], "b")
    gates = cell.vector(3, direction, [(0, 2 * h), (3 * h, 5 * h)], "b")
    new = cell.vector(3, direction, [(2 * h, 3 * h)], "b.new")
    return None if gates is None or new is None else joined(cell, [gates, new])


def joined(cell: Recurrent, parts: list[ir.Value]) -> ir.Value:
    """Vectors one after another."""
    arrays = [known(part) for part in parts]
    if all(array is not None for array in arrays):
        return cell.build.constant("b", np.concatenate([a for a in arrays if a is not None]))
    return cell.build.op("Concat", *parts, axis=0)


def recurrent(cell: Recurrent, direction: int) -> tuple[ir.Value, ir.Value]:
    """R of z and r [hidden, 2 * hidden], and of h [hidden, hidden], transposed."""
    value, h = cell.required(2), cell.hidden
    array = known(value)
    if array is not None:
        matrix = array[direction].T
        return cell.build.constant("R", matrix[:, : 2 * h]), cell.build.constant("R.new", matrix[:, 2 * h :])
    whole = cell.matrix(value, direction, "R")
    return cell.build.slice(whole, 1, 0, 2 * h), cell.build.slice(whole, 1, 2 * h, 3 * h)
