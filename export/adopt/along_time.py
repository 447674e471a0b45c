"""What becomes of an operator along time, in a step of a sequence: a rule for each, found by `RULES`.

A rule puts a node in order that has time in the inputs `flows`, and notes where its results have it; see `streaming`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Array, Builder, known, sizes
from edgemem.export.adopt.flow import Flow, Window, attribute_int, attribute_ints, axis_after
from edgemem.export.adopt.rewrite.recurrent import REAL
from edgemem.export.adopt.streamer import WHOLE, Rule, Streamer

SEQUENCE_LENGTHS, STARTS = 4, {"h": 5, "c": 6}  # inputs of recurrent layers
LARGEST_FLOAT = float(np.finfo(np.float32).max)
OPEN_END = 1 << 30  # from here on, the end of a Slice is the end of what it cuts
LAYOUT = "say which axis of the input is time by --layout INPUT=AXES, for example TBF"
POSITION = "it has another constant for every row, so it depends on position"
ROW_BY_ROW = (
    "Abs Acos Add And BatchNormalization BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Cos "
    "DequantizeLinear Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN "
    "LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu "
    "Round Selu Sigmoid Sign Sin Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)


def aligned(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> tuple[list[int], Flow]:
    """Let all inputs with time come at once; their numbers, and the flow that they have in common but for its axis."""
    rates = {flow.rate for flow in flows.values()}
    if len(rates) > 1:
        raise ExportError(streamer.refusal(node, f"its inputs have {' and '.join(map(str, sorted(rates)))} rows a row"))
    latest = max(flow.offset for flow in flows.values())
    for index, flow in flows.items():
        value = node.inputs[index]
        assert value is not None
        if flow.offset < latest:
            node.replace_input_with(index, streamer.delayed(node, value, latest - flow.offset))
    short = max(flow.short for flow in flows.values())
    first = next(iter(flows.values()))
    return list(flows), Flow(first.axis, first.rate, latest, short)


def row_by_row(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """Element by element, with broadcasting: time has to be the same axis of every input, counted from the last."""
    places, flow = aligned(streamer, node, flows)
    axes = {}
    for index in places:
        value = node.inputs[index]
        assert value is not None
        axes[flows[index].axis - len(sizes(value))] = index
    if len(axes) > 1:
        raise ExportError(streamer.refusal(node, "time is another axis in each of its inputs"))
    back = next(iter(axes))
    for index, value in enumerate(node.inputs):
        if value is not None and index not in places and len(sizes(value)) >= -back and sizes(value)[back] > 1:
            raise ExportError(streamer.refusal(node, POSITION))
    streamer.infer(node)
    if node.op_type == "BatchNormalization" and flow.axis == 1:
        raise ExportError(streamer.refusal(node, "it takes time for channels"))
    spread(streamer, node, flow, len(sizes(node.outputs[0])) + back)


def spread(streamer: Streamer, node: ir.Node, flow: Flow, axis: int) -> None:
    """Note the flow of a node's results."""
    for value in node.outputs:
        if value.name:
            streamer.flows[value] = Flow(axis, flow.rate, flow.offset, flow.short, flow.pads, flow.fill)


