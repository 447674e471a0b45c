"""A model file from elsewhere: how a contract's tensors lie in it, and the file itself as a program.

Adoption gives a foreign ONNX file a contract, and with it the contract's shapes. What it decided stands in the contract
as `model.config["adopted"]`, so that the foreign file itself, run by onnxruntime, can judge the adopted one:

    contract             foreign file
    [B, T, *F]  input    a transpose of it, without the axes that the foreign file leaves out (`axes`)
    [B, *F]     state    the same, without T
    input_tail  state    the last rows (or samples) of that input, which the foreign file wants before the new ones
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem import schema
from edgemem.compare import Comparison
from edgemem.contract import Json
from edgemem.errors import ContractError, ModelFileError
from edgemem.program import Array, Program, StateBlock
from edgemem.schema import Record, SchemaError
from edgemem.text import first_line
from edgemem.trial import random_input

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.modelfile import ModelFile

KEY = "adopted"  # in the contract's model.config
PORT, STATE = "BT", "B"  # the axes that a contract puts first
LARGEST = 1 << 24  # elements of a constant
LONGEST = 512  # frames of a whole sequence that a stream is compared with, in chunks
TAIL = "_tail"  # what an input that sees its own past again is called as a state


class Named(Record):
    """A tensor of the contract and of the foreign file; a letter for each axis there: B batch, T time, F other."""

    name: str
    foreign: str
    axes: str


class Pair(Record):
    """A state of the contract, and the input and output that it is in the foreign file."""

    name: str
    input: str
    output: str
    axes: str


class Adoption(Record):
    """What became of a foreign file's inputs and outputs.

    `constants` are inputs that always have one value; `tails` counts the rows of an input that every step sees again.
    A file of whole sequences has its carried states in the contract alone.
    """

    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]
    states: tuple[Pair, ...]
    constants: dict[str, Json]
    tails: dict[str, int]
    streaming: bool = False  # whether the foreign file takes whole sequences, and keeps no state
    frame_rows: int = 1  # of the foreign inputs, that are one frame
    short: dict[str, int] = {}  # noqa: RUF012 -- a record copies it; rows that an output of a whole sequence lacks


def adoption_of(contract: Contract) -> Adoption:
    """What the contract of an adopted file says of its foreign one.

    Raises:
        ContractError: nothing, or nothing that can be understood.
    """
    found = contract.model.config.get(KEY)
    try:
        adoption = schema.read(Adoption, found)
    except SchemaError as error:
        raise ContractError(
            f"contract field model.config.{KEY}: it does not say how the foreign file was adopted "
            f"({error}); adopt the file again"
        ) from error
    problem = next(problems(adoption, contract), None)
    if problem is not None:
        raise ContractError(f"contract field model.config.{KEY}: {problem}; adopt the file again")
    return adoption


def problems(adoption: Adoption, contract: Contract) -> Iterator[str]:
    """What of an adoption cannot be, as far as its contract has what it names."""
    rows, inputs = adoption.frame_rows, {port.name: port for port in contract.inputs}
    outputs, states = ({x.name: x.shape for x in found} for found in (contract.outputs, contract.states))
    if not adoption.inputs or set(outputs) - {port.name for port in adoption.outputs}:
        yield "it has no inputs, or lacks outputs of the contract"
    if not adoption.streaming and set(states) - {p.name for p in adoption.states} - {n + TAIL for n in adoption.tails}:
        yield "it lacks states of the contract"
    if rows < 1:
        yield f"frame_rows is {rows}, 1 or more was wanted"
    for counts, least in ((adoption.tails, 1), (adoption.short, 0)):
        yield from (f"{name} has {n} rows, {least} or more was wanted" for name, n in counts.items() if n < least)
    for name in [name for name in adoption.tails if name not in {port.name for port in adoption.inputs}]:
        yield f"tails has {name}, which is no input"
    for port in adoption.inputs:
        shape = inputs[port.name].shape if port.name in inputs else None
        if rows > 1 and shape is not None:
            if len(shape) < 3 or shape[2] != rows:
                yield f"{port.name} has no {rows} rows in a frame"
            shape = (*shape[:2], *shape[3:])
        yield from misfits(port.name, port.axes, PORT, shape)
        if adoption.streaming and "T" not in port.axes:
            yield f"{port.name} has no time axis in a file of whole sequences"
        tail, count = states.get(port.name + TAIL), adoption.tails.get(port.name, 0)
        axis = tail_axis(port.axes)
        if count and shape and tail is not None and tail != (*shape[:axis], count, *(shape[2:] if axis == 1 else ())):
            yield f"{port.name}{TAIL} has the shape {list(tail)}, {count} rows of {list(shape)} were wanted"
    for port in adoption.outputs:
        yield from misfits(port.name, port.axes, PORT, outputs.get(port.name))
    for pair in adoption.states:
        yield from misfits(pair.name, pair.axes, STATE, states.get(pair.name))


def misfits(name: str, axes: str, first: str, shape: tuple[int, ...] | None) -> Iterator[str]:
    """What is wrong with the letters of a tensor; `shape` is what the contract has, if it has it."""
    if not re.fullmatch(f"[{first}F]*", axes) or any(axes.count(letter) > 1 for letter in first):
        yield f"{name} has the axes {axes!r}, a letter for each was wanted: {', '.join(first)} once at most, and F"
    if shape is None:
        return
    if len(shape) != len(first) + axes.count("F"):
        yield f"{name} has the axes {axes!r}, which do not fit its shape {list(shape)}"
    elif any(size != 1 for letter, size in zip(first, shape, strict=False) if letter not in axes):
        yield f"{name} has the axes {axes!r}, which leave out an axis of its shape {list(shape)} that is not 1"


def order(axes: str, first: str) -> list[int]:
    """Foreign axes in the contract's order: those of `first`, as far as they are there, then the others."""
    leading = [axes.index(letter) for letter in first if letter in axes]
    return leading + [index for index in range(len(axes)) if index not in leading]


