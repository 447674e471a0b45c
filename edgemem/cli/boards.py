"""`edgemem boards`: what programs are compiled for."""

from __future__ import annotations

import shutil

import click

from edgemem.cli.options import json_option, print_json, stdout


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
    from rich.table import Table

    table = Table("name", "board", "core", "memory", "clock", "compiler")
    for found in boards:
        memory = human_bytes(found.ram_bytes) if found.ram_bytes else "–"
        clock = f"{found.clock_hz / 1e9:.1f} GHz" if found.clock_hz else "–"
        here = found.compiler if shutil.which(found.compiler) else f"{found.compiler} (missing: make boards)"
        table.add_row(found.name, found.title, found.core, memory, clock, here)
    stdout().print(table)
