"""Narrow states: what a stream remembers, stored in fewer bits, and the choice by measured drift.

    policy         before        after                                                       bytes per element
    f16            NAME_in       Cast(NAME_in)             NAME_out = Cast(x)                 2
    i16, i8        NAME_in       DQ(NAME_in, S, axis=-1)   NAME_out = Q(x, S, axis=-1)        2, 1
    i8+feedback    NAME_in       DQ(NAME_in, S, axis=-1)   y = x + DQ(NAME.error_in, S / 254)
                                                           NAME_out = Q(y, S)
                                                           NAME.error_out = Q(y - DQ(NAME_out), S / 254)   2
    i8+dither      NAME_in       DQ(NAME_in, S, axis=-1)   u = frac(phase + rows + columns)
                                                           NAME_out = Cast(Clip(Floor(x / S + u), -127, 127))   1
                                                           NAME.phase_out = frac(NAME.phase_in + golden)

S has one scale per element of the last axis, from states that were rolled over real sequences. Plain i8 loses updates
below half a step, and a slow accumulator stands still. Feedback carries what rounding left over into the next step.
Dither rounds up as often as the remainder says, by a low-discrepancy sequence in place of random numbers, so that equal
streams stay equal. States that the model declares wide (log domain, unbounded sums) and counters stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.contract import Contract, StateFacts
from edgemem.errors import UsageError
from edgemem.program import Array
from edgemem.quant import graph
from edgemem.quant.calibration import Data, Observed, starts, steps
from edgemem.quant.graph import FLOAT, Builder, constant
from edgemem.tasks import Tick, quiet
from edgemem.text import nearest

POLICIES = ("f32", "f16", "i16", "i8", "i8+feedback", "i8+dither")
AUTO = ("i8", "i8+dither", "i16", "f16")  # from narrow to wide; f32 is what is left
MARGIN = 1.25  # of the largest value seen
FLOOR = 1e-3  # of the largest channel: channels that calibration never saw at work keep a step of their own
ERROR_STEPS = 254  # of a feedback's int8 in one step of the state
GOLDEN, PLASTIC, PLASTIC_SQUARE = 0.6180339887, 0.7548776662, 0.5698402910  # of the low-discrepancy sequences
SEARCH_STEPS, DRIFT_STEPS = 500, 5000
BUDGET = 0.005
HALF = float(np.finfo(np.float16).max)
INT8, INT16, FLOAT16 = ir.DataType.INT8, ir.DataType.INT16, ir.DataType.FLOAT16
KINDS = {"i16": (INT16, 32767), "i8": (INT8, 127), "i8+feedback": (INT8, 127), "i8+dither": (INT8, 127)}


def may_be_narrow(state: StateFacts) -> bool:
    """Whether a state is neither wide nor a counter, and float32."""
    return not state.quant.get("wide") and state.role != "counter" and state.dtype == "float32"


def scales(contract: Contract, seen: Mapping[str, Observed]) -> dict[str, Array]:
    """The largest magnitude that every channel of a state may take: [channels] by state."""
    found = {}
    for state in filter(may_be_narrow, contract.states):
        largest = np.maximum(seen[state.input].channel_max, seen[state.output].channel_max) * MARGIN
        largest = np.maximum(largest, max(float(largest.max(initial=0.0)) * FLOOR, 1e-6))
        found[state.name] = np.broadcast_to(largest, state.shape[-1:]).astype(np.float32)
    return found


# --- the graph ---------------------------------------------------------------------------------------------------


@dataclass
class Ends:
    """A state's ends in the graph: the new input, the old one, what the step computes, and its place in the outputs."""

    read: ir.Value
    old: ir.Value
    made: ir.Value
    output: int


def rewrite(model: ir.Model, contract: Contract, chosen: Mapping[str, str], largest: Mapping[str, Array]) -> Contract:
    """Store states as `chosen` says, in place; the contract of the result. `largest` is from `scales`."""
    states: list[StateFacts] = []
    for state in contract.states:
        policy = chosen.get(state.name, "f32")
        if policy == "f32":
            states.append(state)
        elif policy == "f16":
            states.append(as_half(model, state))
        else:
            states.extend(as_integers(model, state, policy, largest[state.name]))
    return contract.model_copy(update={"states": tuple(states)})