def to_contract(array: Array, axes: str, first: str) -> Array:
    """A foreign tensor as the contract has it; axes that it leaves out have the size 1."""
    found = array.transpose(order(axes, first))
    for index, letter in enumerate(first):
        if letter not in axes:
            found = np.expand_dims(found, index)
    return found


def to_foreign(array: Array, axes: str, first: str) -> Array:
    """A tensor of the contract as the foreign file has it."""
    left_out = tuple(index for index, letter in enumerate(first) if letter not in axes)
    return array.squeeze(left_out).transpose(np.argsort(order(axes, first)))


def taken(array: Array, name: str, axes: str, first: str) -> Array:
    """`to_contract` of what the foreign file gave.

    Raises:
        ContractError: it has another rank than the adoption says.
    """
    if array.ndim != len(axes):
        raise ContractError(
            f"contract field model.config.{KEY}: {name} has the axes {axes!r}, the foreign file gives "
            f"{list(array.shape)}; adopt the file again"
        )
    return to_contract(array, axes, first)


def tail_axis(axes: str) -> int:
    """Where, in the contract's shape, a tail and what follows it are joined: along time, or along the samples of it."""
    return 1 if "T" in axes else -1


class ForeignState(StateBlock):
    """The states of one stream by the contract's names and in its shapes."""

    def __init__(self, start: Mapping[str, Array]) -> None:
        self._start = start
        self.reset()

    def get(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self.tensors.items()}

    def set(self, values: Mapping[str, Array]) -> None:
        self.tensors = {name: np.array(values[name]) for name in self._start}

    def reset(self) -> None:
        self.set(self._start)


