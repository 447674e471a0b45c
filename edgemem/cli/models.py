"""`edgemem models`: what there is."""

from __future__ import annotations

import click

from edgemem.cli.options import json_option, print_json, stdout, table


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
    from edgemem.text import human_bytes

    cells = [
        (
            row["name"],
            "trained" if row["trained"] else "random",
            f"{row['parameters']:,}",
            human_bytes(row["state_bytes"]),
            row["chunk_unit"],
            row["summary"],
        )
        for row in rows
    ]
    stdout().print(table(("name", "weights", "parameters", "state", "chunk", "summary"), cells))