def as_half(model: ir.Model, state: StateFacts) -> StateFacts:
    """float16 outside, float32 inside."""
    ends = detached(model, state, FLOAT16)
    read = Builder(model, state.name, first(model)).op("Cast", ends.read, suffix="read", to=int(FLOAT))
    connect(model, state, ends, read, Builder(model, state.name).op("Cast", ends.made, suffix="stored",
                                                                   dtype=FLOAT16, to=int(FLOAT16)))  # fmt: skip
    return state.model_copy(
        update={
            "dtype": "float16",
            "start": narrow_start(model, state, lambda x: x.astype(np.float16)),
            "quant": {**state.quant, "policy": "f16"},
        }
    )


def as_integers(model: ir.Model, state: StateFacts, policy: str, largest: Array) -> list[StateFacts]:
    """Integers outside, float32 inside; a helper state where the policy has one."""
    kind, most = KINDS[policy]
    shared = shared_scale(model, state, kind)
    values = (largest / most if shared is None else np.full(largest.shape, shared)).astype(np.float32)
    scale = constant(model, f"{state.name}.scale", values)
    ends = detached(model, state, kind)
    front, back = Builder(model, state.name, first(model)), Builder(model, state.name)
    read = front.op("DequantizeLinear", ends.read, scale, suffix="read", axis=-1)
    zero = constant(model, f"zeros.{kind.numpy()}.{len(values)}", np.zeros(values.shape, kind.numpy()))
    helpers: list[StateFacts] = []
    if policy == "i8+dither":
        made, extra = dithered(model, state, ends.made, scale)
        helpers.append(extra)
    elif policy == "i8+feedback":
        made, extra = fed_back(model, state, ends.made, scale, values, zero)
        helpers.append(extra)
    else:
        made = back.op("QuantizeLinear", ends.made, scale, zero, suffix="stored", dtype=kind, axis=-1)
    connect(model, state, ends, read, made)
    bounds = np.iinfo(kind.numpy())
    whole = state.model_copy(
        update={
            "dtype": str(kind.numpy()),
            "start": narrow_start(
                model, state, lambda x: np.clip(np.rint(x / values), bounds.min, bounds.max).astype(kind.numpy())
            ),
            "range": tuple(float(np.clip(np.rint(edge / values.max()), -most, most)) for edge in state.range),
            "quant": {**state.quant, "policy": policy, "scale": scale.name},
        }
    )
    return [whole, *helpers]


def shared_scale(model: ir.Model, state: StateFacts, kind: ir.DataType) -> float | None:
    """The scale at which the graph rounds this state to int16 anyway, if it does: then nothing is rounded twice."""
    value = next(v for v in model.graph.inputs if v.name == state.input)
    for node, _ in value.uses():
        scale = node.inputs[1] if node.op_type == "QuantizeLinear" else None
        if scale is not None and scale.const_value is not None and node.outputs[0].dtype == kind:
            return float(graph.numpy_of(scale))
    return None


def fed_back(
    model: ir.Model, state: StateFacts, x: ir.Value, scale: ir.Value, values: Array, zero: ir.Value
) -> tuple[ir.Value, StateFacts]:
    """The rounded sum of a state and the error of its last rounding; the error goes on as a state."""
    build, name = Builder(model, state.name), f"{state.name}.error"
    fine = build.constant("error.scale", (values / ERROR_STEPS).astype(np.float32))
    error = ir.Value(name=f"{name}_in", shape=ir.Shape(state.shape), type=ir.TensorType(INT8))
    model.graph.inputs.append(error)
    carried = build.op("DequantizeLinear", error, fine, suffix="carried", axis=-1)
    total = build.op("Add", x, carried, suffix="total")
    made = build.op("QuantizeLinear", total, scale, zero, suffix="stored", dtype=INT8, axis=-1)
    back = build.op("DequantizeLinear", made, scale, suffix="rounded", axis=-1)
    left = build.op("Sub", total, back, suffix="left")
    after = build.op("QuantizeLinear", left, fine, zero, suffix="error", dtype=INT8, axis=-1)
    return made, helper(model, state, name, after, "int8", state.shape, (-127.0, 127.0))


