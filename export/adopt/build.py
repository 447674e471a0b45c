"""Putting constants and nodes into a graph of any origin, each under a name that is free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, np.dtype[Any]]
COUNTS = "edgemem.counts"  # in a graph's meta store: how often a constant's name was taken


def known(value: ir.Value | None) -> Array | None:
    """The array that a value always has, if it is a constant."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    array: Array = value.const_value.numpy()
    return array


def sizes(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value, which freezing has made a row of numbers."""
    assert value.shape is not None, value.name
    found = tuple(size for size in value.shape if isinstance(size, int))
    assert len(found) == len(value.shape), f"{value.name}: {value.shape}"
    return found


def constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A new initializer; its name is `name`, or that with a number."""
    counts: dict[str, int] = graph.meta.setdefault(COUNTS, {})
    free, count = name, counts.get(name, 0)
    while free in graph.initializers:
        count += 1
        free = f"{name}.{count}"
    counts[name] = count  # loops that are written out ask for thousands of one name
    stored = ir.tensor(np.asarray(array, order="C"), name=free)  # ascontiguousarray would give a scalar an axis
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(stored.dtype), const_value=stored)
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that reads `old` read `new`, the graph's results included."""
    old.replace_all_uses_with(new, replace_graph_outputs=True)


class Builder:
    """Nodes in front of `anchor`; `base` begins the names of its constants.

    `nodes` collects what was put in, so that whoever rewrites can look at them again.
    """

    def __init__(self, graph: ir.Graph, anchor: ir.Node | None, base: str) -> None:
        self.graph, self.anchor, self.base = graph, anchor, base
        self.nodes: list[ir.Node] = []

    def constant(self, suffix: str, array: Array) -> ir.Value:
        return constant(self.graph, f"{self.base}.{suffix}", array)

    def floats(self, suffix: str, array: Any) -> ir.Value:
        return self.constant(suffix, np.asarray(array, np.float32))

    def ints(self, suffix: str, numbers: Sequence[int]) -> ir.Value:
        return self.constant(suffix, np.asarray(numbers, np.int64))

    def op(self, kind: str, *inputs: ir.Value | None, dtype: ir.DataType | None = None, **attributes: Any) -> ir.Value:
        """One operator with one output; without `dtype` it is of its first input's."""
        return self.ops(kind, *inputs, outputs=1, dtype=dtype, **attributes)[0]

    def ops(
        self, kind: str, *inputs: ir.Value | None, outputs: int, dtype: ir.DataType | None = None, **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """One operator with several outputs."""
        node = ir.node(kind, list(inputs), attributes or None, num_outputs=outputs)
        kind_of = dtype or next((v.dtype for v in inputs if v is not None), None)
        for value in node.outputs:
            value.type = None if kind_of is None else ir.TensorType(kind_of)
        if self.anchor is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self.anchor, node)
        self.nodes.append(node)
        return tuple(node.outputs)

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        found = self.op("Reshape", x, self.ints("shape", shape))
        found.shape = ir.Shape(shape)
        return found

    def slice(self, x: ir.Value, axis: int, start: int, stop: int) -> ir.Value:
        numbers = [self.ints(name, [n]) for name, n in (("start", start), ("stop", stop), ("axis", axis))]
        return self.op("Slice", x, *numbers)
