"""The whole step in integers: int8 products of weights, int16 between them; every scale is fixed by calibration.

    tensor                                 stored as                      scale
    weight of a product, >= 512 elements   int8 [in, out]                 one per output
    smaller weights (of recurrences)       int16                          one per output
    what a weight multiplies, on its left  uint8, with a zero point       one, by the calibrator
    and on its right                       int8                           one, by the calibrator
    biases and every other float tensor    int16                          one per group, twice the largest value seen
    wide states, and what is computed      float32                        none
    from them up to the next int8 product
    squares between x and a root or a      float32                        none
    logarithm of their sum

    before                            after
    Add(MatMul(x, W), b)              Add(MatMul(DQ(Q(x)), DQ(W.q, axis=1)), DQ(b.q))
    y = Op(x), c = a constant         y = DQ(Q(Op(x)))                    c = DQ(c.q)
    Gather(W, i) of a table           as in `w8`, then DQ(Q(.))

Q and DQ are QuantizeLinear and DequantizeLinear of one scale. Operators that only move values (Reshape, Slice, Concat,
Where) and both ends of a state share one scale, a group: moving them needs no arithmetic, and a state comes back as it
left. Nothing is rounded between a product, its bias and a Relu, nor twice for a tensor that only int8 products read.
So a step runs in integers: int32 sums, one multiplication and shift per output, tables for Exp, Sigmoid and Tanh.

A product of two activations is int16 on both sides, for its sake more than its cost: the weights of an attention over
128 keys are 1/128 each where nothing stands out, two of the 255 steps of a byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.program import Array
from edgemem.quant import graph, w8
from edgemem.quant.calibration import Observed
from edgemem.quant.graph import FLOAT, Builder, Weight, as_float32, constant, numpy_of
from edgemem.quant.ranges import CALIBRATORS
from edgemem.quant.scheme import Job, Scheme

MOVES = frozenset({"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Identity", "Expand", "Flatten", "Gather"})
JOINS = frozenset({"Concat", "Where"})
SETTINGS = frozenset({"Pad", "Clip"})  # operators that want the constants after their first input as they are
MARGIN = 2.0  # of int16 ranges: inputs that calibration did not see, for one of fifteen bits
MASKED = 24.0  # exp(-24) is nothing: as far down as a mask has to reach
INT8, INT16, INT32 = ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32
MOST = {INT8: 127, INT16: 32767}


@dataclass
class Group:
    """Tensors that share a scale: what they were seen to hold, and whether they stay float32."""

    largest: float = 0.0
    masked: bool = False
    wide: bool = False

    @property
    def scale(self) -> np.float32:
        largest = max(self.largest * MARGIN, MASKED if self.masked else 0.0)
        return np.float32(largest / MOST[INT16]) if largest > 1e-30 else np.float32(1.0)


@dataclass
class Plan:
    """What is known before the graph is changed."""

    job: Job
    seen: dict[str, Observed]
    groups: dict[str, Group] = field(default_factory=dict)
    products: set[ir.Node] = field(default_factory=set)  # with int8 inputs


def check(settings: Mapping[str, int | str]) -> None:
    """Refuse a calibrator that there is not."""
    name = str(settings["calibrator"])
    if name not in CALIBRATORS:
        raise UsageError(f"scheme w8a8: calibrator must be one of {', '.join(CALIBRATORS)}, got {name!r}")


def apply(job: Job) -> None:
    """Rewrite the whole graph."""
    assert job.calibration is not None
    nodes = list(job.model.graph)
    floats = [value for node in nodes for value in node.outputs if value.dtype == FLOAT]
    inputs = [value for value in job.model.graph.inputs if value.dtype == FLOAT]
    seen = job.calibration.observe(job.model, [str(value.name) for value in (*inputs, *floats)])
    plan = Plan(job, seen)
    plan.groups = grouped(job, nodes, seen)
    plan.products = {node for node in nodes if is_product(job, node)}
    weights = {weight.name: weight for weight in job.weights()}
    for weight in weights.values():
        if weight.gathers:
            w8.quantize(job, weight)
    for node in nodes:
        if node.graph is not None and node.op_type == "MatMul":
            product(plan, node, weights)
    for node in nodes:
        if node.graph is not None:
            constants(plan, node)
    for value in (*inputs, *(v for node in list(job.model.graph) for v in node.outputs)):
        if value.dtype == FLOAT and value.name in plan.groups and not fused(plan, value):
            between(plan, value)


# --- groups ------------------------------------------------------------------------------------------------------


def grouped(job: Job, nodes: list[ir.Node], seen: dict[str, Observed]) -> dict[str, Group]:
    """The group of every float tensor of the graph, constants that are moved or joined included, by name."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    def join(names: Iterable[str]) -> None:
        first, *rest = names
        for other in rest:
            parent[root(other)] = root(first)

    for name in seen:
        root(name)
    for node in nodes:
        if node.op_type in MOVES | JOINS and node.outputs[0].dtype == FLOAT:
            join(str(value.name) for value in (node.outputs[0], *moved(node)))
    for state in job.contract.states:
        if state.dtype == "float32":
            join((state.input, state.output))
    wide = widened(job, nodes)
    groups: dict[str, Group] = {}
    for name in parent:
        group = groups.setdefault(root(name), Group())
        low, high = extent(job, seen, name)
        group.largest = max(group.largest, abs(low), abs(high))
        group.masked |= masked(job, seen, name)
        group.wide |= name in wide
    return {name: groups[root(name)] for name in parent}


