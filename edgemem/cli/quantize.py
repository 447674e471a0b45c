"""`edgemem quantize`: a smaller model file, and what that costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgemem.cli.options import json_option, print_json, progress_bar, stderr, stdout, table

if TYPE_CHECKING:
    from edgemem.quant import Report


@click.command("quantize")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@click.option(
    "--scheme", default="w8", show_default=True, metavar="SCHEME", help="One of those below, as NAME:key=value,…"
)
@click.option("--calibrate", type=click.Path(path_type=Path), metavar="DATA", help="Data to look at: see below.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Tensors that stay as they are, such as 'head.*'.")
@click.option(
    "--state",
    default="f32",
    show_default=True,
    metavar="POLICY",
    help="How states are stored: f32, f16, i16, i8, i8+dither, i8+feedback, auto.",
)
@click.option(
    "--state-budget", metavar="SHARE", help="What auto may cost: output error, or with --task its metric.  [0.5%]"
)
@click.option("--smallest", type=click.IntRange(0), help="Matrices of fewer elements stay float32.  [default: 512]")
@click.option("--task", metavar="TASK", help="Judge both files on this task, such as kws.")
@click.option("--steps", type=click.IntRange(1), help="Steps to compare with FILE for the certificate.  [default: 512]")
@json_option
def command(
    file: Path,
    output: Path,
    scheme: str,
    calibrate: Path | None,
    exclude: tuple[str, ...],
    state: str,
    state_budget: str | None,
    smallest: int | None,
    task: str | None,
    steps: int | None,
    as_json: bool,
) -> None:
    """Quantize FILE by SCHEME; the result is again ONNX with a contract, and runs in onnxruntime as it is.

    \b
    edgemem quantize k.onnx -o k8.onnx --scheme w8
    edgemem verify k8.onnx --reference k.onnx --steps 10000
    edgemem quantize k.onnx -o ks.onnx --scheme w8a8 --state auto --state-budget 1% --task kws
    edgemem quantize m.onnx -o m4.onnx --scheme vq:dim=4,codes=256,tune=500 --calibrate features.npy

    
    f16           float16 weights
    w8            int8 weights, a scale per output
    w8a8-dynamic  int8 × int8, activations scaled by row in every step
    w8a8          the whole step in integers, scales from calibration; calibrator
    w8a8-outlier  int8 × int8, the few huge features in float16; percent
    w4g32         4-bit weights, a scale per 32 inputs
    vq            codes of vectors of weights; dim, codes, residual, mirror, tune, seed
    memory-vq     codes of what is remembered; dim, codes, tune, seed

    w8a8, w8a8-outlier, memory-vq, and states other than f32 and f16 need calibration data, which a shipped model has
    of its own. --calibrate takes an array in .npy [time, features] or [sequences, time, features], .npz with such
    arrays by the names of the inputs, a sound or a folder of sounds, or a text.
    """
    from edgemem.quant import quantize

    budget = None if state_budget is None else share(state_budget)
    given = {"smallest": smallest, "steps": steps, "state_budget": budget}
    options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    with progress_bar() as progress:
        bar = progress.add_task(f"quantizing {file}", total=1.0)
        options["tick"] = lambda stage, share: progress.update(
            bar, description=f"quantizing {file}: {stage}", completed=share
        )
        report = quantize(file, output, scheme, calibrate=calibrate, exclude=exclude, state=state, task=task, **options)  # type: ignore[arg-type]
    for warning in report.warnings:
        stderr().print(f"warning: {warning}", markup=False, highlight=False)
    if as_json:
        print_json({"file": str(output), **report.to_json()})
    else:
        show(report, output)


def share(text: str) -> float:
    """`0.5%` or `0.005`.

    Raises:
        UsageError: no number above 0.
    """
    from edgemem.errors import UsageError

    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--state-budget must be a share above 0, such as 0.5% or 0.005, got {text!r}")
    return value


def show(report: Report, output: Path) -> None:
    """The tensors as a table, then sizes and the error."""
    from edgemem.text import human_bytes

    rows = [
        (
            choice.name,
            "×".join(map(str, choice.shape)),
            choice.choice,
            f"{choice.bytes_before:,} → {choice.bytes_after:,}",
            f"{choice.relative_error:.2%}",
        )
        for choice in sorted((*report.tensors, *report.skipped), key=lambda choice: -choice.bytes_before)
    ]
    console = stdout()
    console.print(table(("tensor", "shape", "stored as", "bytes", "error"), rows, wrap="tensor"))
    if report.state_bytes_after != report.state_bytes_before:
        kept = ", ".join(f"{name} {policy}" for name, policy in report.states.items())
        sizes = f"{human_bytes(report.state_bytes_before)} → {human_bytes(report.state_bytes_after)}"
        console.print(f"state: {sizes} ({kept})", highlight=False, markup=False)
    if report.quality:
        q = report.quality
        console.print(f"{q['task']}: {q['metric']} {q['before']:.4f} → {q['after']:.4f}", highlight=False)
    if report.output_error is not None:
        console.print(f"outputs on the calibration data: {report.output_error:.2%} off (RMS)", highlight=False)
    console.print(
        f"{output}: {human_bytes(report.bytes_before)} → {human_bytes(report.bytes_after)} "
        f"({report.ratio:.3f}×); {error_line(report)}",
        highlight=False,
        markup=False,
    )


def error_line(report: Report) -> str:
    """The certificate's error and what is allowed: of any tensor, or where that proves nothing, the outputs' RMS."""
    proof = report.certificate
    if report.relative_tolerance is None:
        return (
            f"outputs off by {proof.max_rel_error:.1%} (RMS) over {proof.steps} steps, too coarse for a largest error; "
            f"`verify --reference` allows {report.rms_tolerance:.1%}"
        )
    return (
        f"largest error {proof.max_abs_error:.1e}, {proof.max_rel_error:.1e} of the tensor's largest value, over "
        f"{proof.steps} steps; `verify --reference` allows {report.relative_tolerance:.1e} of it"
    )
