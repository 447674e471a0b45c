"""`edgemem profile`: where a compiled step spends its time."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.options import json_option, print_json, stderr, stdout, table


@click.command("profile")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--runtime", default="aot", show_default=True, help="What runs the model; aot is the one with kernels.")
@click.option("--steps", type=click.IntRange(1), default=500, show_default=True, help="Steps; the best time counts.")
@json_option
def command(file: Path, runtime: str, steps: int, as_json: bool) -> None:
    """Show time, bytes and bandwidth of each kernel of FILE: a model, or a folder compiled for this machine.

    \b
    edgemem profile r.onnx
    edgemem profile build/ --json
    """
    from edgemem.errors import UsageError
    from edgemem.runtimes.aot.profiling import profile

    if runtime != "aot":
        raise UsageError(f"--runtime {runtime} has no kernels to show; there is aot")
    with stderr().status(f"profiling {file}"):
        found = profile(file, steps)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{row['us']:.2f}",
            f"{row['share']:.1%}",
            str(row["calls"]),
            "–" if row["gb_per_s"] is None else f"{row['gb_per_s']:.1f}",
            row["schedule"],
            row["primfunc"],
        )
        for row in found["kernels"]
    ]
    console = stdout()
    console.print(table(("µs", "share", "calls", "GB/s", "schedule", "PrimFunc"), rows))
    console.print(
        f"{found['total_us']:.2f} µs in {sum(row['calls'] for row in found['kernels'])} calls", highlight=False
    )