def moved(node: ir.Node) -> list[ir.Value]:
    """The float inputs that an operator moves or joins."""
    kept = node.inputs[:1] if node.op_type in MOVES else node.inputs
    return [value for value in kept if value is not None and value.dtype == FLOAT]


def extent(job: Job, seen: dict[str, Observed], name: str) -> tuple[float, float]:
    """The least and the largest value, masks left out."""
    if name in seen:
        return (seen[name].low, seen[name].high) if seen[name].low <= seen[name].high else (0.0, 0.0)
    array = numpy_of(job.model.graph.initializers[name])
    real = array[np.abs(array) < Observed.SENTINEL]
    return (float(real.min()), float(real.max())) if real.size else (0.0, 0.0)


def masked(job: Job, seen: dict[str, Observed], name: str) -> bool:
    """Whether a tensor holds numbers that stand for minus infinity."""
    if name in seen:
        return seen[name].masked
    return bool((numpy_of(job.model.graph.initializers[name]) <= -Observed.SENTINEL).any())


def widened(job: Job, nodes: list[ir.Node]) -> set[str]:
    """Wide states, every float tensor between one of them and the next int8 product, comparison or output, and powers.

    So a state is updated in float32, and read in float32: a ratio of two sums that grow has no scale of int16. What a
    product makes of it is an activation like any other, even where another wide state follows.
    """
    wide = [state for state in job.contract.states if state.quant.get("wide")]
    power = powers(nodes)
    found = {state.input for state in wide}
    for node in nodes:
        rounds = is_product(job, node) or is_pair(node)
        if any(value is not None and value.name in found for value in node.inputs) and not rounds:
            found |= {str(value.name) for value in node.outputs if value.dtype == FLOAT}
    outputs = {str(value.name) for value in job.model.graph.outputs}
    return (found - outputs) | power | {name for state in wide for name in (state.input, state.output)}


def powers(nodes: Iterable[ir.Node]) -> set[str]:
    """What lies between squares and the root, or the logarithm, of their sum: a magnitude of a spectrum, for example.

    A square spans twice the decades of what it is made of. One scale of int16 would make zeros of all that is less than
    a 128th of the largest, of which the root makes something that matters again.
    """
    found: set[str] = set()
    for node in nodes:
        if node.op_type in ("Sqrt", "Log") and node.inputs[0] is not None:
            found |= squares(node.inputs[0]) or set()
    return found


def squares(value: ir.Value) -> set[str] | None:
    """The names of a sum of squares and of its terms; None where it is none."""
    node = value.producer()
    if node is None:
        return None
    x, y = (*node.inputs, None)[:2]
    if (node.op_type == "Mul" and x is y) or (node.op_type == "Pow" and is_two(y)):
        return {str(value.name)}
    if node.op_type != "Add":
        return None
    terms = [squares(term) for term in (x, y) if term is not None and not is_constant(term)]
    if not terms or None in terms:
        return None
    return {str(value.name)}.union(*(term for term in terms if term is not None))


def is_two(value: ir.Value | None) -> bool:
    """Whether a value is the number 2."""
    return value is not None and value.const_value is not None and bool((numpy_of(value) == 2).all())


# --- products ----------------------------------------------------------------------------------------------------


def is_product(job: Job, node: ir.Node) -> bool:
    """Whether a node is a product of int8, with a weight."""
    return node.op_type == "MatMul" and not is_pair(node) and not small(job, node)


def is_pair(node: ir.Node) -> bool:
    """Whether a node is a product of two activations."""
    return node.op_type == "MatMul" and not any(is_constant(value) for value in node.inputs)


