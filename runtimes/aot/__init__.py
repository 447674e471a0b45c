"""Ahead-of-time compilation: a model file becomes a C library that needs nothing where it runs.

    importer   ONNX -> Relax                    folding    what is known at compile time
    legalize   operators -> PrimFuncs, fused    schedules  how each is computed on the core
    lowering   PrimFuncs -> pointer functions   graph      the straight line of calls
    plan       where every tensor lies          emit*      the C text
    toolchain  objects and libraries            compiler   all of these, into a folder
    attention  few queries, a long cache        rings      caches that are not copied
    load       the folder as a program          remote     one of another board, under its emulator
    rpc        measured on a board, through TVM's RPC server

Loading needs numpy alone; everything before it needs TVM and a C compiler.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemem.program import Program


def prepare(path: Path, threads: int = 1, board: str = "host") -> Program:
    """Load a compiled folder, or compile a model file for `board` and load that.

    Raises:
        ModelFileError, ContractError: neither a compiled folder nor a model file.
        MissingDependency: a model file came, and TVM or a C compiler is not installed.
        UsageError: more threads than a step can have, or a board that runs under an emulator.
    """
    from edgemem.runtimes.aot.load import check_threads, load_folder

    check_threads(threads)
    if path.is_dir():
        return load_folder(path, threads)
    import tempfile
    import weakref

    from edgemem.boards import board as described
    from edgemem.runtimes.aot.compiler import compile_model

    folder = tempfile.TemporaryDirectory(prefix="edgemem-")
    compile_model(path, described(board), folder.name)
    program = load_folder(Path(folder.name), threads)
    weakref.finalize(program, folder.cleanup)
    return program
