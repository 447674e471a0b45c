"""An OpenCL program on disk.

NAME.cl            kernels in OpenCL C, as TVM wrote them
NAME_weights.bin   weights, then the start of every state
NAME.h NAME.c      a host program in C99 for boards without Python
manifest.json      contract, digests, sizes, the step as data, the PrimFunc behind each kernel
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgemem import __version__, modelfile
from edgemem import contract as contracts
from edgemem.boards import Board
from edgemem.contract import Contract, InputFacts, OutputFacts, StateFacts
from edgemem.errors import ModelFileError
from edgemem.program import Array
from edgemem.runtimes.aot.load import FORMAT, read_manifest
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
    from edgemem.runtimes.aot.compiler import check_output, existing_parent, install, write_manifest
    from edgemem.runtimes.aot.emit_calls import identifier
    from edgemem.runtimes.opencl.generate import generated
    from edgemem.runtimes.opencl.host import host_files

    check_output(output)
    found = generated(path, board, progress)
    contract = found.model.contract
    name = identifier(name or contract.model.name).lower()
    starts, offsets = packed_starts(found.model, len(found.weights))
    with tempfile.TemporaryDirectory(prefix=".edgemem-", dir=existing_parent(output)) as work:
        folder = Path(work)
        (folder / f"{name}.cl").write_text(found.text)
        (folder / f"{name}_weights.bin").write_bytes(found.weights + starts)
        for file, text in host_files(name, contract, found.step, offsets, len(found.weights) + len(starts)).items():
            (folder / file).write_text(text)
        files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}
        sizes = {**found.step.sizes, "arena_lower_bound": found.plan.arena_lower_bound_bytes}
        manifest = {
            "format": FORMAT,
            "runtime": RUNTIME,
            "name": name,
            "board": board.model_dump(mode="json"),
            "contract": json.loads(contracts.encode(contract)),
            "bytes": sizes,
            "starts": offsets,
            "step": found.step.to_json(),
            "kernels": found.kernels,
            "calls": [launch.kernel for launch in found.step.launches],
            "products": [asdict(product) for product in found.products],
            "files": files,
            "versions": {"edgemem": __version__, "apache-tvm": metadata.version("apache-tvm")},
        }
        write_manifest(folder, manifest)
        install(folder, output)
    return manifest


def packed_starts(model: modelfile.ModelFile, first: int) -> tuple[bytes, dict[str, int]]:
    """The start of every state one after another, and where each begins in a file that has `first` bytes already."""
    blob, offsets = bytearray(), {}
    for name, array in modelfile.start_values(model).items():
        offsets[name] = first + len(blob)
        blob += array.tobytes()
    return bytes(blob), offsets


def load_folder(folder: Path) -> OpenclProgram:
    """The program in a folder that `edgemem compile --runtime opencl` wrote.

    Raises:
        ModelFileError: the manifest or a file is missing, damaged, or not its own.
        ContractError: the contract in the manifest is damaged.
        MissingDependency, DeviceError: there is no such device here.
    """
    manifest = read_manifest(folder)
    if manifest.get("runtime") != RUNTIME:
        raise ModelFileError(f"{folder} holds no OpenCL program; `edgemem compile --runtime opencl` writes one")
    contract = contracts.decode(json.dumps(manifest["contract"]))
    step = from_json(manifest.get("step"))
    name = manifest["name"]
    text = checked(folder / f"{name}.cl", manifest).decode()
    blob = checked(folder / f"{name}_weights.bin", manifest)
    check_ports(contract, step, len(blob))
    device = devices.device((manifest["board"].get("gpu") or {}).get("device"))
    start = starts(contract, manifest.get("starts"), blob)
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


def starts(contract: Contract, offsets: Any, blob: bytes) -> dict[str, Array]:
    """The start of every state, from the end of the weights' file."""
    found = {}
    for state in contract.states:
        count = int(np.prod(state.shape))
        size = count * np.dtype(state.dtype).itemsize
        offset = offsets.get(state.name) if isinstance(offsets, Mapping) else None
        if type(offset) is not int or offset < 0 or offset + size > len(blob):
            raise ModelFileError(f"the manifest has no start of state {state.name}; compile the model again")
        found[state.name] = np.frombuffer(blob, state.dtype, count, offset).reshape(state.shape)
    return found


def checked(path: Path, manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a file, if they are those of the manifest."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); compile the model again") from error
    if hashlib.sha256(data).hexdigest() != manifest["files"].get(path.name):
        raise ModelFileError(f"{path} is not the file of its manifest; compile the model again")
    return data