def small(job: Job, node: ir.Node) -> bool:
    """Whether a product is one of a constant too small for int8, or one that is excluded."""
    return any(
        value is not None
        and value.const_value is not None
        and (value.const_value.size < job.smallest or job.excluded(str(value.name)))
        for value in node.inputs
    )


def product(plan: Plan, node: ir.Node, weights: dict[str, Weight]) -> None:
    """int8 on both sides of a product; its bias is a constant as others are, int16 in a scale of its own."""
    if node in plan.products:
        operand(plan, node, 0, weights)
        operand(plan, node, 1, weights)
    elif is_pair(node):
        for index, value in enumerate(node.inputs):
            assert value is not None
            if plan.groups[str(value.name)].wide:
                narrowed(plan, node, index, value)


def operand(plan: Plan, node: ir.Node, index: int, weights: dict[str, Weight]) -> None:
    """One input of a product in int8."""
    value = node.inputs[index]
    assert value is not None
    if value.name in weights:
        stored(plan.job, weights[str(value.name)], node, index)
        return
    if value.const_value is not None:  # a constant that is no matrix: quantized as a whole
        low, high = float(numpy_of(value).min()), float(numpy_of(value).max())
    else:
        seen = plan.seen[str(value.name)]
        calibrator = CALIBRATORS[str(plan.job.settings["calibrator"])]
        low, high = calibrator(seen.values, seen.low, seen.high) if seen.low <= seen.high else (0.0, 0.0)
    scale, zero = affine(low, high) if index == 0 else symmetric(low, high)
    made, _ = round_trip(plan.job.model, value, f"{value.name}.{'u8' if index == 0 else 'i8'}", scale, zero)
    node.replace_input_with(index, made)


def narrowed(plan: Plan, node: ir.Node, index: int, value: ir.Value) -> None:
    """A float32 input of a product of two activations in int16."""
    low, high = extent(plan.job, plan.seen, str(value.name))
    scale = Group(max(abs(low), abs(high))).scale
    made, _ = round_trip(plan.job.model, value, f"{value.name}.i16", scale, np.zeros((), np.int16))
    node.replace_input_with(index, made)


def stored(job: Job, weight: Weight, node: ir.Node, index: int) -> None:
    """The int8 matrix of a product, with one scale per output."""
    q, scale = w8.quantized(weight.rows)
    name = f"{weight.name}.q"
    if name not in job.model.graph.initializers:
        after = weight.stored(q * scale[:, None].astype(np.float32))
        job.record(weight.name, weight.array, after, "int8, scale per output", q.nbytes + scale.nbytes)
    build = Builder(job.model, weight.name, node)
    steps = as_float32(job.model, f"{weight.name}.scale", scale)
    value = build.op(
        "DequantizeLinear", build.constant("q", weight.stored(q)), steps, suffix="dequantized", axis=weight.output_axis
    )
    value.shape = weight.value.shape
    node.replace_input_with(index, value)


# --- between products --------------------------------------------------------------------------------------------


