"""The contract of an adopted graph: its ports, states and start values as the contract has them."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgemem.contract import Chunk, Contract, InputFacts, Latency, ModelFacts, OutputFacts, Source, StateFacts
from edgemem.digests import digest
from edgemem.errors import InputError, UsageError
from edgemem.export.adopt import boundary, detect
from edgemem.export.adopt.build import Array, constant, sizes
from edgemem.export.adopt.draft import Draft
from edgemem.export.adopt.flow import Carried
from edgemem.export.adopt.request import OPTIONS, Request
from edgemem.foreign import KEY, STATE, TAIL, Adoption, Named, tail_axis, to_contract
from edgemem.runner import array_file
from edgemem.samplerows import SampleRows
from edgemem.state import StateRole
from edgemem.text import counted, nearest
from edgemem.weights import START, tensor_digest


def start_values(draft: Draft, adoption: Adoption) -> dict[str, Array]:
    """The start of every state that does not begin with zeros, by the contract's name, of one stream.

    Raises:
        UsageError: `--init` for something that is no state.
        InputError: an array that does not fit its state.
    """
    inputs = draft.entries()
    found = {c.name: c.start[0] for c in draft.carried if bool((c.start != c.start.flat[0]).any())}
    pairs = {pair.input: pair for pair in adoption.states}
    for name, path in draft.request.inits.items():
        if name not in pairs:
            raise UsageError(f"--init {name}: there is no such state; there are {', '.join(pairs) or 'none'}")
        value, pair = inputs[name], pairs[name]
        array = np.array(array_file(path))
        assert value.dtype is not None
        if array.shape != sizes(value) or array.dtype != value.dtype.numpy():
            raise InputError(
                f"--init {name}: {detect.described(value)} was wanted, {path} has {array.dtype}{list(array.shape)}; "
                "save the start value as the foreign file takes it"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0].tolist()
            raise InputError(
                f"--init {name}: {path} holds {array[tuple(place)]} at {place}, and a start value is finite; "
                f"save finite numbers, for example numpy.save({str(path)!r}, numpy.zeros({list(array.shape)}, "
                f"'{array.dtype}')), or leave --init out to start from zeros"
            )
        whole = to_contract(array, pair.axes, STATE)
        if not (whole == whole[:1]).all():
            raise InputError(f"--init {name}: every stream starts alike, but {path} differs along the batch; give one")
        found[pair.name] = whole[0]
    return found


def check_ranges(draft: Draft, adoption: Adoption) -> None:
    """Refuse `--range` of anything but integer inputs and states: nothing would heed it.

    Raises:
        UsageError: naming what it was given for.
    """
    inputs, states = draft.entries(), [pair.input for pair in adoption.states]
    ports = [port.foreign for port in adoption.inputs]
    for name, (low, high) in draft.request.ranges.items():
        option = f"--range {name}={low:g},{high:g}"
        if name not in ports and name not in states:
            known = [*ports, *states]
            raise UsageError(
                f"{option}: there is no input or state {name}{nearest(name, known)}; there are {', '.join(known)}"
            )
        if name in ports and dtype_of(inputs[name]).startswith("float"):
            raise UsageError(
                f"{option}: input {name} is of floats, which may have any value; a range is of an input's integers, or "
                "of a state; leave it out"
            )


def port_facts(draft: Draft, adoption: Adoption, frames: int) -> tuple[list[InputFacts], list[OutputFacts]]:
    """Inputs and outputs as the contract has them; an input's integers run over the table that they look up."""
    inputs, outputs, request = draft.entries(), draft.results(), draft.request
    found = []
    for index, port in enumerate(adoption.inputs):
        value = inputs[port.foreign]
        shape = list(boundary.contract_shape(sizes(value), port.axes, "BT"))
        shape[tail_axis(port.axes)] -= adoption.tails.get(port.name, 0)
        if adoption.frame_rows > 1:
            shape[1:2] = [frames, adoption.frame_rows]
        dtype = dtype_of(value)
        floating = dtype.startswith("float")
        rows = None
        if index == 0 and request.sound is not None:
            rows = sound_rows(port, shape, dtype, request.sound).to_dict()
        found.append(
            InputFacts(
                name=port.name,
                shape=tuple(shape),
                dtype=dtype,
                role="samples" if rows else "features" if floating else "tokens",
                range=None if floating else integer_range(value, request),
                frontend=rows,
            )
        )
    shown = [
        OutputFacts(
            name=port.name,
            shape=boundary.contract_shape(sizes(outputs[port.foreign]), port.axes, "BT"),
            dtype=dtype_of(outputs[port.foreign]),
            role="values",
        )
        for port in adoption.outputs
    ]
    if draft.streamed is not None and draft.streamed.look_ahead:
        found.append(InputFacts(name="valid", shape=(1,), dtype="int64", role="valid", range=(0, frames)))
    words = found[0].range
    if words is not None and len(shown[0].shape) == 3 and shown[0].shape[-1] == words[1] + 1:
        shown[0] = shown[0].model_copy(update={"role": "logits"})
    return found, shown


