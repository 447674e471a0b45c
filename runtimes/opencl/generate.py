"""From a model file to OpenCL C, weights, and the step as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem import modelfile
from edgemem.boards import Board
from edgemem.errors import ConfigError
from edgemem.runtimes.aot.graph import Graph, Tensor
from edgemem.runtimes.aot.importer import require_tvm
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.plan import Plan, StateSlot, planned
from edgemem.runtimes.opencl.step import Launch, Place, Step

ALIGNMENT = 512  # bytes; a buffer inside a buffer starts at a multiple of what the device wants, 512 at most
HINT_CHARACTERS = 40  # of a kernel's name that say what it computes


@dataclass(frozen=True)
class Generated:
    """A model as OpenCL C, weights and a step; `kernels` says which PrimFunc each kernel is and its schedule."""

    model: modelfile.ModelFile
    text: str
    weights: bytes
    step: Step
    kernels: list[dict[str, str]]
    products: list[Any]
    plan: Plan


def generated(path: Path, board: Board, progress: Callable[[str], None] = lambda stage: None) -> Generated:
    """Import, fuse, schedule and place a model for a board.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
        ConfigError: the board has no OpenCL device.
        MissingDependency: TVM is not installed.
    """
    require_tvm()
    from edgemem.runtimes.gpu.legalize import fused

    target = target_of(board)
    found = fused(path, Machine(target, lanes=1, registers=1, alignment=ALIGNMENT), progress)
    model, graph = found.model, found.graph
    progress("scheduling")
    kernels = Kernels(graph, target)
    plan = planned(graph, model.contract, lambda *_: False, lambda kernel, _: kernels.of(kernel).work_bytes, ALIGNMENT)
    blob = bytearray(max(plan.weight_bytes, ALIGNMENT))
    for number, slot in plan.weights.items():
        blob[slot.offset : slot.offset + slot.nbytes] = graph.constants[number].tobytes()
    step = Steps(model, graph, plan, kernels).step(len(blob))
    return Generated(model, kernels.text(), bytes(blob), step, kernels.facts, found.products, plan)


def target_of(board: Board) -> Any:
    """TVM's target for the OpenCL device of a board.

    Raises:
        ConfigError: the board has none.
    """
    from tvm.target import Target

    if board.gpu is None or board.gpu.api != "opencl":
        raise ConfigError(
            f"board {board.name} has no OpenCL device; boards with one: {', '.join(boards_with('opencl'))}"
        )
    gpu = board.gpu
    described = {"kind": "opencl", "device": "", "max_num_threads": gpu.threads, "thread_warp_size": gpu.warp}
    return Target({**described, "max_shared_memory_per_block": gpu.shared_bytes}, host="llvm")


def boards_with(api: str) -> list[str]:
    """Names of the boards that ship with a GPU of this kind."""
    from edgemem.boards import board, names

    found = ((name, board(name).gpu) for name in names())
    return [name for name, gpu in found if gpu is not None and gpu.api == api]


class Kernels:
    """Device functions by PrimFunc, lowered once each, named in the order of first use."""

    def __init__(self, graph: Graph, target: Any) -> None:
        self.graph, self.target = graph, target
        self.lowered: dict[str, Any] = {}
        self.facts: list[dict[str, str]] = []

    def of(self, kernel: str) -> Any:
        from edgemem.runtimes.gpu.launches import lowered
        from edgemem.runtimes.gpu.schedules import scheduled

        if kernel not in self.lowered:
            function, schedule = scheduled(self.graph.functions[kernel], self.target)
            hint = kernel.removeprefix("fused_")[:HINT_CHARACTERS].rstrip("_")
            found = lowered(function, f"k{len(self.lowered):02d}_{hint}", self.target)
            self.lowered[kernel] = found
            self.facts += [
                {"kernel": launch.kernel, "primfunc": kernel, "schedule": schedule} for launch in found.launches
            ]
        return self.lowered[kernel]

    def text(self) -> str:
        """All kernels as OpenCL C."""
        import tvm

        functions = {name: f for found in self.lowered.values() for name, f in found.functions.items()}
        module = tvm.get_global_func("target.build.opencl")(tvm.IRModule(functions), self.target)
        return str(module.inspect_source())


class Steps:
    """Places for every tensor of a plan."""

    def __init__(self, model: modelfile.ModelFile, graph: Graph, plan: Plan, kernels: Kernels) -> None:
        self.contract, self.graph, self.plan, self.kernels = model.contract, graph, plan, kernels
        self.before = {graph.inputs[state.input].number: state.name for state in self.contract.states}
        self.after = {
            tensor.number: name
            for name, tensor in plan.written.items()
            if tensor.source == "call" and tensor.number not in plan.arena
        }

    def step(self, weight_bytes: int) -> Step:
        contract = self.contract
        launches = []
        for placed in self.plan.calls:
            found = self.kernels.of(placed.call.kernel)
            held = [self.of(tensor) for tensor in (*placed.call.reads, *placed.call.writes)]
            held += [Place("arena", (slot.offset, slot.offset), slot.nbytes) for slot in placed.work]
            launches += [
                Launch(launch.kernel, tuple(held[i] for i in launch.arguments), launch.blocks, launch.threads)
                for launch in found.launches
            ]
        copies = [
            (self.of(tensor), self.state(name, written=True))
            for name, tensor in self.plan.written.items()
            if self.of(tensor) != self.state(name, written=True)
        ]
        return Step(
            launches=tuple(launches),
            copies=tuple(copies),
            inputs={port.name: self.of(self.graph.inputs[port.name]) for port in contract.inputs},
            outputs={port.name: self.of(self.graph.results[port.name]) for port in contract.outputs},
            states={state.name: self.state(state.name, written=False) for state in contract.states},
            sizes={"weights": weight_bytes, "arena": self.plan.arena_bytes, "state": self.plan.state_bytes},
            turns=any(slot.second is not None for slot in self.plan.states.values()),
        )

    def state(self, name: str, written: bool) -> Place:
        slot: StateSlot = self.plan.states[name]
        first, second = slot.first.offset, (slot.second or slot.first).offset
        return Place("state", (second, first) if written else (first, second), slot.first.nbytes)

    def of(self, tensor: Tensor) -> Place:
        if tensor.number in self.plan.weights:
            offset = self.plan.weights[tensor.number].offset
            return Place("weights", (offset, offset), tensor.nbytes)
        if tensor.number in self.before:
            return self.state(self.before[tensor.number], written=False)
        if tensor.number in self.after:
            return self.state(self.after[tensor.number], written=True)
        offset = self.plan.arena[tensor.number].offset
        return Place("arena", (offset, offset), tensor.nbytes)