def constants(plan: Plan, node: ir.Node) -> None:
    """Float constants as int16: those that are moved in the scale of their group, the others in their own."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast") or node.outputs[0].dtype != FLOAT:
        return
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is None or value.dtype != FLOAT or plan.job.excluded(str(value.name)):
            continue
        if node.op_type in SETTINGS and index > 0:
            continue
        group = plan.groups.get(str(value.name)) or plan.groups.get(str(node.outputs[0].name))
        if group is not None and group.wide:
            continue
        array = numpy_of(value)
        joined = node.op_type in MOVES | JOINS and value in moved(node)
        node.replace_input_with(index, int16_constant(plan, node, value, array, joined))


def int16_constant(plan: Plan, node: ir.Node, value: ir.Value, array: Array, joined: bool) -> ir.Value:
    """DequantizeLinear of an int16 constant; a matrix of a small product has one scale per output."""
    model, most = plan.job.model, MOST[INT16]
    by_output = node.op_type == "MatMul" and array.ndim == 2 and value is node.inputs[1]
    if joined:
        scale: Array = np.asarray(plan.groups[str(value.name)].scale)
    else:
        largest = np.abs(array.astype(np.float64)).max(axis=0 if by_output else None)
        scale = np.asarray(np.where(largest > 1e-30, largest / most, 1.0), np.float32)
    q = np.clip(np.rint(array / scale.astype(np.float64)), -most - 1, most).astype(np.int16)
    name = f"{value.name}.i16" + (".joined" if joined else "")
    if name not in model.graph.initializers:
        after = (q * scale).astype(np.float32)
        real = np.abs(array) < Observed.SENTINEL
        plan.job.record(str(value.name), np.where(real, array, 0), np.where(real, after, 0), "int16", q.nbytes)
    build = Builder(model, name, node)
    attributes: dict[str, Any] = {"axis": 1} if by_output else {}
    made: ir.Value = build.op(
        "DequantizeLinear", constant(model, name, q), build.constant("scale", scale), suffix="value", **attributes
    )
    made.shape = value.shape
    return made


def fused(plan: Plan, value: ir.Value) -> bool:
    """Whether a tensor needs no rounding of its own: moved, wide, summed up further, or read by int8 products alone."""
    node = value.producer()
    uses = list(value.uses())
    if plan.groups[str(value.name)].wide or (node is not None and node.op_type in MOVES | JOINS):
        return True
    if node is not None and node.op_type in ("QuantizeLinear", "DequantizeLinear", "Cast"):
        return True
    if value.is_graph_output() or not uses:
        return value.dtype != FLOAT or not value.is_graph_output()
    readers = {reader.op_type for reader, _ in uses}
    if readers == {"QuantizeLinear"}:
        return True
    one = len(uses) == 1
    if node is not None and node.op_type == "MatMul" and one and readers == {"Add"}:
        other = uses[0][0].inputs[1 - uses[0][1]]
        made_by = other.producer() if other is not None else None
        return made_by is not None and made_by.op_type == "DequantizeLinear" and is_constant(made_by.inputs[0])
    return node is not None and node.op_type in ("MatMul", "Add") and one and readers == {"Relu"}


def is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None


def between(plan: Plan, value: ir.Value) -> None:
    """Round a tensor to int16 where it is made."""
    model, name = plan.job.model, str(value.name)
    uses = list(value.uses())
    zero = np.zeros((), np.int16)
    if value.is_graph_output():
        output = next(i for i, v in enumerate(model.graph.outputs) if v is value)
        value.name = graph.unused(model, f"{name}.exact")
    made, _ = round_trip(model, value, f"{name}.i16", plan.groups[name].scale, zero)
    for reader, index in uses:
        reader.replace_input_with(index, made)
    if value.is_graph_output():
        model.graph.outputs[output] = made
        made.name = name


def round_trip(
    model: ir.Model, value: ir.Value, name: str, scale: np.float32, zero: Array
) -> tuple[ir.Value, ir.Value]:
    """DequantizeLinear(QuantizeLinear(value)), the same one for every reader; returns it and its scale."""
    for reader, _ in value.uses():
        if reader.op_type == "QuantizeLinear" and reader.name == name:
            return next(iter(reader.outputs[0].uses()))[0].outputs[0], reader.inputs[1]  # type: ignore[return-value]
    step = constant(model, f"{name}.scale", np.asarray(scale))
    offset = constant(model, f"zero.{zero.dtype}.{int(zero)}", zero)
    q = ir.node("QuantizeLinear", [value, step, offset], name=name)
    q.outputs[0].name, q.outputs[0].type = graph.unused(model, name), ir.TensorType(ir.DataType.from_numpy(zero.dtype))
    dq = ir.node("DequantizeLinear", [q.outputs[0], step, offset], name=f"{name}.value")
    dq.outputs[0].name, dq.outputs[0].type = graph.unused(model, f"{name}.value"), ir.TensorType(FLOAT)
    q.outputs[0].shape = dq.outputs[0].shape = value.shape
    source = value.producer()
    if source is None:
        model.graph.insert_before(next(iter(model.graph)), [q, dq])
    else:
        model.graph.insert_after(source, [q, dq])
    return dq.outputs[0], step


def affine(low: float, high: float) -> tuple[np.float32, Array]:
    """Scale and zero point of uint8 over a range that includes 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255) if high - low > 1e-30 else np.float32(1.0)
    return scale, np.asarray(np.clip(np.rint(-low / float(scale)), 0, 255), np.uint8)


def symmetric(low: float, high: float) -> tuple[np.float32, Array]:
    """Scale of int8 without a zero point."""
    largest = max(-low, high)
    return np.float32(largest / MOST[INT8] if largest > 1e-30 else 1.0), np.zeros((), np.int8)


SCHEME = Scheme(
    "w8a8",
    "the whole step in integers: int8 products, int16 between them, scales from calibration",
    apply,
    {"calibrator": "mse"},
    needs_data=True,
    uses_data=True,
    check=check,
)