def dithered(model: ir.Model, state: StateFacts, x: ir.Value, scale: ir.Value) -> tuple[ir.Value, StateFacts]:
    """Rounded down after a shift between 0 and 1 step that runs through a low-discrepancy sequence."""
    build, name = Builder(model, state.name), f"{state.name}.phase"
    shape = (state.shape[0], *(1 for _ in state.shape[1:]))
    phase = ir.Value(name=f"{name}_in", shape=ir.Shape(shape), type=ir.TensorType(FLOAT))
    model.graph.inputs.append(phase)
    shifts = build.op("Add", phase, build.constant("columns", offsets(state.shape[-1], PLASTIC)), suffix="shifts")
    if len(state.shape) > 2:
        rows = build.constant("rows", offsets(state.shape[-2], PLASTIC_SQUARE)[:, None])
        shifts = build.op("Add", shifts, rows, suffix="shifts")
    shift = build.op("Sub", shifts, build.op("Floor", shifts, suffix="whole"), suffix="shift")
    exact = build.op("Div", x, scale, suffix="exact")
    down = build.op("Floor", build.op("Add", exact, shift, suffix="shifted"), suffix="down")
    most = [build.constant(side, np.array(value, np.float32)) for side, value in (("low", -127), ("high", 127))]
    kept = build.op("Clip", down, *most, suffix="kept")
    made = build.op("Cast", kept, suffix="stored", dtype=INT8, to=int(INT8))
    moved = build.op("Add", phase, build.constant("golden", np.array(GOLDEN, np.float32)), suffix="moved")
    after = build.op("Sub", moved, build.op("Floor", moved, suffix="turns"), suffix="phase")
    return made, helper(model, state, name, after, "float32", shape, (0.0, 1.0))


def offsets(count: int, ratio: float) -> Array:
    """frac(k ratio), k = 0 .. count-1."""
    return np.asarray(np.arange(count) * ratio % 1.0, np.float32)


def helper(
    model: ir.Model, state: StateFacts, name: str, after: ir.Value, dtype: str, shape: Any, span: tuple[float, float]
) -> StateFacts:
    """Declare a state that only serves the rounding of `state`."""
    after.name = f"{name}_out"
    after.shape = ir.Shape(shape)
    model.graph.outputs.append(after)
    return StateFacts(
        name=name, shape=tuple(shape), dtype=dtype, start=0.0, role=state.role, range=span,
        quant={"policy": "f32", "of": state.name},
    )  # fmt: skip


def detached(model: ir.Model, state: StateFacts, kind: ir.DataType) -> Ends:
    """A state's ends, a new graph input in place of the old one."""
    place = next(i for i, v in enumerate(model.graph.inputs) if v.name == state.input)
    output = next(i for i, v in enumerate(model.graph.outputs) if v.name == state.output)
    old, made = model.graph.inputs[place], model.graph.outputs[output]
    new = ir.Value(name=state.input, shape=old.shape, type=ir.TensorType(kind))
    old.name = f"{state.name}.old"
    model.graph.inputs[place] = new
    made.name = graph.unused(model, f"{state.output}.exact")
    return Ends(new, old, made, output)


def connect(model: ir.Model, state: StateFacts, ends: Ends, read: ir.Value, made: ir.Value) -> None:
    """Let the step read the widened state, and give the narrow one away."""
    read.shape = ends.old.shape
    ends.old.replace_all_uses_with(read)
    made.name, made.shape = state.output, ends.old.shape
    model.graph.outputs[ends.output] = made


def first(model: ir.Model) -> ir.Node:
    return next(iter(model.graph))


def narrow_start(model: ir.Model, state: StateFacts, narrow: Callable[[Array], Array]) -> float | str:
    """The start value in the stored type: 0 stays a number, all else becomes an initializer."""
    if state.start == 0.0:
        return 0.0
    if isinstance(state.start, str):
        value = graph.numpy_of(model.graph.initializers.pop(state.start))
    else:
        value = np.full(state.shape[1:], state.start, np.float32)
    name = f"{state.name}_start"
    constant(model, name, narrow(value))
    return name


# --- the choice --------------------------------------------------------------------------------------------------


class Rounder:
    """What a policy does to a state between two steps, in NumPy."""

    def __init__(self, policy: str, largest: Array, shape: tuple[int, ...]) -> None:
        self.policy, self.shape = policy, shape
        self.most = KINDS[policy][1] if policy in KINDS else 0
        self.scale = largest / self.most if self.most else largest
        self.columns = offsets(shape[-1], PLASTIC)
        self.rows = offsets(shape[-2], PLASTIC_SQUARE)[:, None] if len(shape) > 2 else np.zeros(1, np.float32)
        self.reset()

    def reset(self) -> None:
        self.error = np.zeros(self.shape, np.float32)
        self.phase = 0.0

    def __call__(self, x: Array) -> Array:
        """float32 -> the float32 that the next step reads."""
        if self.policy == "f32":
            return x
        if self.policy == "f16":
            return np.clip(x, -HALF, HALF).astype(np.float16).astype(np.float32)
        if self.policy == "i8+dither":
            shift = (self.phase + self.columns + self.rows) % 1.0
            self.phase = (self.phase + GOLDEN) % 1.0
            return np.asarray(np.clip(np.floor(x / self.scale + shift), -127, 127) * self.scale, np.float32)
        total = x + self.error if self.policy == "i8+feedback" else x
        rounded = np.clip(np.rint(total / self.scale), -self.most - 1, self.most) * self.scale
        if self.policy == "i8+feedback":
            fine = self.scale / ERROR_STEPS
            self.error = np.clip(np.rint((total - rounded) / fine), -128, 127) * fine
        return np.asarray(rounded, np.float32)


