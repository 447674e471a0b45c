"""A walk over a graph of sequences that lets every value come some rows at a time; see `streaming`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.boundary import identifier
from edgemem.export.adopt.bounds import MOST_ELEMENTS
from edgemem.export.adopt.build import Array, Builder, sizes
from edgemem.export.adopt.flow import Carried, Flow
from edgemem.export.adopt.freeze import Freezer, where
from edgemem.state import StateRole

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
COUNTED = float(1 << 20)  # frames that a random state of a counter may have seen
# Rows of padding wait for the window that follows, and may be moved on the way to it.
TAKE_PADDING = frozenset(
    {"Conv", "AveragePool", "MaxPool", "Pad", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"}
)
STATEFUL = "export the model with its state as inputs and outputs instead"
WHOLE = (
    "what it gives depends on the end of the sequence, which no stream has yet, so no state would help; take a causal "
    "form of the model (one direction, running sums), or cut the sequence into pieces"
)
Rule = Callable[["Streamer", ir.Node, Mapping[int, Flow]], None]


class Streamer(Freezer):
    """Freezes a graph whose inputs in `flows` are steps of a sequence, by `rules` for its operators along time.

    `look_ahead` is what a first walk found; `frame_rows` are rows of the input that count as one frame.
    """

    def __init__(
        self,
        model: ir.Model,
        rules: Mapping[str, Rule],
        flows: dict[ir.Value, Flow],
        frame_rows: int,
        frames: int,
        look_ahead: int,
    ) -> None:
        super().__init__(model, {})
        self.rules = rules
        self.flows, self.frame_rows, self.frames, self.look_ahead = flows, frame_rows, frames, look_ahead
        self.carried: list[Carried] = []
        self.results: list[ir.Value] = []  # what the next step starts from, as `carried`
        self.names: set[str] = {value.name or "" for value in model.graph.inputs}
        self.counts: tuple[ir.Value, ir.Value | None] | None = None

    def frozen(self, node: ir.Node) -> None:
        flows = {i: self.flows[v] for i, v in enumerate(node.inputs) if v is not None and v in self.flows}
        if not flows or node.op_type in ("Shape", "Size", "If") or self.is_copy(node):
            super().frozen(node)
            return
        rule = self.rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            raise ExportError(self.refusal(node, "it is not known to work row by row"))
        if any(flow.pads != (0, 0) for flow in flows.values()) and node.op_type not in TAKE_PADDING:
            raise ExportError(self.refusal(node, "rows of padding are put before it, and only windows can have them"))
        rule(self, node, flows)

    @staticmethod
    def refusal(node: ir.Node, reason: str, instead: str = STATEFUL) -> str:
        return f"{where(node)} cannot stream: {reason}; {instead}"

    # --- states ------------------------------------------------------------------------------------------------

    def carry(self, base: str, start: Array, role: StateRole, low: float = -1.0, high: float = 1.0) -> ir.Value:
        """A new state of the graph [1, ...]: its value before the step. `settle` says what it is after."""
        name = identifier(base, self.names)
        self.carried.append(Carried(name, start, role, low, high))
        kind = ir.TensorType(ir.DataType.from_numpy(start.dtype))
        value = ir.Value(name=f"{name}_in", shape=ir.Shape(start.shape), type=kind)
        self.graph.inputs.append(value)
        return value

    def settle(self, after: ir.Value) -> None:
        """What the newest state is after the step."""
        self.results.append(after)

    def joined(self, build: Builder, x: ir.Value, flow: Flow, rows: int, fill: float) -> ir.Value:
        """[tail, x] along time, the tail a state of `rows` rows."""
        shape = list(sizes(x))
        time = shape[flow.axis]
        shape[flow.axis] = rows
        if math.prod(shape) > MOST_ELEMENTS:
            raise ExportError(
                f"{build.base} would remember {rows} rows of {list(sizes(x))}, {MOST_ELEMENTS} elements are the limit; "
                "export the model with a shorter window"
            )
        assert x.dtype is not None
        start = np.full([1, *shape], fill, x.dtype.numpy())
        past = build.reshape(self.carry(f"{build.base}_tail", start, "tail"), shape)
        found = build.op("Concat", past, x, axis=flow.axis)
        self.settle(build.reshape(build.slice(found, flow.axis, time, time + rows), [1, *shape]))
        return found

    def delayed(self, node: ir.Node | None, x: ir.Value, rows: int) -> ir.Value:
        """x as it was `rows` rows before, computed in front of a node or at the end."""
        flow = self.flows[x]
        build = Builder(self.graph, node, x.name or "delayed")
        found = build.slice(self.joined(build, x, flow, rows, 0.0), flow.axis, 0, sizes(x)[flow.axis])
        self.finish(build)
        self.flows[found] = Flow(flow.axis, flow.rate, flow.offset + rows, flow.short)
        return found

    def finish(self, build: Builder) -> None:
        """Shapes for what a builder has put in: it knows about time itself."""
        for node in build.nodes:
            Freezer.frozen(self, node)

    # --- which rows are rows of the sequence -------------------------------------------------------------------

    def counters(self) -> tuple[ir.Value, ir.Value | None]:
        """Frames before this step, padding included; and frames of the sequence with this step, where it may end."""
        if self.counts is not None:
            return self.counts
        first = next(iter(self.graph))
        build = Builder(self.graph, first, "frames")
        zero = np.zeros([1], np.int64)
        position = self.carry("position", zero, "counter", 0.0, COUNTED)
        self.settle(build.op("Add", position, build.ints("step", [self.frames])))
        real = None
        if self.look_ahead:
            valid = ir.Value(name="valid", shape=ir.Shape([1]), type=ir.TensorType(INT64))
            self.graph.inputs.append(valid)
            real = build.op("Add", self.carry("real", zero, "counter", 0.0, COUNTED), valid)
            self.settle(real)
        self.finish(build)
        self.counts = position, real
        return self.counts

    def real_rows(self, build: Builder, flow: Flow, rows: int) -> ir.Value:
        """[rows] bool: which rows of a value in this step are rows of the whole sequence."""
        position, real = self.counters()
        each = build.ints("rows", [self.frame_rows // flow.rate])
        first = build.op("Mul", position, each)
        index = build.op("Add", first, build.ints("index", [n - flow.offset for n in range(rows)]))
        found = build.op("GreaterOrEqual", index, build.ints("zero", [0]), dtype=BOOL)
        if real is not None:
            end = build.op("Sub", build.op("Mul", real, each), build.ints("short", [flow.short]))
            found = build.op("And", found, build.op("Less", index, end, dtype=BOOL), dtype=BOOL)
        return found

    def padded(self, build: Builder, x: ir.Value, flow: Flow, fill: float) -> ir.Value:
        """x with `fill` in the place of rows that are none of the sequence."""
        rows = sizes(x)[flow.axis]
        shape = [rows if axis == flow.axis else 1 for axis in range(len(sizes(x)))]
        real = build.reshape(self.real_rows(build, flow, rows), shape)
        assert x.dtype is not None
        other = build.constant("fill", np.array(fill, x.dtype.numpy()))
        return build.op("Where", real, x, other, dtype=x.dtype)