class ForeignProgram(Program):
    """The foreign file under onnxruntime, as it was found: with its own names, layouts and operators."""

    runtime = "foreign"

    def __init__(self, path: Path, contract: Contract, start: Mapping[str, Array]) -> None:
        from edgemem.onnxsession import session

        self.contract, self.adoption = contract, adoption_of(contract)
        self.weight_bytes = path.stat().st_size
        self._start = dict(start)
        self._session = session(path)
        kinds = {port.name: (port.type, port.shape) for port in self._session.get_inputs()}
        self._check_names(path, set(kinds))
        constants = self.adoption.constants.items()
        self._constants = {name: constant(value, *kinds[name]) for name, value in constants}

    def _check_names(self, path: Path, inputs: set[str]) -> None:
        """Refuse an adoption of tensors that the contract or the foreign file has not.

        Raises:
            ContractError: naming the first of them.
        """
        found, contract = self.adoption, self.contract
        outputs = {port.name for port in self._session.get_outputs()}
        for names, there, what in (
            ([p.name for p in found.inputs], {p.name for p in contract.inputs}, "the contract has no input"),
            ([p.name for p in found.outputs], {p.name for p in contract.outputs}, "the contract has no output"),
            ([p.name for p in found.states], {s.name for s in contract.states}, "the contract has no state"),
            ([n + TAIL for n in found.tails], {s.name for s in contract.states}, "the contract has no state"),
            ([*(p.foreign for p in found.inputs), *(p.input for p in found.states), *found.constants], inputs,
             f"{path} has no input"),
            ([*(p.foreign for p in found.outputs), *(p.output for p in found.states)], outputs,
             f"{path} has no output"),
        ):  # fmt: skip
            odd = next((name for name in names if name not in there), None)
            if odd is not None:
                raise ContractError(f"contract field model.config.{KEY}: {what} {odd}; adopt the file again")

    def new_state(self) -> ForeignState:
        return ForeignState(self._start)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, ForeignState)
        feeds, after = dict(self._constants), {}
        for port in self.adoption.inputs:
            seen = inputs[port.name]
            rows = self.adoption.tails.get(port.name, 0)
            if rows:
                axis, name = tail_axis(port.axes), port.name + TAIL
                seen = np.concatenate([state.tensors[name], seen], axis=axis)
                after[name] = seen[:, -rows:] if axis == 1 else seen[..., -rows:]
            feeds[port.foreign] = to_foreign(seen, port.axes, PORT)
        for pair in self.adoption.states:
            feeds[pair.input] = to_foreign(state.tensors[pair.name], pair.axes, STATE)
        names = [port.foreign for port in self.adoption.outputs] + [pair.output for pair in self.adoption.states]
        found = dict(zip(names, self._run(names, feeds), strict=True))
        after |= {pair.name: taken(found[pair.output], pair.name, pair.axes, STATE) for pair in self.adoption.states}
        state.set(after)
        return {port.name: taken(found[port.foreign], port.name, port.axes, PORT) for port in self.adoption.outputs}

    def _run(self, names: list[str], feeds: dict[str, Array]) -> list[Array]:
        """Some outputs of the foreign file.

        Raises:
            ModelFileError: it cannot compute them from inputs of these sizes.
        """
        try:
            found: list[Array] = self._session.run(names, feeds)
        except Exception as error:  # onnxruntime's errors have no common base outside its private module
            shown = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            raise ModelFileError(
                f"the foreign file cannot take {shown} ({first_line(error)}); say other sizes by --set or --chunk"
            ) from error
        return found

    def whole(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What a file of whole sequences gives for one: inputs [1, frames, *features] to rows [1, rows, *features]."""
        feeds = dict(self._constants)
        for port in self.adoption.inputs:
            array = inputs[port.name]
            if self.adoption.frame_rows > 1:
                array = array.reshape(len(array), -1, *array.shape[3:])
            feeds[port.foreign] = to_foreign(array, port.axes, PORT)
        for pair in self.adoption.states:
            feeds[pair.input] = to_foreign(self._start[pair.name], pair.axes, STATE)
        names = [port.foreign for port in self.adoption.outputs]
        found = self._run(names, feeds)
        return {
            port.name: taken(array, port.name, port.axes, PORT)
            for port, array in zip(self.adoption.outputs, found, strict=True)
        }

    def length(self) -> int | None:
        """Frames of a sequence, where the foreign file takes one length only."""
        port = self.adoption.inputs[0]
        shape = next(p.shape for p in self._session.get_inputs() if p.name == port.foreign)
        size = shape[port.axes.index("T")] if "T" in port.axes and len(shape) == len(port.axes) else None
        return size // self.adoption.frame_rows if isinstance(size, int) else None


def over_whole_sequence(
    reference: ForeignProgram, program: Program, steps: int, seed: int = 0, tick: Callable[[], None] = lambda: None
) -> Comparison:
    """A program's stream, pushed in uneven pieces and flushed, against the foreign file on the whole sequence."""
    contract, rng = program.contract, np.random.default_rng(seed)
    frames = reference.length() or max(2, min(steps, LONGEST)) * contract.chunk.frames
    ports = [port for port in contract.inputs if port.role != "valid"]
    x = {p.name: random_input(p.model_copy(update={"shape": (1, frames, *p.shape[2:])}), rng) for p in ports}
    wanted = reference.whole(x)
    stream = program.stream()
    cuts = [0, *sorted(rng.integers(0, frames, 3).tolist()), frames]
    pieces = [{name: array[:, a:b] for name, array in x.items()} for a, b in itertools.pairwise(cuts)]
    rows, ticks = [], 0
    for given in stream.run(pieces):
        rows.append(given)
        due = steps * min(sum(map(len, rows)), frames) // frames
        for _ in range(ticks, due):
            tick()
        ticks = due
    found = Comparison()
    for port in contract.outputs:
        parts = [r.values[port.name] if isinstance(r.values, dict) else r.values for r in rows]
        came, missing = np.concatenate(parts)[None], reference.adoption.short.get(port.name, 0)
        for row in range(min(wanted[port.name].shape[1], frames - missing)):
            found.add(row, port.name, wanted[port.name][:, row], came[:, row + missing])
            found.expect_numbers(row, port.name, wanted[port.name][:, row])
    for _ in range(ticks, steps):
        tick()
    return found


def constant(value: Any, kind: str, shape: list[Any]) -> Array:
    """The value of an input that never changes, in the input's type and of its rank.

    Raises:
        ContractError: a value that the input cannot take.
    """
    dtype = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool"}.get(
        kind, kind.removeprefix("tensor(").removesuffix(")")
    )
    try:
        found = np.asarray(value, dtype)
        if found.ndim == len(shape):
            return found
        sizes = [d if isinstance(d, int) else 1 for d in shape]
        if math.prod(sizes) > LARGEST:
            raise ValueError(f"{math.prod(sizes)} elements")
        return np.full(sizes, value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ContractError(
            f"contract field model.config.{KEY}.constants: a {kind} of shape {shape} cannot have such a value "
            f"({first_line(error)}); adopt the file again"
        ) from error


def foreign_program(model: ModelFile, path: Path) -> ForeignProgram:
    """The file that a model was adopted from, as a program.

    Raises:
        ContractError: `path` is another file than the one that was adopted.
        ModelFileError: there is no such file.
    """
    from edgemem.modelfile import start_values

    if not path.is_file():
        raise ModelFileError(f"{path} is no file; give the ONNX file that {model.path} was adopted from")

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != model.contract.model.source.sha256:
        raise ContractError(
            f"{path} is not the file that {model.path} was adopted from: SHA-256 "
            f"{str(model.contract.model.source.sha256)[:12]}… was wanted, {digest[:12]}… came; give that file"
        )
    return ForeignProgram(path, model.contract, start_values(model))
