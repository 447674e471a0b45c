"""`edgemem inspect`: what a model file says about itself."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.options import json_option, print_json, stdout


@click.command("inspect")
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def command(file: Path, as_json: bool) -> None:
    """Show the contract of FILE, its sizes, and the cost of one step; refuse a file that was altered.

    \b
    edgemem inspect k.onnx
    edgemem inspect k.onnx --json
    """
    from edgemem import inspect

    found = inspect.facts(file)
    if as_json:
        print_json(found)
    else:
        stdout().print(inspect.render(found))