def window(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """A convolution or a pool."""
    if set(flows) != {0}:
        raise ExportError(streamer.refusal(node, "its kernel follows time"))
    x, flow = node.inputs[0], flows[0]
    assert x is not None
    if flow.axis < 2:
        if flow.axis == 1 or flow.pads != (0, 0):
            raise ExportError(
                streamer.refusal(node, "it takes time for channels, so it sees all of the sequence", WHOLE)
            )
        streamer.infer(node)  # every row is a sample of its own
        spread(streamer, node, flow, 0)
        return
    seen, fill = window_of(streamer, node, flow)
    build = Builder(streamer.graph, node, node.name or node.op_type)
    if (flow.offset and seen.left) or (streamer.look_ahead and seen.right):
        x = streamer.padded(build, x, flow, fill)
    rows, tail = sizes(node.inputs[0])[flow.axis], seen.tail(flow.offset)  # type: ignore[arg-type]
    if tail > 0:
        x = streamer.joined(build, with_shape(x, node.inputs[0]), flow, tail, fill)
        needed = rows - seen.stride + seen.span + 1
        x = build.slice(x, flow.axis, 0, needed) if seen.lag(flow.offset) >= seen.stride else x
    elif tail < 0:
        x = build.slice(x, flow.axis, -tail, rows)
    streamer.finish(build)
    node.replace_input_with(0, x)
    unpad(node, flow.axis - 2, len(sizes(x)) - 2)
    streamer.infer(node)
    offset, short = seen.after(flow)
    spread(streamer, node, Flow(flow.axis, flow.rate * seen.stride, offset, short), flow.axis)


def with_shape(x: ir.Value, like: ir.Value | None) -> ir.Value:
    """x, which has the type and shape of another value."""
    assert like is not None
    x.shape, x.type = like.shape, like.type
    return x


def window_of(streamer: Streamer, node: ir.Node, flow: Flow) -> tuple[Window, float]:
    """What a node sees along time, and what it takes padding for.

    Raises:
        ExportError: padding that cannot be streamed.
    """
    place, spatial = flow.axis - 2, len(sizes(node.inputs[0])) - 2  # type: ignore[arg-type]
    kernel = attribute_ints(node, "kernel_shape", sizes(node.inputs[1])[2:] if node.op_type == "Conv" else ())  # type: ignore[arg-type]
    ones, zeros = [1] * spatial, [0] * 2 * spatial
    span = (kernel[place] - 1) * attribute_ints(node, "dilations", ones)[place]
    stride, pads = attribute_ints(node, "strides", ones)[place], attribute_ints(node, "pads", zeros)
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    left, right = pads[place], pads[place + spatial]
    if mode in ("SAME_UPPER", "SAME_LOWER") and stride == 1:
        left, right = (span // 2, span - span // 2) if mode == "SAME_UPPER" else (span - span // 2, span // 2)
    elif mode not in ("NOTSET", "VALID"):
        raise ExportError(streamer.refusal(node, f"its padding ({mode}) depends on how long the sequence is"))
    own = left or right
    left, right = left + flow.pads[0], right + flow.pads[1]
    if attribute_int(node, "ceil_mode", 0):
        raise ExportError(streamer.refusal(node, "its last window may be cut short (ceil_mode)"))
    if own and flow.pads != (0, 0) and (node.op_type != "Conv" or flow.fill):
        raise ExportError(streamer.refusal(node, "it has padding of its own beside a Pad"))
    if node.op_type == "AveragePool" and own and not attribute_int(node, "count_include_pad", 0):
        raise ExportError(streamer.refusal(node, "it leaves padding out of its means, at both ends of the sequence"))
    lowest = -LARGEST_FLOAT if node.op_type == "MaxPool" and own else flow.fill
    return Window(span, stride, left, right), lowest


def unpad(node: ir.Node, place: int, spatial: int) -> None:
    """Take the padding along time from a node."""
    pads = attribute_ints(node, "pads", [0] * 2 * spatial)
    mode = node.attributes.pop("auto_pad", None)
    if mode is not None and mode.as_string().startswith("SAME"):
        kernel, dilations = attribute_ints(node, "kernel_shape", ()), attribute_ints(node, "dilations", [1] * spatial)
        spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        small, large = [s // 2 for s in spans], [s - s // 2 for s in spans]
        pads = small + large if mode.as_string() == "SAME_UPPER" else large + small
    pads[place] = pads[place + spatial] = 0
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)


def pad(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """Padding along time waits for the window behind it; along other axes it is done."""
    x, flow, amounts = node.inputs[0], flows[0], known(node.inputs[1])
    assert x is not None
    rank, mode = len(sizes(x)), node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    axes = known(node.inputs[3]) if len(node.inputs) > 3 else None
    if amounts is None:
        raise ExportError(streamer.refusal(node, "how much it pads is computed from the data"))
    places = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    half = len(places)
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(places):
        before[axis], after[axis] = int(amounts[i]), int(amounts[half + i])
    left, right = before[flow.axis], after[flow.axis]
    value = known(node.inputs[2]) if len(node.inputs) > 2 else None
    # a state starts from finite numbers; below the lowest of them nothing is left for a maximum to see
    fill = 0.0 if value is None or value.size == 0 else float(np.clip(value.item(), -LARGEST_FLOAT, LARGEST_FLOAT))
    if (left or right) and (mode != "constant" or left < 0):
        raise ExportError(streamer.refusal(node, f"it pads the sequence with {mode} rows, or cuts it"))
    if flow.pads != (0, 0) and fill != flow.fill:
        raise ExportError(streamer.refusal(node, "it pads with another value than the Pad before it"))
    before[flow.axis] = after[flow.axis] = 0
    if any(before) or any(after):
        build = Builder(streamer.graph, node, node.name or "Pad")
        node.replace_input_with(1, build.ints("pads", [*before, *after]))
        if axes is not None:
            node.replace_input_with(3, build.ints("axes", list(range(rank))))
        streamer.infer(node)
    else:
        old = node.outputs[0]
        streamer.become(node, [x])
        streamer.flows.pop(old, None)
    both = (flow.pads[0] + left, flow.pads[1] + right)
    target = node.outputs[0] if any(before) or any(after) else x
    if target is x and len(x.uses()) > 1:
        raise ExportError(streamer.refusal(node, "what it pads is read by others too"))
    streamer.flows[target] = Flow(flow.axis, flow.rate, flow.offset, flow.short, both, fill)


def cut(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """A Slice: along time it only changes where rows are counted from."""
    x, flow = node.inputs[0], flows[0]
    assert x is not None
    parts = [known(value) for value in node.inputs[1:]]
    if any(part is None for part in parts):
        raise ExportError(streamer.refusal(node, "what it takes is computed from the data"))
    starts, ends = (part.tolist() for part in parts[:2] if part is not None)
    axes = [int(a) % len(sizes(x)) for a in parts[2].tolist()] if len(parts) > 2 and parts[2] is not None else []
    axes = axes or list(range(len(starts)))
    steps = parts[3].tolist() if len(parts) > 3 and parts[3] is not None else [1] * len(starts)
    if flow.axis not in axes:
        streamer.infer(node)
        spread(streamer, node, flow, flow.axis)
        return
    at = axes.index(flow.axis)
    start, end, step = starts[at], ends[at], steps[at]
    if step != 1 or start < 0 or (0 <= end < OPEN_END):
        raise ExportError(streamer.refusal(node, f"it takes rows {start} to {end} by {step} of the whole sequence"))
    lost = start - (end if end < 0 else 0)
    rest = [i for i in range(len(axes)) if i != at]
    moved = Flow(flow.axis, flow.rate, flow.offset + start, flow.short + lost)
    if not rest:
        build = Builder(streamer.graph, node, node.name or "Slice")
        twin = build.reshape(x, sizes(x))  # x itself goes on under its own count
        streamer.become(node, [twin])
        streamer.flows[twin] = moved
        return
    build = Builder(streamer.graph, node, node.name or "Slice")
    for index, numbers in ((1, starts), (2, ends), (3, axes), (4, steps)):
        if index < len(node.inputs):
            node.replace_input_with(index, build.ints("part", [numbers[i] for i in rest]))
    streamer.infer(node)
    spread(streamer, node, moved, flow.axis)


def transpose(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    flow = flows[0]
    streamer.infer(node)
    rank = len(sizes(node.outputs[0]))
    order = attribute_ints(node, "perm", list(reversed(range(rank))))
    spread(streamer, node, flow, order.index(flow.axis))


def reshape(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten, Expand: time has to stay an axis of its own."""
    flow, x = flows[0], node.inputs[0]
    assert x is not None
    streamer.infer(node)
    axis = axis_after(sizes(x), sizes(node.outputs[0]), flow.axis)
    if axis is None or set(flows) != {0}:
        raise ExportError(streamer.refusal(node, "it mixes time with another axis"))
    spread(streamer, node, flow, axis)


def product(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """MatMul, Gemm: rows of the left side by a constant matrix."""
    flow, x = flows.get(0), node.inputs[0]
    assert x is not None
    turned = node.op_type == "Gemm" and attribute_int(node, "transA", 0)
    if flow is None or set(flows) != {0} or flow.axis == len(sizes(x)) - 1 or turned:
        raise ExportError(streamer.refusal(node, "it multiplies along time, so it sees all of the sequence", WHOLE))
    streamer.infer(node)
    spread(streamer, node, flow, flow.axis + len(sizes(node.outputs[0])) - len(sizes(x)))


def reduction(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """Reductions, norms and Softmax: over other axes than time."""
    flow, x = flows[0], node.inputs[0]
    assert x is not None
    rank = len(sizes(x))
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        axes = list(range(attribute_int(node, "axis", -1) % rank, rank))
    elif node.op_type in ("Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin"):
        axes = [attribute_int(node, "axis", 0 if node.op_type.startswith("Arg") else -1) % rank]
    else:
        given = known(node.inputs[1]) if len(node.inputs) > 1 else None
        listed = attribute_ints(node, "axes", []) if given is None else [int(axis) for axis in given]
        axes = [axis % rank for axis in listed] or list(range(rank))
    if flow.axis in axes:
        raise ExportError(streamer.refusal(node, "it goes over all of the sequence", WHOLE))
    streamer.infer(node)
    dropped = len(sizes(node.outputs[0])) < rank
    spread(streamer, node, flow, flow.axis - (sum(axis < flow.axis for axis in axes) if dropped else 0))


def concatenation(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    _, flow = aligned(streamer, node, flows)
    rank = len(sizes(node.inputs[0]))  # type: ignore[arg-type]
    if attribute_int(node, "axis", 0) % rank == flow.axis or len({f.axis for f in flows.values()}) > 1:
        raise ExportError(streamer.refusal(node, "it puts rows before or behind the sequence"))
    if len(flows) < len(node.inputs) and sizes(node.inputs[0])[flow.axis] > 1:  # type: ignore[arg-type]
        raise ExportError(streamer.refusal(node, POSITION))
    streamer.infer(node)
    spread(streamer, node, flow, flow.axis)


def split(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    flow, x = flows[0], node.inputs[0]
    assert x is not None
    if attribute_int(node, "axis", 0) % len(sizes(x)) == flow.axis:
        raise ExportError(streamer.refusal(node, "it cuts the sequence into parts"))
    streamer.infer(node)
    spread(streamer, node, flow, flow.axis)


def gather(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """A lookup of every row's index in a constant table, or of constant places of an axis that is not time."""
    flow, index = next(iter(flows.values())), next(iter(flows))
    data, places = node.inputs[0], node.inputs[1]
    assert data is not None and places is not None
    axis = attribute_int(node, "axis", 0) % len(sizes(data))
    if len(flows) > 1 or (index == 0 and axis == flow.axis):
        raise ExportError(streamer.refusal(node, "it takes rows of the sequence by number"))
    streamer.infer(node)
    added = len(sizes(places)) - 1
    spread(streamer, node, flow, flow.axis + (axis if index == 1 else added if flow.axis > axis else 0))


def recurrent(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow]) -> None:
    """LSTM, GRU, RNN: forward in time, from a state where they started from constants."""
    batch_first = attribute_int(node, "layout", 0) == 1
    flow, x = walked_along(streamer, node, flows, int(batch_first))
    build = Builder(streamer.graph, node, node.name or node.op_type)
    if flow.offset:
        node.meta[REAL] = streamer.real_rows(build, flow, sizes(x)[flow.axis])
    hidden, batch = sizes(node.inputs[2])[2], sizes(x)[int(not batch_first)]  # type: ignore[arg-type]
    shape = [batch, 1, hidden] if batch_first else [1, batch, hidden]
    inputs, ends = carried_starts(streamer, build, node, shape)
    streamer.finish(build)
    twin = twin_of(streamer, node, inputs, build.base)
    after = Builder(streamer.graph, node, build.base)
    for end in ends:
        streamer.settle(after.reshape(twin.outputs[end], [1, *shape]))
    streamer.finish(after)
    streamer.become(node, twin.outputs)
    streamer.flows[twin.outputs[0]] = Flow(int(batch_first), flow.rate, flow.offset, flow.short)


def walked_along(streamer: Streamer, node: ir.Node, flows: Mapping[int, Flow], time: int) -> tuple[Flow, ir.Value]:
    """The flow of a recurrent layer's frames along axis `time`, and the frames.

    Raises:
        ExportError: it walks along something else, or in another direction, or is told where to stop.
    """
    flow, x = flows.get(0), node.inputs[0]
    if flow is None or x is None:
        raise ExportError(
            streamer.refusal(node, "its weights or its start have time, and what it walks along has none")
        )
    if set(flows) != {0}:
        others = ", ".join(value.name or "" for i, value in enumerate(node.inputs) if i in flows and i and value)
        raise ExportError(streamer.refusal(node, f"its weights or its start ({others}) have time too"))
    if flow.axis != time:
        raise ExportError(
            streamer.refusal(
                node, f"it walks along axis {time} of {list(sizes(x))}, and time is axis {flow.axis}", LAYOUT
            )
        )
    direction = node.attributes["direction"].as_string() if "direction" in node.attributes else "forward"
    if direction != "forward":
        raise ExportError(streamer.refusal(node, f"it walks {direction}, so it sees the future", WHOLE))
    if len(node.inputs) > SEQUENCE_LENGTHS and node.inputs[SEQUENCE_LENGTHS] is not None:
        raise ExportError(streamer.refusal(node, "it is told how long the sequence is"))
    return flow, x


def carried_starts(
    streamer: Streamer, build: Builder, node: ir.Node, shape: Sequence[int]
) -> tuple[list[ir.Value | None], list[int]]:
    """A layer's inputs with states [1, *shape] where it starts from constants, and the outputs that settle them.

    Raises:
        ExportError: something reads the state at the end of the sequence.
    """
    starts: list[Array | None] = [known(value) for value in node.inputs]
    inputs, outputs = [*node.inputs, *[None] * STARTS["c"]][: max(STARTS["c"] + 1, len(node.inputs))], node.outputs
    ends = []
    for index, letter in enumerate("hc" if node.op_type == "LSTM" else "h"):
        place, end = STARTS[letter], index + 1
        given = place < len(node.inputs) and node.inputs[place] is not None
        start = starts[place] if given else np.zeros(shape, np.float32)
        if start is None:
            continue  # an input of the model's own
        if end < len(outputs) and (outputs[end].uses() or outputs[end].is_graph_output()):
            raise ExportError(
                streamer.refusal(
                    node, f"its last state ({outputs[end].name}) is only known when the sequence ends", WHOLE
                )
            )
        state = streamer.carry(f"{build.base}_{letter}", start.reshape(1, *shape), "recurrent")
        inputs[place] = build.reshape(state, shape)
        ends.append(end)
    return inputs, ends


def twin_of(streamer: Streamer, node: ir.Node, inputs: Sequence[ir.Value | None], base: str) -> ir.Node:
    """A layer like `node` on other inputs, with all of its outputs named, in front of it."""
    states = 2 if node.op_type == "LSTM" else 1
    kept = [*inputs[: STARTS["h"] + states], *inputs[STARTS["c"] + 1 :]]
    twin = ir.Node(node.domain, node.op_type, kept, node.attributes.values(),
                   num_outputs=max(len(node.outputs), 1 + states), name=node.name)  # fmt: skip
    twin.meta.update(node.meta)
    for index, value in enumerate(twin.outputs):
        name = node.outputs[index].name if index < len(node.outputs) else None
        value.name = name or f"{base}.end{index}"
    streamer.graph.insert_before(node, twin)
    streamer.infer(twin)
    return twin


RULES: dict[str, Rule] = {
    **dict.fromkeys(ROW_BY_ROW.split(), row_by_row),
    **dict.fromkeys(("Conv", "AveragePool", "MaxPool"), window),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"), reshape),
    **dict.fromkeys(("MatMul", "Gemm"), product),
    **dict.fromkeys((f"Reduce{k}" for k in ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp")),
                    reduction),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "Hardmax", "ArgMax", "ArgMin"),
                    reduction),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    "Pad": pad, "Slice": cut, "Transpose": transpose, "Concat": concatenation, "Split": split, "Gather": gather,
}  # fmt: skip
