"""What CUDA and OpenCL share: operators as kernels of many threads, their schedules, and kernels as launches.

folder     what the folders of both hold          kernel_times  what `edgemem profile` shows of both
products   edgemem's own operators (narrow weights) as tensor expressions
legalize   operators -> PrimFuncs, fused
schedules  how the threads of a GPU share each of them
launches   scheduled PrimFunc -> device functions, and how they are launched
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.program import RUNTIMES

if TYPE_CHECKING:
    from edgemem.boards import Board

DEFAULT_BOARDS = {"opencl": "pocl", "tvm": "cuda_host"}


def write_program(
    path: Path, board: Board, output: Path, name: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compile a model file for the GPU of a board into `output`, and return the manifest."""
    folder = importlib.import_module(f"{RUNTIMES[board.runtime]}.folder")
    manifest: dict[str, Any] = folder.write_folder(path, board, output, name, progress)
    return manifest


def profile(path: Path, runtime: str, board: str | None, steps: int) -> dict[str, Any]:
    """Time, bytes and bandwidth of every kernel of a folder, or of a model file compiled for `board` for the while.

    Raises:
        ModelFileError, ContractError: neither a compiled folder nor a model file.
        MissingDependency, DeviceError: TVM, the driver or the device is not here.
    """
    timed: Callable[[Path, int], dict[str, Any]] = importlib.import_module(f"{RUNTIMES[runtime]}.profiling").profile
    if path.is_dir():
        return timed(path, steps)
    from edgemem.boards import board as described

    with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
        target = described(board or DEFAULT_BOARDS[runtime])
        importlib.import_module(f"{RUNTIMES[runtime]}.folder").write_folder(path, target, Path(folder))
        return timed(Path(folder), steps)
