"""`edgemem boards`: what programs are compiled for."""

from __future__ import annotations

import shutil

import click

from edgemem.cli.doctor import TOOLS
from edgemem.cli.options import json_option, print_json, stdout, table


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
    install_with = {tool: command for _, tool, command in TOOLS}
    rows = [
        (
            b.name,
            b.title,
            b.core,
            human_bytes(b.ram_bytes) if b.ram_bytes else "–",
            f"{b.clock_hz / 1e9:.1f} GHz" if b.clock_hz else "–",
            "found" if shutil.which(b.compiler) else install_with.get(b.compiler, f"needs {b.compiler}"),
        )
        for b in boards
    ]
    stdout().print(table(("name", "board", "core", "memory", "clock", "compiler"), rows, wrap="board"))
