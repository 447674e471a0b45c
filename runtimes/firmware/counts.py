"""What a step costs on an emulated core: instructions, of the whole step and of each of its kernels.

The firmware is built once more with a mark behind every kernel call, and reads a timer that counts instructions; the
count is the same in every run. A mark costs some instructions itself: kernels may add up to a little more than a step.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgemem.boards import Board
from edgemem.errors import CompileError
from edgemem.runtimes.aot.compiler import compile_model
from edgemem.runtimes.aot.load import MANIFEST, load_folder, read_manifest
from edgemem.runtimes.firmware import build
from edgemem.runtimes.firmware.emulator import COUNTED_STEPS, BoardProgram, require_emulator


def bench(files: Sequence[Path], board: Board, steps: int = COUNTED_STEPS) -> dict[str, Any]:
    """Instructions per step and per kernel of every file, on the board's emulator.

    Raises:
        MissingDependency: the board's compiler or emulator is not installed.
        BudgetError, CompileError: a file cannot become firmware of the board.
    """
    require_emulator(board)  # before anything is compiled
    rows = []
    for file in files:
        with tempfile.TemporaryDirectory(prefix="edgemem-") as name:
            folder = Path(name) / "firmware"
            compile_model(file, board, folder)
            rows.append({"file": str(file), "runtime": f"aot on {board.name}", **counted(folder, Path(name), steps)})
    return {"machine": {"board": board.name, "emulator": board.emulator[0]}, "rows": rows}


def counted(folder: Path, spare: Path, steps: int = COUNTED_STEPS, flags: str = "") -> dict[str, Any]:
    """Instructions of a compiled firmware; it is built with marks in the folder `spare`, with `flags` added."""
    manifest = read_manifest(folder)
    program = loaded(folder)
    copy = spare / "marked"
    shutil.copytree(folder, copy)
    name, calls = manifest["name"], manifest["calls"]
    (copy / f"{name}.c").write_text(marked((copy / f"{name}.c").read_text(), name, len(calls)))
    build.make(copy, "-B", f"EXTRA=-DEDGEMEM_CALLS={len(calls)} {flags}".strip())
    manifest["files"][build.IMAGE] = hashlib.sha256((copy / build.IMAGE).read_bytes()).hexdigest()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    whole, _ = program.instructions(steps)
    _, marks = loaded(copy).instructions(steps, len(calls))
    kinds = {kernel["symbol"]: kernel["primfunc"] for kernel in manifest["kernels"]}
    kernels = [
        {"symbol": call["symbol"], "primfunc": kinds[call["symbol"]], "instructions": round(count, 1)}
        for call, count in zip(calls, marks, strict=True)
    ]
    return {"steps": steps, "instructions_per_step": round(whole, 1), "kernels": kernels}


def loaded(folder: Path) -> BoardProgram:
    program = load_folder(folder)
    assert isinstance(program, BoardProgram)
    return program


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
