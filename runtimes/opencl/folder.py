"""An OpenCL program on disk.

NAME.cl            kernels in OpenCL C, as TVM wrote them
NAME_weights.bin   weights, then the start of every state
NAME.h NAME.c      a host program in C99 for boards without Python
manifest.json      contract, digests, sizes, the step as data, the PrimFunc behind each kernel
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.boards import Board
from edgemem.contract import Contract, InputFacts, OutputFacts, StateFacts
from edgemem.errors import ModelFileError
from edgemem.runtimes.gpu.folder import (
    checked,
    packed_starts,
    read_program_folder,
    unpacked_starts,
    write_program_folder,
)
from edgemem.runtimes.opencl import device as devices
from edgemem.runtimes.opencl.program import OpenclProgram
from edgemem.runtimes.opencl.step import Place, Step, from_json

RUNTIME = "opencl"


def write_folder(
    path: Path,
    board: Board,
    output: Path,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Compile a model file for the OpenCL device of a board into `output`, and return the manifest.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
        ConfigError: the board has no OpenCL device.
        MissingDependency: TVM is not installed.
        UsageError: `output` is a file, or a folder that holds something else.
    """
    from edgemem.runtimes.aot.compiler import check_output
    from edgemem.runtimes.aot.emit_calls import prefix
    from edgemem.runtimes.opencl.generate import generated
    from edgemem.runtimes.opencl.host import host_files

    check_output(output)
    found = generated(path, board, progress)
    contract = found.model.contract
    name = prefix(name or contract.model.name)
    starts, offsets = packed_starts(found.model, len(found.weights))
    host = host_files(name, contract, found.step, offsets, len(found.weights) + len(starts))

    def fill(folder: Path) -> None:
        (folder / f"{name}.cl").write_text(found.text)
        (folder / f"{name}_weights.bin").write_bytes(found.weights + starts)
        for file, text in host.items():
            (folder / file).write_text(text)

    facts = {
        "board": board.model_dump(mode="json"),
        "bytes": {**found.step.sizes, "arena_lower_bound": found.plan.arena_lower_bound_bytes},
        "starts": offsets,
        "step": found.step.to_json(),
        "kernels": found.kernels,
        "calls": [launch.kernel for launch in found.step.launches],
    }
    return write_program_folder(output, RUNTIME, name, contract, found.products, facts, fill)


def load_folder(folder: Path) -> OpenclProgram:
    """The program in a folder that `edgemem compile --runtime opencl` wrote.

    Raises:
        ModelFileError: the manifest or a file is missing, damaged, or not its own.
        ContractError: the contract in the manifest is damaged.
        MissingDependency, DeviceError: there is no such device here.
    """
    manifest, contract = read_program_folder(folder, RUNTIME)
    step = from_json(manifest.get("step"))
    name = manifest["name"]
    text = checked(folder / f"{name}.cl", manifest).decode()
    blob = checked(folder / f"{name}_weights.bin", manifest)
    check_ports(contract, step, len(blob))
    device = devices.device((manifest["board"].get("gpu") or {}).get("device"))
    start = unpacked_starts(contract, manifest.get("starts"), blob)
    return OpenclProgram(contract, step, text, blob[: step.sizes["weights"]], start, device)


def check_ports(contract: Contract, step: Step, file_bytes: int) -> None:
    """Hold a step against its contract: every port and state there, at its size, and the weights whole.

    Raises:
        ModelFileError: with the one that does not fit.
    """
    groups: list[tuple[str, Mapping[str, Place], Sequence[InputFacts | OutputFacts | StateFacts]]] = [
        ("input", step.inputs, contract.inputs),
        ("output", step.outputs, contract.outputs),
        ("state", step.states, contract.states),
    ]
    for kind, places, facts in groups:
        wanted = {fact.name: int(np.prod(fact.shape)) * np.dtype(fact.dtype).itemsize for fact in facts}
        there = {name: place.nbytes for name, place in places.items()}
        if there != wanted:
            raise ModelFileError(
                f"the manifest's step has {kind}s {there} (bytes), its contract {wanted}; compile again"
            )
    if file_bytes < step.sizes["weights"]:
        raise ModelFileError(
            f"the weights have {file_bytes} bytes, the manifest's step wants {step.sizes['weights']}; compile again"
        )