def sound_rows(port: Named, shape: Sequence[int], dtype: str, rate: int) -> SampleRows:
    """How sound is cut for an input of raw samples.

    Raises:
        UsageError: the input takes more than a row of float samples a step.
    """
    if len(shape) != 3 or dtype != "float32":
        raise UsageError(
            f"--sound {rate}: raw samples go into a float32 input of one row a frame; {port.foreign} takes {dtype} "
            f"with axes {port.axes}; say --layout {port.foreign}=BF"
        )
    return SampleRows(sample_rate=rate, row_samples=shape[2])


def dtype_of(value: ir.Value) -> str:
    assert value.dtype is not None
    return str(value.dtype.numpy().name)


def integer_range(value: ir.Value, request: Request) -> tuple[int, int]:
    """What an integer input may be: as `--range` says, or the rows of the table that it looks up.

    Raises:
        UsageError: nobody knows, or `--range` has no whole numbers.
    """
    name = value.name or ""
    if name in request.ranges:
        low, high = request.ranges[name]
        if not (float(low).is_integer() and float(high).is_integer()):
            raise UsageError(f"--range {name}={low},{high}: {name} is of integers; two whole numbers were wanted")
        return int(low), int(high)
    if value.dtype == ir.DataType.BOOL:
        return 0, 1
    tables = [
        sizes(table)[0]
        for reader, index in detect.reached(value)
        if reader.op_type == "Gather" and index == 1 and (table := reader.inputs[0]) is not None
        and (reader.attributes.get("axis") is None or reader.attributes["axis"].as_int() == 0)
    ]  # fmt: skip
    if tables:
        return 0, min(tables) - 1
    raise UsageError(
        f"input {name} is of integers, whose range nobody can guess; say --range {name}=LOW,HIGH, for example --range "
        f"{name}=0,255, or, if it is the same in every step (a length, a rate, a mask), --set {name}=VALUE"
    )


def contract_of(
    draft: Draft,
    adoption: Adoption,
    frames: int,
    starts: Mapping[str, Array],
    facts: tuple[list[InputFacts], list[OutputFacts]],
) -> Contract:
    """The contract of the rewritten graph, its certificate still missing; start values go into the graph."""
    inputs, outputs = facts
    graph, request = draft.graph, draft.request
    ahead = draft.streamed.look_ahead if draft.streamed is not None else 0
    warm_up = ahead + max(adoption.short.values(), default=0)
    for name, array in starts.items():
        constant(graph, name + START, array)
    tensors = {n: tensor_digest(array_of(v)) for n, v in graph.initializers.items() if floating(v)}
    parameters = sum(
        math.prod(sizes(v)) for n, v in graph.initializers.items() if floating(v) and not n.endswith(START)
    )
    seconds = inputs[0].frontend and SampleRows.from_dict(inputs[0].frontend).seconds_per_frame
    return Contract(
        version=1,
        model=ModelFacts(
            family="foreign",
            name=re.sub(r"[^\w.-]+", "-", request.name or draft.path.stem, flags=re.ASCII).strip("-.") or "model",
            config={KEY: adoption.model_dump(mode="json")},
            parameters=parameters,
            digest=digest(tensors),
            tensors=tensors,
            source=Source(kind="foreign", sha256=hashlib.sha256(draft.path.read_bytes()).hexdigest()),
        ),
        chunk=Chunk(
            axis=1,
            size=frames,
            unit="token" if inputs[0].role == "tokens" else "frame",
            frames_per_unit=1,
            seconds_per_unit=seconds or request.seconds,
        ),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        states=(*state_facts(graph, adoption, starts, request), *map(carried_facts, draft.carried)),
        latency=Latency(look_ahead=ahead, warm_up=warm_up, unit="frame"),
        quant={"scheme": "none"},
        parity=(),
    )


