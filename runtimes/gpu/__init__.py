"""What CUDA and OpenCL share: operators as kernels of many threads, their schedules, and kernels as launches.

products   edgemem's own operators (narrow weights) as tensor expressions
legalize   operators -> PrimFuncs, fused
schedules  how the threads of a GPU share each of them
launches   scheduled PrimFunc -> device functions, and how they are launched
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.program import RUNTIMES

if TYPE_CHECKING:
    from edgemem.boards import Board


def write_program(
    path: Path, board: Board, output: Path, name: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compile a model file for the GPU of a board into `output`, and return the manifest."""
    folder = importlib.import_module(f"{RUNTIMES[board.runtime]}.folder")
    manifest: dict[str, Any] = folder.write_folder(path, board, output, name, progress)
    return manifest
