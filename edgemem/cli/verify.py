"""`edgemem verify`: the proof, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgemem.cli.options import json_option, print_json, progress_bar, stdout, table

if TYPE_CHECKING:
    from edgemem.verify import Report


@click.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Steps to compare.")
@click.option("--runtime", "runtimes", multiple=True, default=("ort",), show_default=True, help="What to compare.")
@click.option("--board", "boards", multiple=True, help="Compare the program compiled for this board, in its emulator.")
@click.option("--reference", type=click.Path(path_type=Path), help="The file that this one was made from.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of inputs and random states.")
@json_option
def command(
    file: Path,
    steps: int,
    runtimes: tuple[str, ...],
    boards: tuple[str, ...],
    reference: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Compare FILE, step by step, with the torch module rebuilt from it (or with the file it was made from).

    \b
    edgemem verify r.onnx --steps 10000
    edgemem verify r.onnx --runtime ort --runtime aot --board rpi4 --board visionfive2
    edgemem verify q.onnx --reference r.onnx --json
    """
    from edgemem.errors import CheckFailed
    from edgemem.program import load
    from edgemem.verify import verify

    programs = {name: load(file, runtime="aot", board=name) for name in boards}
    with progress_bar() as progress:
        task = progress.add_task("comparing", total=steps * (len(runtimes) + len(boards)))
        report = verify(
            file, steps, runtimes, reference, programs=programs, seed=seed, tick=lambda: progress.advance(task)
        )
    if as_json:
        print_json(report.to_json())
    else:
        show(report)
    if not report.ok:
        broken = next(stage for stage in report.stages if not stage.holds)
        raise CheckFailed(
            f"{file}: stage {broken.name} differs from {broken.reference} by {broken.max_abs_error:.2e}, "
            f"{broken.tolerance:.2e} is allowed; first at {broken.first}"
        )


def show(report: Report) -> None:
    """The stages as a table."""
    rows = [
        (
            stage.name,
            stage.reference,
            str(stage.steps),
            f"{stage.max_abs_error:.1e}",
            f"{stage.tolerance:.1e}",
            f"{stage.drift_per_1000_steps:.1e}",
            "holds" if stage.holds else f"FAILS at {stage.first}",
        )
        for stage in report.stages
    ]
    stdout().print(table(("stage", "against", "steps", "error", "allowed", "drift / 1000", "verdict"), rows))
