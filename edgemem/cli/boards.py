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
    """List the boards that `edgemem compile --board` knows, and whether their compiler and emulator are installed here.

    Programs of a board with an emulator are run and compared here; of those with "none", firmware is built only.

    \b
    edgemem boards
    edgemem boards --json
    """
    from edgemem.boards import board, names
    from edgemem.text import hertz

    boards = [board(name) for name in names()]
    if as_json:
        tools = [(b, shutil.which(b.compiler), shutil.which(b.emulator[0]) if b.emulator else None) for b in boards]
        print_json([{**b.model_dump(mode="json"), "compiler_found": c, "emulator_found": e} for b, c, e in tools])
        return
    rows = [
        (
            b.name,
            b.title,
            b.core,
            b.runtime,
            memory(b),
            hertz(b.clock_hz) if b.clock_hz else "–",
            ready(b),
            tool(b.emulator[0]) if b.emulator else "–" if b.is_host else "none",
        )
        for b in boards
    ]
    heads = ("name", "board", "core", "runtime", "memory", "clock", "compiler", "emulator")
    stdout().print(table(heads, rows, wrap="board"))


def memory(board: Board) -> str:
    """RAM, of a microcontroller also flash."""
    from edgemem.text import human_bytes

    ram = human_bytes(board.ram_bytes) if board.ram_bytes else "–"
    return ram if board.flash_bytes is None else f"{ram}, flash {human_bytes(board.flash_bytes)}"


def tool(name: str) -> str:
    """Whether a tool is here, or what installs it."""
    install_with = {tool: command for _, tool, command in TOOLS}
    return "found" if shutil.which(name) else install_with.get(name, f"needs {name}")


def ready(board: Board) -> str:
    """`found`, or the command that installs what compiling for a board lacks here."""
    if not shutil.which(board.compiler):
        return tool(board.compiler)
    if board.gpu is not None and board.gpu.api == "cuda":
        from edgemem.errors import MissingDependency
        from edgemem.runtimes.vm.nvrtc import INSTALL, package

        try:
            package("cuda_nvrtc", "lib"), package("cuda_runtime", "include")
        except MissingDependency:
            return INSTALL
    return "found"
