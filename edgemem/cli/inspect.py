"""`edgemem inspect`: what a model file says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgemem.cli.options import json_option, print_json, stdout, table


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
        show(found)


def show(found: dict[str, Any]) -> None:
    """A summary, then inputs, outputs and states."""
    from rich.table import Table

    from edgemem.text import counted, human_bytes

    contract = found["contract"]
    model, chunk, latency = contract["model"], contract["chunk"], contract["latency"]
    seconds = chunk["seconds_per_unit"]
    step = counted(chunk["size"], chunk["unit"]) + (f", {chunk['size'] * seconds * 1000:g} ms" if seconds else "")
    summary = Table.grid(padding=(0, 2))
    summary.add_row("model", f"{model['name']} ({model['family']}), {model['parameters']:,} parameters")
    summary.add_row("weights", f"{weights_from(model['source'])}, {human_bytes(found['weight_bytes'])}")
    summary.add_row("state", human_bytes(found["state_bytes"]))
    summary.add_row("step", f"{step}; {found['macs_per_step']:,} multiply-accumulates")
    summary.add_row("look-ahead", counted(latency["look_ahead"], latency["unit"]))
    summary.add_row("quantization", str(contract["quant"].get("scheme", "none")))
    for proof in contract["parity"]:
        error = f"{proof['max_abs_error']:.1e} of {proof['tolerance']:.1e} allowed"
        summary.add_row("proof", f"{proof['stage']} = {proof['reference']} over {proof['steps']} steps: {error}")
    rows = [
        (kind[:-1], row["name"], row["dtype"], str(row["shape"]), row["role"], note(kind, row))
        for kind in ("inputs", "outputs", "states")
        for row in contract[kind]
    ]
    console = stdout()
    console.print(summary)
    console.print(table(("tensor", "name", "dtype", "shape", "role", "start or range"), rows))


def weights_from(source: dict[str, Any]) -> str:
    """Where the weights came from, in words."""
    if source.get("kind") == "seed":
        return f"random, seed {source.get('seed')}"
    words = {"checkpoint": "trained", "foreign": "of another tool's file"}
    return words.get(str(source.get("kind")), "of the module that was exported")


def note(kind: str, row: dict[str, Any]) -> str:
    """The start of a state, or the range of an input of integers."""
    return str(row["start"] if kind == "states" else row.get("range") or "")
