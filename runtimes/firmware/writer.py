"""`edgemem compile --board` for a microcontroller: a project that builds, its image, and what everything weighs."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgemem.boards import Board
from edgemem.errors import CompileError
from edgemem.program import load
from edgemem.runtimes.aot import emit
from edgemem.runtimes.aot.compiler import (
    Generated,
    existing_parent,
    generated,
    install,
    manifest_of,
    write_manifest,
)
from edgemem.runtimes.aot.toolchain import toolchain
from edgemem.runtimes.firmware import budget, build, elf, layout, sources
from edgemem.runtimes.firmware.vectors import Vectors, vectors


def write_firmware(
    path: Path, board: Board, output: Path, name: str | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Compile a model file into a firmware project in the folder `output`, and return the manifest.

    Raises:
        BudgetError: the firmware needs more flash or RAM than the board has; nothing is written.
        CompileError: the C compiler or the linker failed.
        MissingDependency: TVM, the board's C compiler or GNU Make is not installed.
    """
    tools = toolchain(board)
    program = generated(path, board, name, progress)
    progress("test vectors")
    checks = vectors(load(path))
    progress("generating code")
    with tempfile.TemporaryDirectory(prefix=".edgemem-", dir=existing_parent(output)) as folder:
        place = Path(folder)
        program.kernels.object_file(place / f"{program.source.name}_kernels.o")
        tools.tidy(f"{program.source.name}_kernels.o", place)
        predicted = budget.predicted(board, program, checks, place / f"{program.source.name}_kernels.o")
        budget.check(board, program, predicted)
        write_project(place, board, program, checks, predicted)
        progress("building")
        build.make(place, "EXTRA=-Werror")
        manifest = manifest_of(place, program.model, board, program.source, program.kernels, tools)
        manifest["budget"] = budget.weighed(board, predicted, elf.read(place / build.IMAGE))
        manifest["products"] = program.products
        clean(place)
        write_manifest(place, manifest)
        shutil.rmtree(output / build.SHARED, ignore_errors=True)
        install(place, output)
    return manifest


def write_project(folder: Path, board: Board, program: Generated, checks: Vectors, predicted: budget.Budget) -> None:
    """Every source of a project, beside the kernels' object."""
    source, name = program.source, program.source.name
    bank = budget.bank_bytes(board, source)
    own = folder / build.SHARED
    own.mkdir()
    (folder / f"{name}.h").write_text(emit.header(source))
    (folder / f"{name}.c").write_text(emit.driver(source))
    (folder / f"{name}_weights.bin").write_bytes(program.blob)
    (folder / f"{name}_weights.S").write_text(emit.weights_text(name, source.plan.alignment, ".weights"))
    (own / "board.h").write_text(sources.board_h(board, bank))
    (own / "edgemem_model.c").write_text(sources.model_c(source))
    (own / "vectors.c").write_text(sources.vectors_c(checks))
    (folder / "firmware.ld").write_text(layout.linker_script(board, predicted.ram["stack"], bank))
    shared = build.copy_sources(board, folder)
    if board.boot == "rp2040":
        build.write_boot_checksum(board, folder)
    files = [*shared, f"{build.SHARED}/edgemem_model.c", f"{build.SHARED}/vectors.c", f"{name}.c", f"{name}_weights.S"]
    (folder / "Makefile").write_text(build.makefile(board, name, files))
    (folder / "CMakeLists.txt").write_text(build.cmakelists(board, name, files))
    (folder / "toolchain.cmake").write_text(build.toolchain_cmake(board))


def clean(folder: Path) -> None:
    """Drop what `make` can make again; the kernels stay."""
    for file in folder.rglob("*.o"):
        if not file.name.endswith("_kernels.o"):
            file.unlink()


def marked(text: str, name: str, count: int) -> str:
    """A driver that calls `edgemem_mark` behind each of its `count` kernel calls.

    Raises:
        CompileError: the text is not the driver of such a program.
    """
    lines, index = [], 0
    for line in text.splitlines():
        lines.append(line)
        if line.startswith("static void run("):
            lines[-1] = '#include "marks.h"\n' + line
        if re.match(rf"    {name}_k\d+_\w*\(.*\);$", line):
            lines[-1] = ("    edgemem_mark_start();\n" if index == 0 else "") + f"{line}\n    edgemem_mark({index}u);"
            index += 1
    if index != count:
        raise CompileError(f"{name}.c has {index} kernel calls, its manifest {count}; compile the model again")
    return "\n".join(lines) + "\n"
