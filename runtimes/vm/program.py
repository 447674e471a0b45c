"""A program of TVM's virtual machine: weights and states stay on its device, only inputs and outputs cross over.

Inputs, outputs and two places for the states have one address each for as long as the program lives, for a CUDA graph
replays a step with the addresses of the first time. The state of the stream that stepped last lies in those places;
that of any other stream waits beside them, and changes places with it on the device.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import DeviceError, MissingDependency, ModelFileError
from edgemem.program import Array, Program, StateBlock, spans
from edgemem.runtimes.vm.driver import INSTEAD, check_driver, load_runtime
from edgemem.text import first_line, human_bytes

if TYPE_CHECKING:
    from edgemem.boards import Board
    from edgemem.contract import Contract

TOOL = "pip install 'edgemem[tvm]'"
NO_MEMORY = "out of memory"  # in TVM's errors, as CUDA says it
NATIVE = "native"  # the architecture of the GPU that is here
# One thread at a time uses the device, whatever the program: while CUDA captures a graph, nobody else may allocate.
DEVICE = threading.RLock()
# Work space of a kernel (not of a step) is TVM's for the thread that launches it, and is freed when that thread ends. A
# graph replays its address all the same, so all graphs are captured by one thread that lives on.
CAPTURING = ThreadPoolExecutor(1, "edgemem-capture")


def require_device(board: Board) -> None:
    """Refuse a board whose GPU is not here, before anything is compiled."""
    device_of(None if board.gpu is None else board.gpu.model_dump())


def device_of(gpu: Mapping[str, Any] | None) -> Any:
    """TVM's device for a board's GPU (None: the processor).

    Raises:
        MissingDependency: TVM, or the CUDA runtime, is not installed.
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
            f"the program is for {wanted}, this machine's GPU is {there}: compile the model for it, --board cuda_host"
        )
    return tvm.cuda(0)


def arch_here() -> str:
    """The architecture of this machine's GPU.

    Raises:
        MissingDependency: the CUDA runtime is not installed.
        DeviceError: there is no GPU that TVM can use; says why.
    """
    check_driver()
    import tvm

    load_runtime()
    device = tvm.cuda(0)
    if not present(device):
        raise DeviceError(f"NVIDIA's driver has a GPU, and TVM cannot use it: see nvidia-smi; {INSTEAD}")
    return "sm_" + str(device.compute_version).replace(".", "")


def present(device: Any) -> bool:
    """Whether TVM can reach a device; without its driver, TVM raises instead of saying no."""
    try:
        return bool(device.exist)
    except Exception:  # TVM raises plain errors of its own kind
        return False


class VmState(StateBlock):
    """The state of one stream: in the program's places, or in `held`."""

    def __init__(self, program: VmProgram) -> None:
        self._program = program
        self.spare: dict[str, Any] = {}  # for `keep`, from its first call on
        with DEVICE:
            self.held = program.room()
            self.reset()

    def get(self) -> dict[str, Array]:
        with on_device(self._program):
            return {name: tensor.numpy() for name, tensor in self._program.where(self).items()}

    def set(self, values: Mapping[str, Array]) -> None:
        with on_device(self._program):
            for name, tensor in self._program.where(self).items():
                tensor.copyfrom(np.ascontiguousarray(values[name]))

    def reset(self) -> None:
        self.set(self._program.start)

    def rows(self, rows: Sequence[int]) -> dict[str, Array]:
        with on_device(self._program):
            where = self._program.where(self)
            return {
                name: np.concatenate([stretch(tensor, row).numpy() for row in rows]) for name, tensor in where.items()
            }

    def set_rows(self, rows: Sequence[int], values: Mapping[str, Array]) -> None:
        with on_device(self._program):
            for name, tensor in self._program.where(self).items():
                array = np.broadcast_to(values[name], (len(rows), *tensor.shape[1:]))
                for index, row in enumerate(rows):
                    stretch(tensor, row).copyfrom(np.ascontiguousarray(array[index : index + 1]))

    def keep(self, rows: Sequence[int]) -> Callable[[], None]:
        """On the device, beside `held`: that takes the whole state when another stream steps in between."""
        stretches, program = spans(rows), self._program
        with on_device(program):
            if not self.spare:
                self.spare = program.room()
            move_rows(program.where(self), self.spare, stretches)

        def put_back() -> None:
            with on_device(program):
                move_rows(self.spare, program.where(self), stretches)

        return put_back


