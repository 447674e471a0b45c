"""A program of TVM's virtual machine on disk.

NAME.so         the executable: instructions, weights, code of the host, and the CUDA C++ of the kernels
NAME.cu .cubin  that C++, and the machine code that was made of it, which spares the board a compiler
NAME_start.bin  the start of every state
manifest.json   contract, digests, architecture, the PrimFunc behind each kernel
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemem.boards import Board
from edgemem.errors import ModelFileError
from edgemem.runtimes.gpu.folder import (
    checked,
    packed_starts,
    read_program_folder,
    unpacked_starts,
    write_program_folder,
)
from edgemem.runtimes.vm.nvrtc import compiled_before
from edgemem.runtimes.vm.program import VmProgram, device_of

RUNTIME = "tvm"
SIZES = ("weights", "state", "workspace")


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

    from edgemem.runtimes.aot.compiler import check_output
    from edgemem.runtimes.aot.emit_calls import prefix
    from edgemem.runtimes.aot.toolchain import toolchain
    from edgemem.runtimes.vm.generate import generated
    from edgemem.runtimes.vm.in_place import turns

    check_output(output)
    toolchain(board)  # says what to install where the linker is missing
    found = generated(path, board, progress)
    contract = found.model.contract
    name = prefix(name or contract.model.name)
    data, offsets = packed_starts(found.model, 0)

    def fill(folder: Path) -> None:
        found.executable.export_library(str(folder / f"{name}.so"), fcompile=cc.cross_compiler(board.compiler))
        (folder / f"{name}_start.bin").write_bytes(data)
        if found.source:
            (folder / f"{name}.cu").write_text(found.source)
            (folder / f"{name}.cubin").write_bytes(found.code)

    gpu = board.gpu and {**board.gpu.model_dump(mode="json"), "arch": found.arch}
    weights = found.model.onnx.weight_bytes
    facts = {
        "board": {**board.model_dump(mode="json"), "gpu": gpu},
        "bytes": {"weights": weights, "state": contract.state_bytes, "workspace": found.workspace},
        "starts": offsets,
        "kernels": found.kernels,
        "calls": found.calls,
        "graphs": len(turns(contract)) if gpu else 0,
    }
    return write_program_folder(output, RUNTIME, name, contract, found.products, facts, fill)


def load_folder(folder: Path) -> VmProgram:
    """The program in a folder that `edgemem compile --runtime tvm` wrote.

    Raises:
        ModelFileError: the manifest or a file is missing, damaged, not its own, or for another machine.
        ContractError: the contract in the manifest is damaged.
        MissingDependency, DeviceError: TVM is not installed, or there is no such GPU here.
    """
    manifest, contract = read_program_folder(folder, RUNTIME)
    sizes = manifest.get("bytes")
    if not isinstance(sizes, dict) or not all(type(sizes.get(what)) is int for what in SIZES):
        raise ModelFileError(f"{folder}: the manifest does not say how large the program is; compile the model again")
    device = device_of(manifest["board"].get("gpu"))
    name = manifest["name"]
    library = folder / f"{name}.so"
    checked(library, manifest)
    start = unpacked_starts(contract, manifest.get("starts"), checked(folder / f"{name}_start.bin", manifest))
    kernels = ("", b"")
    if manifest["board"].get("gpu") is not None:
        kernels = checked(folder / f"{name}.cu", manifest).decode(), checked(folder / f"{name}.cubin", manifest)
    with compiled_before(*kernels):
        return VmProgram(contract, library, start, device, sizes)
