"""`edgemem profile`: where a compiled step spends its time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgemem.cli.options import json_option, print_json, stderr, stdout, table

CLOCKED_US = 0.1  # the clock reads nanoseconds in steps of some ten: what takes less has no bandwidth to speak of


@click.command("profile")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--runtime", help="What runs the model: aot, opencl or tvm; a folder's own, or aot, if left out.")
@click.option("--board", help="The GPU's board, of a model file for opencl or tvm.")
@click.option("--steps", type=click.IntRange(1), default=500, show_default=True, help="Steps; the best time counts.")
@json_option
def command(file: Path, runtime: str | None, board: str | None, steps: int, as_json: bool) -> None:
    """Show time, bytes and bandwidth of each kernel of FILE: a model, or a folder compiled for this machine.

    \b
    edgemem profile r.onnx
    edgemem profile build/ --json
    edgemem profile r.onnx --runtime opencl --board pocl

    Kernels go by the C functions of NAME.c; --json also has the PrimFunc that each was made from.
    """
    with stderr().status(f"profiling {file}"):
        found = profiled(file, runtime, board, steps)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            f"{row['us']:.2f}",
            f"{row['share']:.1%}",
            str(row["calls"]),
            "–" if row["gb_per_s"] is None or row["us"] < CLOCKED_US else f"{row['gb_per_s']:.1f}",
            row["schedule"],
            row["kernel"],
        )
        for row in found["kernels"]
    ]
    console = stdout()
    console.print(table(("µs", "share", "calls", "GB/s", "schedule", "kernel"), rows))
    console.print(
        f"{found['total_us']:.2f} µs in {sum(row['calls'] for row in found['kernels'])} calls", highlight=False
    )


def profiled(file: Path, runtime: str | None, board: str | None, steps: int) -> dict[str, Any]:
    """The times of a program's kernels, by the runtime that it is for.

    Raises:
        UsageError: a runtime without kernels, or a board where there is nothing to choose.
    """
    from edgemem.errors import UsageError
    from edgemem.program import folder_runtime

    own = folder_runtime(file) if file.is_dir() else None
    runtime = runtime or own or "aot"
    if runtime not in ("aot", "opencl", "tvm"):
        raise UsageError(f"--runtime {runtime} has no kernels to show; there are aot, opencl and tvm")
    if own not in (None, runtime):
        raise UsageError(f"{file} is a program of {own}, --runtime {runtime} came; leave it out")
    if runtime == "aot":
        if board not in (None, "host"):
            raise UsageError(f"a program of aot is profiled on this machine, --board {board} came; leave it out")
        from edgemem.runtimes.aot.profiling import profile

        return profile(file, steps)
    if own is not None and board is not None:
        raise UsageError(f"{file} is compiled for its board, --board {board} came; leave it out")
    from edgemem.runtimes.gpu import profile as profile_on_device

    return profile_on_device(file, runtime, board, steps)
