"""A program of TVM's virtual machine: weights and states stay on its device, only inputs and outputs cross over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import DeviceError, MissingDependency, ModelFileError
from edgemem.program import Array, Program, StateBlock
from edgemem.text import first_line, human_bytes

if TYPE_CHECKING:
    from edgemem.boards import Board
    from edgemem.contract import Contract

TOOL = "pip install 'edgemem[tvm]'"
NATIVE = "native"  # the architecture of the GPU that is here


def require_device(board: Board) -> None:
    """Refuse a board whose GPU is not here, before anything is compiled."""
    device_of(None if board.gpu is None else board.gpu.model_dump())


def device_of(gpu: Mapping[str, Any] | None) -> Any:
    """TVM's device for a board's GPU (None: the processor).

    Raises:
        MissingDependency: TVM is not installed.
        DeviceError: no such GPU, no driver, or one of another architecture.
    """
    try:
        import tvm
    except ImportError as error:
        raise MissingDependency(f"the tvm runtime needs apache-tvm; install it with: {TOOL}") from error
    if gpu is None:
        return tvm.cpu()
    wanted, there = str(gpu.get("arch")), arch_here()
    if wanted not in (there, NATIVE):
        raise DeviceError(
            f"the program is for {wanted}, this machine's GPU is {there}; compile it for a board with that"
        )
    return tvm.cuda(0)


def arch_here() -> str:
    """The architecture of this machine's GPU.

    Raises:
        DeviceError: TVM finds none.
    """
    import tvm

    device = tvm.cuda(0)
    if not present(device):
        raise DeviceError(
            "a CUDA GPU was wanted, and TVM finds none: no driver, or one that is older than CUDA 13; install NVIDIA's "
            "driver (580 or newer), or run with --runtime aot"
        )
    return "sm_" + str(device.compute_version).replace(".", "")


def present(device: Any) -> bool:
    """Whether TVM can reach a device; without its driver, TVM raises instead of saying no."""
    try:
        return bool(device.exist)
    except Exception:  # TVM raises plain errors of its own kind
        return False


class VmState(StateBlock):
    """A virtual machine of one stream, and its states on the device: what a step makes, the next step reads."""

    def __init__(self, program: VmProgram) -> None:
        from tvm import relax

        self._program = program
        try:
            self.step = relax.VirtualMachine(program.module, program.device)["main"]
        except Exception as error:  # TVM raises plain errors of its own kind
            raise failure(program, error) from error
        self.held: dict[str, Any] = {}
        self.outputs: dict[str, Array] = {}
        self.reset()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        program = self._program
        given = {name: program.moved(np.ascontiguousarray(array)) for name, array in inputs.items()}
        arguments = [given[name] if name in given else self.held[name] for name in program.inputs]
        try:
            results = self.step(*arguments)
        except Exception as error:  # TVM raises plain errors of its own kind
            raise failure(program, error) from error
        named = dict(zip(program.outputs, results if len(program.outputs) > 1 else [results], strict=True))
        self.held = {state.input: named[state.output] for state in program.contract.states}
        self.outputs = {port.name: named[port.name].numpy() for port in program.contract.outputs}
        return self.outputs

    def get(self) -> dict[str, Array]:
        return {state.name: self.held[state.input].numpy() for state in self._program.contract.states}

    def set(self, values: Mapping[str, Array]) -> None:
        move = self._program.moved
        for state in self._program.contract.states:
            self.held[state.input] = move(np.array(values[state.name], state.dtype, order="C"))

    def reset(self) -> None:
        self.set(self._program.start)


class VmProgram(Program):
    """An executable on one device."""

    runtime = "tvm"

    def __init__(
        self,
        contract: Contract,
        library: Path,
        inputs: Sequence[str],
        outputs: Sequence[str],
        start: Mapping[str, Array],
        device: Any,
        sizes: Mapping[str, int],
    ) -> None:
        import tvm

        self.contract, self.inputs, self.outputs, self.start = contract, list(inputs), list(outputs), dict(start)
        self.device, self.weight_bytes, self.state_bytes = device, int(sizes["weights"]), int(sizes["state"])
        try:
            self.module = tvm.runtime.load_module(str(library))
        except Exception as error:  # TVM raises plain errors of its own kind
            raise ModelFileError(
                f"{library} cannot be loaded on this machine ({first_line(error)}); compile the model for its board"
            ) from error

    def moved(self, array: Array) -> Any:
        """An array of its own on the device."""
        import tvm

        return tvm.runtime.tensor(array, self.device)

    def new_state(self) -> VmState:
        return VmState(self)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, VmState)
        return state.run(inputs)


def failure(program: VmProgram, error: Exception) -> Exception:
    """What a failure of the machine is: most often no memory."""
    needed = program.weight_bytes + program.state_bytes
    free = getattr(program.device, "available_global_memory", None)
    room = "" if free is None else f", {human_bytes(int(free))} are free"
    return DeviceError(
        f"{program.contract.model.name} failed on {program.device}: {first_line(error)}; "
        f"weights and state take {human_bytes(needed)}{room}"
    )
