"""`edgemem models`: what there is."""

from __future__ import annotations

import click

from edgemem.cli.options import json_option, print_json, stdout


@click.command("models")
@json_option
def command(as_json: bool) -> None:
    """List the models that `edgemem export` builds by name, at their default settings.

    \b
    edgemem models
    edgemem models --json
    """
    from edgemem.models.listing import listing

    rows = listing()
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    from edgemem.text import human_bytes

    table = Table("name", "family", "parameters", "state", "chunk", "summary")
    for row in rows:
        state = human_bytes(row["state_bytes"])
        table.add_row(row["name"], row["family"], f"{row['parameters']:,}", state, row["chunk_unit"], row["summary"])
    stdout().print(table)