def drift(
    session: Any, model: ir.Model, contract: Contract, data: Data, policies: Mapping[str, str],
    largest: Mapping[str, Array], count: int,
) -> float:  # fmt: skip
    """RMS difference of the outputs that narrow states make, relative to the outputs' RMS, over `count` steps.

    One run without a reset: what a slow error does is what is asked for.
    """
    results = [output.name for output in session.get_outputs()]
    rounders = {
        s.input: Rounder(policies[s.name], largest[s.name], s.shape) for s in contract.states if s.name in policies
    }
    exact, narrow = starts(model, contract), starts(model, contract)
    narrow |= {name: rounder(narrow[name]) for name, rounder in rounders.items()}
    difference = size = 0.0
    for _, inputs in steps(contract, data, count, runs=()):
        wanted = dict(zip(results, session.run(results, {**inputs, **exact}), strict=True))
        came = dict(zip(results, session.run(results, {**inputs, **narrow}), strict=True))
        for port in contract.outputs:
            difference += float(((came[port.name] - wanted[port.name]).astype(np.float64) ** 2).sum())
            size += float((wanted[port.name].astype(np.float64) ** 2).sum())
        exact = {s.input: wanted[s.output] for s in contract.states}
        narrow = {s.input: came[s.output] for s in contract.states}
        narrow |= {name: rounder(narrow[name]) for name, rounder in rounders.items()}
    return float(np.sqrt(difference / max(size, 1e-30)))


def automatic(
    model: ir.Model, contract: Contract, data: Data, largest: Mapping[str, Array], budget: float = BUDGET,
    count: int = DRIFT_STEPS, loss: Callable[[Mapping[str, str]], float] | None = None,
    tick: Tick = quiet,
) -> tuple[dict[str, str], dict[str, Any]]:  # fmt: skip
    """The narrowest policy of every state that keeps all together within `budget`, and the measurements.

    The budget is of the outputs' drift over `count` steps: each state alone decides where to begin, then the worst is
    widened until all together hold. With `loss`, which says how much worse a task's metric becomes, it is of that, and
    every state begins as narrow as can be; the drift is measured beside it.
    """
    from edgemem.quant.calibration import runnable

    session = runnable(model, [])
    names = list(largest)
    share = budget / max(1.0, np.sqrt(len(names))) if loss is None else np.inf
    alone: dict[str, dict[str, float]] = {name: {} for name in names}

    def drift_of(chosen: Mapping[str, str], steps: int = count) -> float:
        return drift(session, model, contract, data, chosen, largest, steps)

    chosen = {}
    for index, name in enumerate(names):
        tick(index / len(names))
        for policy in (*AUTO, "f32"):
            alone[name][policy] = drift_of({name: policy}, SEARCH_STEPS)
            if alone[name][policy] <= share:
                break
        chosen[name] = policy
    cost = drift_of if loss is None else loss
    while (together := cost(chosen)) > budget:
        worst = max((n for n in names if chosen[n] != "f32"), key=lambda n: alone[n][chosen[n]])
        wider = (*AUTO, "f32")[AUTO.index(chosen[worst]) + 1]
        chosen[worst] = wider
        if wider not in alone[worst]:
            alone[worst][wider] = drift_of({worst: wider}, SEARCH_STEPS)
    facts: dict[str, Any] = {"budget": budget, "steps": count, "alone": alone}
    if loss is None:
        return chosen, facts | {"relative_output_error": together}
    return chosen, facts | {"metric_loss": together, "relative_output_error": drift_of(chosen)}


def check_policy(policy: str) -> None:
    """Refuse a word that is no policy.

    Raises:
        UsageError: there is none of that name; the nearest is suggested.
    """
    if policy not in (*POLICIES, "auto"):
        suggested = nearest(policy, (*POLICIES, "auto"), 0.5)
        raise UsageError(f"unknown state policy {policy!r}{suggested}; there are {', '.join(POLICIES)} and auto")


def chosen_policies(policy: str, contract: Contract) -> dict[str, str]:
    """One policy for all states that may be narrow."""
    return {state.name: policy for state in contract.states if may_be_narrow(state)}
