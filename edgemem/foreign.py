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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from edgemem.contract import Json, Strict
from edgemem.errors import ContractError
from edgemem.program import Array, Program, StateBlock

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.modelfile import ModelFile

KEY = "adopted"  # in the contract's model.config
PORT, STATE = "BT", "B"  # the axes that a contract puts first
TAIL = "_tail"  # what an input that sees its own past again is called as a state


class Named(Strict):
    """A tensor of the contract and of the foreign file; a letter for each axis there: B batch, T time, F other."""

    name: str
    foreign: str
    axes: str


class Pair(Strict):
    """A state of the contract, and the input and output that it is in the foreign file."""

    name: str
    input: str
    output: str
    axes: str


class Adoption(Strict):
    """What became of a foreign file's inputs and outputs.

    `constants` are inputs that always have one value; `tails` counts the rows of an input that every step sees again.
    """

    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]
    states: tuple[Pair, ...]
    constants: dict[str, Json]
    tails: dict[str, int]
    streaming: bool = False  # whether the foreign file takes whole sequences


def adoption_of(contract: Contract) -> Adoption:
    """What the contract of an adopted file says of its foreign one.

    Raises:
        ContractError: nothing, or nothing that can be understood.
    """
    found = contract.model.config.get(KEY)
    try:
        return Adoption.model_validate(found, strict=False)
    except ValidationError as error:
        raise ContractError(
            f"contract field model.config.{KEY}: it does not say how the foreign file was adopted "
            f"({error.errors()[0]['msg']}); adopt the file again"
        ) from error


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
        from edgemem.runtimes.ort import session

        self.contract, self.adoption = contract, adoption_of(contract)
        self.weight_bytes = path.stat().st_size
        self._start = dict(start)
        self._session = session(path)
        kinds = {port.name: (port.type, port.shape) for port in self._session.get_inputs()}
        self._constants = {name: constant(value, *kinds[name]) for name, value in self.adoption.constants.items()}

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
        found = dict(zip(names, self._session.run(names, feeds), strict=True))
        after |= {pair.name: to_contract(found[pair.output], pair.axes, STATE) for pair in self.adoption.states}
        state.set(after)
        return {port.name: to_contract(found[port.foreign], port.axes, PORT) for port in self.adoption.outputs}


def constant(value: Any, kind: str, shape: list[Any]) -> Array:
    """The value of an input that never changes, in the input's type and of its rank."""
    dtype = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool"}.get(
        kind, kind.removeprefix("tensor(").removesuffix(")")
    )
    found = np.asarray(value, dtype)
    return found if found.ndim == len(shape) else np.full([1 if isinstance(d, str) else d for d in shape], value, dtype)


def foreign_program(model: ModelFile, path: Path) -> ForeignProgram:
    """The file that a model was adopted from, as a program.

    Raises:
        ContractError: `path` is another file than the one that was adopted.
    """
    from edgemem.modelfile import start_values

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != model.contract.model.source.sha256:
        raise ContractError(
            f"{path} is not the file that {model.path} was adopted from: SHA-256 "
            f"{str(model.contract.model.source.sha256)[:12]}… was wanted, {digest[:12]}… came; give that file"
        )
    return ForeignProgram(path, model.contract, start_values(model))
