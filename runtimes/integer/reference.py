"""The integer step in NumPy: what every core has to give, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.modelfile import open_model, start_values
from edgemem.program import Program, StateBlock
from edgemem.runtimes.integer.lower import Step, lowered
from edgemem.runtimes.integer.states import as_float, as_integers

if TYPE_CHECKING:
    from edgemem.contract import Contract

Array = np.ndarray[Any, np.dtype[Any]]


class IntegerState(StateBlock):
    """States as the step keeps them."""

    def __init__(self, step: Step, contract: Contract, starts: Mapping[str, Array]) -> None:
        self._step, self._contract, self._starts = step, contract, starts
        self.held: dict[str, Array] = {}
        self.reset()

    def get(self) -> dict[str, Array]:
        values = as_float(self.held, self._step.scales)
        return {state.name: values[state.name].reshape(state.shape).copy() for state in self._contract.states}

    def set(self, values: Mapping[str, Array]) -> None:
        self.held = {
            name: np.array(value).reshape(-1) for name, value in as_integers(values, self._step.scales).items()
        }

    def reset(self) -> None:
        self.set(self._starts)


class IntegerProgram(Program):
    """A `w8a8` file in integers."""

    runtime = "integer"
    integer = True

    def __init__(self, path: Path) -> None:
        self.model = open_model(path)
        self.contract, self._plan = self.model.contract, lowered(self.model)
        self._starts = start_values(self.model)
        self.weight_bytes = sum(array.nbytes for array in self._plan.constants.values())

    def new_state(self) -> IntegerState:
        return IntegerState(self._plan, self.contract, self._starts)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, IntegerState)
        plan = self._plan
        held: dict[int, Array] = dict(plan.constants)
        names = {s.input: s.name for s in self.contract.states}
        for name, tensor in plan.inputs.items():
            given = state.held[names[name]] if name in names else np.asarray(inputs[name])
            held[tensor.number] = given.reshape(-1)
        for operation in plan.operations:
            held[operation.write.number] = operation.run([held[tensor.number] for tensor in operation.reads])
        state.held = {s.name: held[plan.results[s.output].number] for s in self.contract.states}
        return {port.name: held[plan.results[port.name].number].reshape(port.shape) for port in self.contract.outputs}
