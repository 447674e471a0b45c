"""`edgemem demo`: the whole way, on real audio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgemem.cli.options import json_option, print_json, stderr, stdout
from edgemem.text import human_bytes

if TYPE_CHECKING:
    from rich.console import Console

    from edgemem.contract import Contract
    from edgemem.demo import Listening
    from edgemem.program import Program
    from edgemem.verify import Report


@click.command("demo")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("build/demo"), show_default=True,
    help="Folder for the model, the snapshot and the picture.",
)  # fmt: skip
@json_option
def command(output: Path, as_json: bool) -> None:
    """Export the shipped keyword spotter, verify it, stream a sentence through it, and check a snapshot.

    \b
    edgemem demo
    edgemem demo --output /tmp/demo --json
    """
    from edgemem import demo
    from edgemem.program import load

    console = stderr() if as_json else stdout()
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{demo.MODEL}.onnx"
    contract = exported(console, demo.MODEL, file)
    report = verified(console, file, demo.VERIFY_STEPS)
    program = load(file)
    heard = listened(console, program)
    snapshot_bytes = demo.check_snapshot(program, heard.sound, output / "state.safetensors")
    console.print(f"resumed   from a snapshot of {human_bytes(snapshot_bytes)} in the middle: bit-identical outputs")
    demo.picture(heard, contract.outputs[0].labels or (), output / "demo.png")
    console.print(f"picture   {output / 'demo.png'}")
    if as_json:
        print_json({"verify": report.to_json(), **heard.to_json(), "snapshot_bytes": snapshot_bytes})


def exported(console: Console, model: str, file: Path) -> Contract:
    """The shipped spotter as a file."""
    from edgemem.export import export_model

    with console.status(f"exporting {model} from torch"):
        contract = export_model(model, file)
    console.print(f"exported  {file}, {human_bytes(file.stat().st_size)}, {contract.model.parameters:,} parameters")
    return contract


def verified(console: Console, file: Path, steps: int) -> Report:
    """The proof of the file.

    Raises:
        CheckFailed: a stage does not hold.
    """
    from edgemem.errors import CheckFailed
    from edgemem.verify import verify

    with console.status("comparing the file with torch"):
        report = verify(file, steps)
    for stage in report.stages:
        verdict = "holds" if stage.holds else f"FAILS at {stage.first}"
        console.print(
            f"verified  {stage.name} against {stage.reference}: {stage.max_abs_error:.1e} of "
            f"{stage.tolerance:.1e} allowed, {stage.steps} steps: {verdict}"
        )
    if not report.ok:
        raise CheckFailed("the exported file does not compute what torch computes; see the stages above")
    return report


def listened(console: Console, program: Program) -> Listening:
    """The sentence through the program, detections printed as they happen."""
    from edgemem import demo

    sound, words = demo.sentence()
    seconds = len(sound) / program.stream().sample_rate
    console.print(f"streaming {seconds:.1f} s, in it: {' '.join(word['word'] for word in words)}")
    heard = demo.listen(
        program, sound, words, lambda d: console.print(f"  {d.time:5.2f} s  [bold]{d.label}[/bold]  {d.score:.2f}")
    )
    console.print(
        f"streamed  in {heard.wall_seconds:.2f} s, real-time factor {heard.real_time_factor:.4f}, "
        f"state {human_bytes(heard.state_bytes)}"
    )
    return heard