def state_facts(graph: ir.Graph, adoption: Adoption, starts: Mapping[str, Array], request: Request) -> list[StateFacts]:
    """Every state, those of the foreign file first, then the tails."""
    inputs = {value.name: value for value in graph.inputs}
    foreign = {pair.name: pair.input for pair in adoption.states}
    found = []
    for name in [*foreign, *(name + TAIL for name in adoption.tails)]:
        value = inputs[f"{name}_in"]
        dtype, said = dtype_of(value), request.ranges.get(foreign.get(name, ""))
        low, high = said or ((-1.0, 1.0) if dtype.startswith("float") else integer_span(starts.get(name)))
        role: StateRole = "tail" if name not in foreign else role_of(foreign[name], dtype)
        found.append(
            StateFacts(
                name=name,
                shape=sizes(value),
                dtype=dtype,
                start=name + START if name in starts else 0.0,
                role=role,
                range=(float(low), float(high)),
                quant={"policy": "f32", "wide": False},
            )
        )
    return found


def carried_facts(carried: Carried) -> StateFacts:
    """A state that streaming added; `start_values` has those whose start is more than one number."""
    start = carried.start
    return StateFacts(
        name=carried.name,
        shape=tuple(start.shape),
        dtype=str(start.dtype),
        start=float(start.flat[0]) if bool((start == start.flat[0]).all()) else carried.name + START,
        role=carried.role,
        range=(carried.low, carried.high),
        quant={"policy": "f32", "wide": carried.role == "counter"},
    )


def integer_span(start: Array | None) -> tuple[float, float]:
    """The integers that a state is certain to take: its start. More could be an index out of bounds."""
    return (0.0, 0.0) if start is None else (float(start.min()), float(start.max()))


def role_of(name: str, dtype: str) -> StateRole:
    """What a state is, by its name and type."""
    if not dtype.startswith("float"):
        return "counter"
    return "cache" if re.search(r"key|value|cache|present|past", name, re.IGNORECASE) else "recurrent"


def floating(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


def array_of(value: ir.Value) -> Array:
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def say_step(draft: Draft, adoption: Adoption, contract: Contract) -> None:
    """Note what a step takes, how long that lasts, and what of it was said or guessed."""
    request, foreign = draft.request, {port.name: port.foreign for port in adoption.inputs}
    for name, rows in adoption.tails.items():
        value = f"{rows} of its last, before the new ones"
        draft.say(f"tail of {foreign[name]}", value, "sure", request.because("tails", foreign[name]))
    for port in contract.inputs:
        if port.range is not None and port.name in foreign:
            said = foreign[port.name] in request.ranges
            why = request.because("ranges", foreign[port.name]) if said else "its type, or the table that it looks up"
            draft.say(f"range of {foreign[port.name]}", f"{port.range[0]} to {port.range[1]}", "sure", why)
    for state in adoption.states:
        if state.input in request.inits:
            draft.say(f"start of {state.input}", str(request.inits[state.input]), "sure", OPTIONS["inits"])
    step, frames, reason = contract.chunk, contract.chunk.frames, "the sizes of its inputs"
    value = counted(frames, step.unit)
    if adoption.frame_rows > 1:
        value += f" of {adoption.frame_rows} rows"
        reason = "the strides of its windows"
    if request.sound is not None and contract.inputs[0].frontend is not None:
        sound = SampleRows.from_dict(contract.inputs[0].frontend)
        value += f" of {sound.row_samples} samples at {sound.sample_rate} Hz"
        reason = request.because("sound")
    elif request.seconds is not None:
        reason = request.because("seconds")
    elif request.chunk is not None:
        reason = request.because("chunk")
    if step.seconds_per_unit is not None:
        value += f", {1000 * frames * step.seconds_per_unit:g} ms"
    draft.say("step", value, "sure", reason)
