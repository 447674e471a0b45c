"""`edgemem boards`: what programs are compiled for."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import click

from edgemem.cli.doctor import TOOLS
from edgemem.cli.options import json_option, print_json, stdout, table

if TYPE_CHECKING:
    from edgemem.boards import Board


@click.command("boards")
@json_option
def command(as_json: bool) -> None:
    """List the boards that `edgemem compile --board` knows, and whether their compiler is installed here.

    \b
    edgemem boards
    edgemem boards --json
    """
    from edgemem.boards import board, names
    from edgemem.text import human_bytes

    boards = [board(name) for name in names()]
    if as_json:
        print_json([{**b.model_dump(mode="json"), "compiler_found": shutil.which(b.compiler)} for b in boards])
        return
    rows = [
        (
            b.name,
            b.title,
            b.core,
            b.runtime,
            human_bytes(b.ram_bytes) if b.ram_bytes else "–",
            f"{b.clock_hz / 1e9:.1f} GHz" if b.clock_hz else "–",
            ready(b),
        )
        for b in boards
    ]
    stdout().print(table(("name", "board", "core", "runtime", "memory", "clock", "compiler"), rows, wrap="board"))


def ready(board: Board) -> str:
    """`found`, or the command that installs what compiling for a board lacks here."""
    if not shutil.which(board.compiler):
        return {tool: command for _, tool, command in TOOLS}.get(board.compiler, f"needs {board.compiler}")
    if board.gpu is not None and board.gpu.api == "cuda":
        from edgemem.errors import MissingDependency
        from edgemem.runtimes.vm.nvrtc import INSTALL, package

        try:
            package("cuda_nvrtc", "lib"), package("cuda_runtime", "include")
        except MissingDependency:
            return INSTALL
    return "found"
