"""A program of TVM's virtual machine on disk.

NAME.so         the executable: instructions, weights, code of the host, and the CUDA C++ of the kernels
NAME.cu .cubin  that C++, and the machine code that was made of it, which spares the board a compiler
NAME_start.bin  the start of every state
manifest.json   contract, digests, architecture, the PrimFunc behind each kernel
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from edgemem import __version__
from edgemem import contract as contracts
from edgemem.boards import Board
from edgemem.errors import ModelFileError
from edgemem.runtimes.aot.load import FORMAT, read_manifest
from edgemem.runtimes.opencl.folder import checked, packed_starts, starts
from edgemem.runtimes.vm.nvrtc import compiled_before
from edgemem.runtimes.vm.program import VmProgram, device_of

RUNTIME = "tvm"


def write_folder(
    path: Path,
    board: Board,
    output: Path,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, Any]:
    """Compile a model file for the CUDA GPU of a board into `output`, and return the manifest.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
        ConfigError: the board has no CUDA GPU.
        MissingDependency: TVM, CUDA's compiler or the board's C compiler is not installed.
        UsageError: `output` is a file, or a folder that holds something else.
    """
    from tvm.support import cc

    from edgemem.runtimes.aot.compiler import check_output, existing_parent, install, write_manifest
    from edgemem.runtimes.aot.emit_calls import identifier
    from edgemem.runtimes.aot.toolchain import toolchain
    from edgemem.runtimes.vm.generate import generated

    check_output(output)
    toolchain(board)  # says what to install where the linker is missing
    found = generated(path, board, progress)
    contract = found.model.contract
    name = identifier(name or contract.model.name).lower()
    data, offsets = packed_starts(found.model, 0)
    gpu = board.gpu and {**board.gpu.model_dump(mode="json"), "arch": found.arch}
    with tempfile.TemporaryDirectory(prefix=".edgemem-", dir=existing_parent(output)) as work:
        folder = Path(work)
        link = cc.cross_compiler(board.compiler)
        found.executable.export_library(str(folder / f"{name}.so"), fcompile=link)
        (folder / f"{name}_start.bin").write_bytes(data)
        if found.source:
            (folder / f"{name}.cu").write_text(found.source)
            (folder / f"{name}.cubin").write_bytes(found.code)
        files = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())}
        manifest = {
            "format": FORMAT,
            "runtime": RUNTIME,
            "name": name,
            "board": {**board.model_dump(mode="json"), "gpu": gpu},
            "contract": json.loads(contracts.encode(contract)),
            "bytes": {"weights": found.model.onnx.weight_bytes, "state": contract.state_bytes},
            "starts": offsets,
            "inputs": found.inputs,
            "outputs": found.outputs,
            "kernels": found.kernels,
            "calls": [kernel["kernel"] for kernel in found.kernels],
            "products": [asdict(product) for product in found.products],
            "files": files,
            "versions": {"edgemem": __version__, "apache-tvm": metadata.version("apache-tvm")},
        }
        write_manifest(folder, manifest)
        install(folder, output)
    return manifest


def load_folder(folder: Path) -> VmProgram:
    """The program in a folder that `edgemem compile --runtime tvm` wrote.

    Raises:
        ModelFileError: the manifest or a file is missing, damaged, not its own, or for another machine.
        ContractError: the contract in the manifest is damaged.
        MissingDependency, DeviceError: TVM is not installed, or there is no such GPU here.
    """
    manifest = read_manifest(folder)
    if manifest.get("runtime") != RUNTIME:
        raise ModelFileError(f"{folder} holds no program of TVM's; `edgemem compile --runtime tvm` writes one")
    contract = contracts.decode(json.dumps(manifest["contract"]))
    device = device_of(manifest["board"].get("gpu"))
    name = manifest["name"]
    library = folder / f"{name}.so"
    checked(library, manifest)
    start = starts(contract, manifest.get("starts"), checked(folder / f"{name}_start.bin", manifest))
    names = {port.name for port in contract.inputs} | {state.input for state in contract.states}
    results = {port.name for port in contract.outputs} | {state.output for state in contract.states}
    if sorted(manifest.get("inputs", [])) != sorted(names) or sorted(manifest.get("outputs", [])) != sorted(results):
        raise ModelFileError(f"{folder}: the program's ports are not those of its contract; compile the model again")
    kernels = ("", b"")
    if manifest["board"].get("gpu") is not None:
        kernels = checked(folder / f"{name}.cu", manifest).decode(), checked(folder / f"{name}.cubin", manifest)
    with compiled_before(*kernels):
        return VmProgram(contract, library, manifest["inputs"], manifest["outputs"], start, device, manifest["bytes"])
