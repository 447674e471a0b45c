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
    from edgemem.tasks.kws import Detection
    from edgemem.verify import Report


@click.command("demo")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("build/demo"), show_default=True,
    help="Folder for the model, the snapshot and the picture.",
)  # fmt: skip
@json_option
def command(output: Path, as_json: bool) -> None:
    """Export the shipped keyword spotter, verify it, quantize and compile it, stream a sentence through it, and check
    a snapshot. Each stage says how long one frame takes in it.

    \b
    edgemem demo
    edgemem demo --output demo --json
    """
    from edgemem import demo
    from edgemem.program import load

    console = stderr() if as_json else stdout()
    console.soft_wrap = True
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{demo.MODEL}.onnx"
    contract = exported(console, demo.MODEL, file)
    report = verified(console, file, demo.VERIFY_STEPS)
    times = {"torch": demo.frame_us(demo.in_torch(file)), "onnxruntime": demo.frame_us(load(file))}
    program = compiled(console, quantized(console, file, times), times)
    timed(console, times, 1e6 * (contract.seconds_per_frame or 0.0))
    heard = listened(console, program)
    snapshot_bytes = demo.check_snapshot(program, heard.sound, output / "state.safetensors")
    console.print(f"resumed   from a snapshot of {human_bytes(snapshot_bytes)} in the middle: bit-identical outputs")
    demo.picture(heard, contract.outputs[0].labels or (), output / "demo.png")
    console.print(f"picture   {output / 'demo.png'}")
    if as_json:
        print_json({"verify": report.to_json(), "frame_us": times, **heard.to_json(), "snapshot_bytes": snapshot_bytes})


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
        console.print(f"verified  {stage.name} against {stage.reference}: {stage}: {verdict}")
    if not report.ok:
        raise CheckFailed("the exported file does not compute what torch computes; see the stages above")
    return report


def quantized(console: Console, file: Path, times: dict[str, float]) -> Path:
    """The file in int8 beside it, or the file itself where no quantizer is installed."""
    from edgemem import demo
    from edgemem.errors import MissingDependency
    from edgemem.program import load

    smaller = file.with_suffix(f".{demo.SCHEME}.onnx")
    try:
        from edgemem.quant import quantize

        with console.status(f"quantizing by {demo.SCHEME}, calibrated on speech"):
            report = quantize(file, smaller, demo.SCHEME)
    except MissingDependency as error:
        console.print(f"skipped   int8: {error}")
        return file
    times[f"onnxruntime, {demo.SCHEME}"] = demo.frame_us(load(smaller))
    console.print(f"quantized {smaller}, {human_bytes(report.bytes_after)}, {report.ratio:.2f} of {file.name}")
    return smaller


def compiled(console: Console, file: Path, times: dict[str, float]) -> Program:
    """The file as a program for this machine, or in onnxruntime where no compiler is installed."""
    from edgemem import demo
    from edgemem.boards import board
    from edgemem.errors import MissingDependency
    from edgemem.program import load

    folder = file.with_suffix("")
    try:
        from edgemem.runtimes.aot.compiler import compile_model

        with console.status("compiling for this machine"):
            manifest = compile_model(file, board("host"), folder)
    except MissingDependency as error:
        console.print(f"skipped   compiling: {error}")
        return load(file)
    program = load(folder)
    scheme = f", {demo.SCHEME}" if demo.SCHEME in file.name else ""
    times[f"compiled{scheme}"] = demo.frame_us(program)
    console.print(f"compiled  {folder}, {len(manifest['calls'])} kernel calls a frame, needs no library where it runs")
    return program


def timed(console: Console, times: dict[str, float], frame_us: float) -> None:
    """Each stage's time per frame, beside the sound that a frame stands for."""
    from edgemem import demo

    console.print(f"time per frame of {frame_us / 1000:g} ms:", highlight=False)
    for stage, us in times.items():
        console.print(f"  {stage:<20} {us:8.1f} µs", highlight=False)
    plain, int8 = times["onnxruntime"], times.get(f"onnxruntime, {demo.SCHEME}", 0.0)
    if int8 > plain:
        console.print("  (onnxruntime turns int8 into float anew in every step; a compiled program does not)")


def listened(console: Console, program: Program) -> Listening:
    """The sentence through the program, detections printed as they happen."""
    from edgemem import demo

    sound, words = demo.sentence()
    seconds = len(sound) / program.stream().sample_rate
    console.print(f"streaming {seconds:.1f} s, in it: {' '.join(word['word'] for word in words)}")

    def show(found: Detection) -> None:
        console.print(f"  {found.time:5.2f} s  [bold]{found.label}[/bold]  {found.score:.2f}", markup=True)

    heard = demo.listen(program, sound, words, show)
    console.print(
        f"streamed  all {seconds:.1f} s, front end and detector included, in {heard.wall_seconds:.2f} s: "
        f"real-time factor {heard.real_time_factor:.4f}, "
        f"state {human_bytes(heard.state_bytes)}"
    )
    return heard