class VmProgram(Program):
    """An executable on one device."""

    runtime = "tvm"

    def __init__(
        self, contract: Contract, library: Path, start: Mapping[str, Array], device: Any, sizes: Mapping[str, int]
    ) -> None:
        from tvm import relax, runtime

        self.contract, self.start, self.device, self.sizes = contract, dict(start), device, sizes
        self.weight_bytes = int(sizes["weights"])
        check_room(device, contract.model.name, sizes)
        with DEVICE:
            try:
                self.machine = relax.VirtualMachine(runtime.load_module(str(library)), device, allocator(device))
            except Exception as error:  # TVM raises plain errors of its own kind
                if NO_MEMORY in str(error):
                    raise failure(self, error) from error
                raise ModelFileError(
                    f"{library} cannot be loaded on this machine ({first_line(error)}); compile the model for its board"
                ) from error
            self.inputs = {port.name: self.zeros(port) for port in contract.inputs}
            self.outputs = {port.name: self.zeros(port) for port in contract.outputs}
            self.places = (self.room(), self.room())
            self.steps = bound(self.machine, self)
        self.uncaptured = set(range(len(self.steps))) if allocator(device) else set()
        self.turn = 0
        self.resident: weakref.ref[VmState] | None = None  # whose state lies in `places`

    def zeros(self, fact: Any) -> Any:
        """A tensor on the device, of a port or state."""
        import tvm

        try:
            return tvm.runtime.tensor(np.zeros(fact.shape, fact.dtype), self.device)
        except Exception as error:  # TVM raises plain errors of its own kind
            raise failure(self, error) from error

    def room(self) -> dict[str, Any]:
        """Tensors for all states, by name."""
        return {state.name: self.zeros(state) for state in self.contract.states}

    def where(self, state: VmState) -> dict[str, Any]:
        """The tensors that hold a stream's state now."""
        resident = self.resident is not None and self.resident() is state
        return self.places[self.turn] if resident else state.held

    def bring(self, state: VmState) -> None:
        """Let a stream's state lie where the next step reads it."""
        before = None if self.resident is None else self.resident()
        if before is state:
            return
        if before is not None:
            move(self.places[self.turn], before.held)
        self.resident = None  # should a copy fail, the state is still in `held`
        move(state.held, self.places[self.turn])
        self.resident = weakref.ref(state)

    def new_state(self) -> VmState:
        return VmState(self)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, VmState)
        with on_device(self):
            for name, tensor in self.inputs.items():
                tensor.copyfrom(np.ascontiguousarray(inputs[name]))
            self.launch(state)
            return {name: tensor.numpy() for name, tensor in self.outputs.items()}

    def launch(self, state: VmState) -> None:
        """One step on what lies in `inputs`, without waiting for the device."""
        with DEVICE:
            self.bring(state)
            if self.turn in self.uncaptured:
                CAPTURING.submit(self.steps[self.turn]).result()
                self.uncaptured.remove(self.turn)
            else:
                self.steps[self.turn]()
            self.turn = (self.turn + 1) % len(self.steps)


def bound(machine: Any, program: VmProgram) -> list[Any]:
    """The functions of a step with all that they read and write: `even`, and `odd` where there are states.

    Raises:
        ModelFileError: the executable has no such functions.
    """
    from edgemem.runtimes.vm.in_place import turns

    ports, steps = [*program.inputs.values(), *program.outputs.values()], []
    try:
        for index, turn in enumerate(turns(program.contract)):
            before, after = program.places[index], program.places[1 - index]
            machine.save_function(turn, f"{turn}_step", *ports, *before.values(), *after.values())
            steps.append(machine[f"{turn}_step"])
    except Exception as error:  # TVM raises plain errors of its own kind
        raise ModelFileError(
            f"the program has no step ({first_line(error)}); compile the model again with this edgemem"
        ) from error
    return steps


def allocator(device: Any) -> str | None:
    """How TVM is to allocate on a device.

    A GPU's memory is asked for once, and is everybody's again when its program is gone. TVM's own choice, a pool that
    keeps it, is for the processor, which has no graph that holds the work space between steps.
    """
    import tvm

    return None if device == tvm.cpu() else "naive"


def move(source: Mapping[str, Any], target: Mapping[str, Any]) -> None:
    """Copy tensors on the device."""
    for name, tensor in source.items():
        tensor.copyto(target[name])


def move_rows(source: Mapping[str, Any], target: Mapping[str, Any], stretches: Sequence[tuple[int, int]]) -> None:
    """Copy stretches (first, count) of the rows of tensors on the device."""
    for name, tensor in source.items():
        for first, count in stretches:
            stretch(tensor, first, count).copyto(stretch(target[name], first, count))


def stretch(tensor: Any, first: int, count: int = 1) -> Any:
    """Some rows of a tensor, without a copy."""
    one = int(np.prod(tensor.shape[1:])) * np.dtype(str(tensor.dtype)).itemsize
    return tensor._create_view((count, *tensor.shape[1:]), relative_byte_offset=first * one)


def needed_bytes(sizes: Mapping[str, int]) -> int:
    """Device memory of a program and one stream: the weights, its work space, the state in two places and beside."""
    return int(sizes["weights"]) + int(sizes["workspace"]) + 3 * int(sizes["state"])


def free_bytes(device: Any) -> int | None:
    """Device memory that nobody uses, where the device says."""
    try:
        free = device.available_global_memory
    except Exception:  # TVM raises plain errors of its own kind
        return None
    return None if free is None else int(free)


def check_room(device: Any, model: str, sizes: Mapping[str, int]) -> None:
    """Refuse a program that the device has no room for.

    Raises:
        DeviceError: with the bytes needed and free.
    """
    needed, free = needed_bytes(sizes), free_bytes(device)
    if free is not None and needed > free:
        raise DeviceError(
            f"{model} does not fit {device}: {human_bytes(needed)} needed, {human_bytes(free)} free. Quantize it with "
            "--scheme w8, or end what else uses the device (nvidia-smi shows it)"
        )


@contextmanager
def on_device(program: VmProgram) -> Iterator[None]:
    """The device for one thread; what it refuses meanwhile is a DeviceError."""
    with DEVICE:
        try:
            yield
        except Exception as error:  # TVM raises plain errors of its own kind
            raise failure(program, error) from error


def failure(program: VmProgram, error: Exception) -> Exception:
    """What a failure on the device is: most often no memory."""
    if isinstance(error, DeviceError):
        return error
    free = free_bytes(program.device)
    room = "" if free is None else f", {human_bytes(free)} are free"
    return DeviceError(
        f"{program.contract.model.name} failed on {program.device}: {first_line(error)}; a program and a stream take "
        f"{human_bytes(needed_bytes(program.sizes))}{room}"
    )
