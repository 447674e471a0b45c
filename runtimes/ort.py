"""onnxruntime on the CPU: the default runtime, and the reference for the others.

State is ping-pong: each stream owns two sets of state buffers and two I/O bindings, A -> B and B -> A. One
buffer as both a state's input and its output gives silently wrong numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgemem import modelfile
from edgemem.errors import StreamError
from edgemem.onnxsession import session
from edgemem.program import Array, Program, StateBlock
from edgemem.text import first_line

if TYPE_CHECKING:
    import onnxruntime

    from edgemem.contract import Contract


class OrtState(StateBlock):
    """Two sets of state tensors and what is bound to them; `phase` says which set is current."""

    def __init__(self, session: onnxruntime.InferenceSession, contract: Contract, start: Mapping[str, Array]) -> None:
        self._start = start
        self._sets = tuple({s.name: np.empty(s.shape, s.dtype) for s in contract.states} for _ in "AB")
        self.inputs = {port.name: np.zeros(port.shape, port.dtype) for port in contract.inputs}
        self.outputs = {port.name: np.zeros(port.shape, port.dtype) for port in contract.outputs}
        self.bindings = tuple(
            self._bound(session, contract, self._sets[source], self._sets[1 - source]) for source in (0, 1)
        )
        self.phase = 0
        self.reset()

    def _bound(
        self,
        session: onnxruntime.InferenceSession,
        contract: Contract,
        before: Mapping[str, Array],
        after: Mapping[str, Array],
    ) -> onnxruntime.IOBinding:
        from onnxruntime import OrtValue

        binding = session.io_binding()
        for name, array in self.inputs.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))  # shares the array's memory
        for name, array in self.outputs.items():
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
        for state in contract.states:
            binding.bind_ortvalue_input(state.input, OrtValue.ortvalue_from_numpy(before[state.name]))
            binding.bind_ortvalue_output(state.output, OrtValue.ortvalue_from_numpy(after[state.name]))
        return binding

    def get(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._sets[self.phase].items()}

    def set(self, values: Mapping[str, Array]) -> None:
        for name, array in self._sets[self.phase].items():
            np.copyto(array, values[name], casting="no")

    def reset(self) -> None:
        self.set(self._start)

    def rows(self, rows: Sequence[int]) -> dict[str, Array]:
        return {name: array[list(rows)] for name, array in self._sets[self.phase].items()}

    def set_rows(self, rows: Sequence[int], values: Mapping[str, Array]) -> None:
        for name, array in self._sets[self.phase].items():
            array[list(rows)] = values[name]


class OrtProgram(Program):
    """One onnxruntime session, shared by its streams."""

    runtime = "ort"

    def __init__(self, model: modelfile.ModelFile, session: onnxruntime.InferenceSession) -> None:
        self.contract = model.contract
        self.weight_bytes = model.onnx.weight_bytes
        self._start = modelfile.start_values(model)
        self._session = session

    def new_state(self) -> OrtState:
        return OrtState(self._session, self.contract, self._start)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, OrtState)
        for name, array in inputs.items():
            np.copyto(state.inputs[name], array)
        try:
            self._session.run_with_iobinding(state.bindings[state.phase])
        except Exception as error:  # onnxruntime's errors have no common base outside its private module
            raise StreamError(
                f"onnxruntime cannot take this step ({first_line(error)}): what the stream remembers, or its input, is "
                "beyond what the model can look up; reset the stream, or start it from another state"
            ) from error
        state.phase ^= 1
        return state.outputs


def prepare(path: Path, threads: int = 1) -> OrtProgram:
    """Load an ONNX file with a contract; `threads` is how many cores one step may use.

    Raises:
        ModelFileError, ContractError: the file is not a model with a valid contract.
        MissingDependency: onnxruntime is not installed.
    """
    model = modelfile.open_model(path)
    return OrtProgram(model, session(path, threads))
