"""A graph over whole sequences -> a step over some frames of them, which carries what its windows saw before.

    before                                   after
    Conv, pools along time                   the same over [tail, x] without padding, the tail a state; padding of the
                                             start is what the tail starts from
    Pad, Slice along time                    nothing: rows are counted from elsewhere
    LSTM, GRU, RNN, forward, from constants  the same from a state
    a sum of rows that come at other times   the earlier ones wait in a tail
    operators on one row at a time           as they are
    anything else along time                 refused, by name: it would see the future, or all of the sequence

Windows that see what comes later give their rows later: the graph's latency. Rows before the first and behind the last
frame are padding to every window, so with latency the graph counts frames (`position`, `real`, the input `valid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.along_time import RULES
from edgemem.export.adopt.build import sizes
from edgemem.export.adopt.flow import Carried, Flow, attribute_ints
from edgemem.export.adopt.streamer import Streamer


@dataclass(frozen=True)
class Streamed:
    """A step of a model of whole sequences.

    `frame_rows` rows of the input are one frame; `short` rows at the start of each output belong to no row of the whole
    sequence; `axes` are the letters of inputs and outputs by name.
    """

    model: ir.Model
    carried: tuple[Carried, ...]
    frame_rows: int
    look_ahead: int
    short: Mapping[str, int]
    axes: Mapping[str, str]


def streamed(
    model: ir.Model,
    axes: Mapping[str, str],
    outputs: Sequence[str],
    frames: int,
    set_time: Callable[[ir.Model, int], None],
) -> Streamed:
    """A step over `frames` frames; `axes` are the letters of the inputs, `set_time` fixes how long they are.

    Raises:
        ExportError: an operator that cannot stream, or outputs that come at different rates; they are named.
    """
    proto = ir.to_proto(model)
    rows = largest_rate(model)
    first = walked(ir.from_proto(proto), axes, rows, rows, 1, 0, set_time)
    flows = {n: first.flows[v] for n, v in zip(outputs, first.graph.outputs, strict=True) if v in first.flows}
    rates = {flow.rate for flow in flows.values()}
    if len(rates) != 1 or any(flow.pads != (0, 0) for flow in flows.values()):
        each = " and ".join(map(str, sorted(rates)))
        what = f"they have a row for {each} rows of the input" if rates else "none has time"
        raise ExportError(f"the outputs {', '.join(outputs)} cannot stream: {what}; leave some out by --drop")
    rate = rates.pop()
    look_ahead = max(max(0, flow.offset - max(flow.short, 0)) for flow in flows.values())
    found = walked(ir.from_proto(proto), axes, rate * frames, rate, frames, look_ahead, set_time)
    letters = dict(axes)
    for index, name in enumerate(outputs):
        value = found.graph.outputs[index]
        if value not in found.flows:
            continue
        flow = found.flows[value]
        late = look_ahead - (flow.offset - max(flow.short, 0))
        if late:
            found.graph.outputs[index] = found.delayed(None, value, late)
        letters[name] = letters_of(sizes(value), flow.axis)
    found.graph.outputs.extend(found.results)
    short = {name: max(flow.short, 0) for name, flow in flows.items()}
    return Streamed(found.model, tuple(found.carried), rate, look_ahead, short, letters)


def walked(
    model: ir.Model,
    axes: Mapping[str, str],
    rows: int,
    frame_rows: int,
    frames: int,
    look_ahead: int,
    set_time: Callable[[ir.Model, int], None],
) -> Streamer:
    """One walk over a copy of the model, `rows` rows of the input in a step."""
    set_time(model, rows)
    flows = {v: Flow(axes[v.name].index("T")) for v in model.graph.inputs if v.name and "T" in axes.get(v.name, "")}
    found = Streamer(model, RULES, flows, frame_rows, frames, look_ahead)
    found.run()
    return found


def letters_of(shape: Sequence[int], time: int) -> str:
    """T where time is, B at the first other axis of one stream, F elsewhere."""
    batch = next((i for i, size in enumerate(shape) if i != time and size == 1), None)
    return "".join("T" if i == time else "B" if i == batch else "F" for i in range(len(shape)))


def largest_rate(model: ir.Model) -> int:
    """A number of rows that the strides of all windows divide."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return math.prod(max(attribute_ints(node, "strides", [1])) for node in nodes)
