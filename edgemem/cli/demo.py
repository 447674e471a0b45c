"""`edgemem demo`: the whole way, on real audio."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("build/demo"), show_default=True,
    help="Folder for the model, the snapshot and the picture.",
)  # fmt: skip
def command(output: Path) -> None:
    """Export the shipped keyword spotter, verify it, stream a sentence through it, and check a snapshot.

    \b
    edgemem demo
    """
    from edgemem import demo
    from edgemem.cli.options import stdout
    from edgemem.errors import CheckFailed
    from edgemem.export import export_model
    from edgemem.program import load
    from edgemem.tasks.kws import Detection
    from edgemem.text import human_bytes
    from edgemem.verify import verify

    console = stdout()
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{demo.MODEL}.onnx"

    with console.status(f"exporting {demo.MODEL} from torch"):
        contract = export_model(demo.MODEL, file)
    console.print(f"exported  {file}, {human_bytes(file.stat().st_size)}, {contract.model.parameters:,} parameters")

    with console.status("comparing the file with torch"):
        report = verify(file, demo.VERIFY_STEPS)
    for stage in report.stages:
        verdict = "holds" if stage.holds else f"FAILS at {stage.first}"
        console.print(
            f"verified  {stage.name} against {stage.reference}: {stage.max_abs_error:.1e} of "
            f"{stage.tolerance:.1e} allowed, {stage.steps} steps: {verdict}"
        )
    if not report.ok:
        raise CheckFailed("the exported file does not compute what torch computes; see the stages above")

    program = load(file)
    sound, words = demo.sentence()
    rate = program.stream().sample_rate
    console.print(f"streaming {len(sound) / rate:.1f} s, in it: {' '.join(word['word'] for word in words)}")

    def heard(found: Detection) -> None:
        console.print(f"  {found.time:5.2f} s  [bold]{found.label}[/bold]  {found.score:.2f}")

    result = demo.listen(program, sound, heard)
    states = sum(array.nbytes for array in program.stream().state.values())
    factor = result.wall_seconds / (len(sound) / rate)
    console.print(
        f"streamed  in {result.wall_seconds:.2f} s, real-time factor {factor:.4f}, state {human_bytes(states)}"
    )

    size = demo.check_snapshot(program, sound, output / "state.safetensors")
    console.print(f"resumed   from a snapshot of {human_bytes(size)} in the middle: bit-identical outputs")
    demo.picture(sound, rate, result, contract.outputs[0].labels or (), words, output / "demo.png")
    console.print(f"picture   {output / 'demo.png'}")
