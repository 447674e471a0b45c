"""`edgemem compile`: a model file to a C library."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemem.cli.options import json_option, print_json, stderr

if TYPE_CHECKING:
    from edgemem.boards import Board


@click.command("compile")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--board", default="host", show_default=True, help="A name from `edgemem boards`, or a board file of your own."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder for the program.")
@click.option(
    "--runtime", type=click.Choice(["aot", "opencl", "tvm"]), help="What is to run it; the board's own if left out."
)
@click.option("--name", help="Prefix of the C functions, in lower case; the model's name if left out.")
@click.option(
    "--report", is_flag=True, help="Also draw memory.svg: the arena over the calls of a step, and what a step takes."
)
@click.option(
    "--no-snapshots", is_flag=True, help="Firmware without snapshots of its state in flash, neither room nor code."
)
@json_option
def command(
    file: Path,
    board: str,
    output: Path,
    runtime: str | None,
    name: str | None,
    report: bool,
    no_snapshots: bool,
    as_json: bool,
) -> None:
    """Compile FILE for a board into C that needs no Python, no TVM and no heap where it runs.

    Its state and arena count the padding that aligns each tensor; `edgemem inspect` counts the tensors alone.

    For a board with an operating system that is a library, for a microcontroller a firmware project with its image:
    `make` in it builds it again, and the self-test says PASS on the board's console.

    \b
    edgemem compile r.onnx --board host -o build/
    edgemem run build/ --input tokens.npy
    edgemem compile k.onnx --board rpi4 -o build/rpi4 --json
    edgemem compile k.onnx --board nucleo_f446re -o fw/ --report
    edgemem compile r.onnx --board mali_g610 --runtime opencl -o mali/
    """
    from edgemem.boards import board as described
    from edgemem.errors import BudgetError

    begin = time.perf_counter()
    target = described(board)  # what cannot be is refused before the compiler is loaded
    check_wishes(target, runtime, report, no_snapshots)

    from edgemem.runtimes.aot.compiler import compile_model

    try:
        with stderr().status(f"compiling {file}") as status:
            manifest = compile_model(
                file,
                target,
                output,
                name,
                progress=lambda stage: status.update(f"compiling {file}: {stage}"),
                snapshots=not no_snapshots,
            )
    except BudgetError as error:
        if as_json:
            print_json({"error": str(error), "needs": error.needs})
        raise
    if report:
        draw(manifest, output / "memory.svg")
    if as_json:
        print_json(manifest)
        return
    seconds = time.perf_counter() - begin
    for line in (
        f"wrote {output} for {target.title} in {seconds:.1f} s: {size_line(manifest)}",
        *([f"  {integer_line(manifest['integer'])}"] if "integer" in manifest else []),
        *product_lines(manifest["products"]),
        *(firmware_lines(manifest, output) if "budget" in manifest else []),
    ):
        stderr().print(line, highlight=False)


def check_wishes(target: Board, runtime: str | None, report: bool, no_snapshots: bool) -> None:
    """Refuse what the board's programs cannot be or do.

    Raises:
        UsageError: another runtime than the board's, a picture of a program without an arena, or firmware's snapshots
            left out of what is none.
    """
    from edgemem.errors import UsageError

    if runtime not in (None, target.runtime):
        raise UsageError(
            f"board {target.name} runs programs of {target.runtime}, --runtime {runtime} came; leave it out, or choose "
            "another board"
        )
    if report and target.gpu is not None:
        raise UsageError(
            f"--report draws the arena of aot programs, board {target.name} runs {target.runtime}; leave it out"
        )
    if no_snapshots and target.kind != "bare":
        raise UsageError(
            f"--no-snapshots is of a microcontroller's firmware, board {target.name} runs under an operating system; "
            "leave it out"
        )


def draw(manifest: Mapping[str, Any], path: Path) -> None:
    """The arena over the calls of a step, and of firmware what a step takes, as SVG."""
    from edgemem.files import atomic_write
    from edgemem.runtimes.aot.picture import svg

    notes = prediction_lines(manifest["prediction"]) if "prediction" in manifest else []
    picture = svg(manifest["name"], manifest["arena"], manifest["calls"], manifest["bytes"], notes)
    with atomic_write(path) as drawing:
        drawing.write(picture.encode())
    stderr().print(f"wrote {path}", highlight=False, markup=False)


def size_line(manifest: Mapping[str, Any]) -> str:
    """Kernel calls, and the bytes of weights, state and arena."""
    from edgemem.text import human_bytes

    sizes = manifest["bytes"]
    arena = ""
    if "arena" in sizes:
        arena = (
            f", arena {human_bytes(sizes['arena'])} "
            f"(no plan can do with less than {human_bytes(sizes['arena_lower_bound'])})"
        )
    graph = ", one CUDA graph" if manifest.get("graphs") else ""
    return (
        f"{len(manifest['calls'])} kernel calls a step{graph}; weights {human_bytes(sizes['weights'])}, "
        f"state {human_bytes(sizes['state'])}{arena}"
    )


def firmware_lines(manifest: Mapping[str, Any], folder: Path) -> list[str]:
    """What flash and RAM hold, what a step will take, and the examples that hear."""
    from edgemem.text import human_bytes

    budget, lines = manifest["budget"], []
    for what in ("flash", "ram"):
        parts = ", ".join(f"{k.replace('_', ' ')} {human_bytes(v)}" for k, v in budget["linked"][what].items())
        took, there = budget[f"{what}_bytes"]["linked"], budget["board"][f"{what}_bytes"]
        lines.append(f"{what}: {human_bytes(took)} of {human_bytes(there)} ({parts})")
    lines += prediction_lines(manifest["prediction"])
    if manifest["snapshots"]["left_out"] is not None:
        lines.append(f"no snapshots, the state ends with the power: {manifest['snapshots']['left_out']}")
    if manifest["no_sound"] is not None:
        lines.append(f"no example that hears: {manifest['no_sound']}")
    if manifest["sound"] is not None:
        images = " ".join(f"{name}.elf" for name in manifest["sound"]["examples"])
        lines.append(f"examples that hear: make -C {folder} {images}")
    return lines


def prediction_lines(found: Mapping[str, Any] | None) -> list[str]:
    """What a step will take and whether that keeps up with real time, or that nobody knows."""
    from edgemem.text import duration

    if found is None:
        return ["a step: no emulated board has this core, so its instructions are not predicted"]
    text = (
        f"a step: about {found['instructions']:,.0f} instructions (within {found['error']:.0%}, by counts on "
        f"{found['fitted_on']})"
    )
    if found["cycles"] is None:
        return [f"{text}; nothing is published of its core's cycles"]
    least, most = found["cycles"]
    lines = [f"{text}, {least:,.0f} to {most:,.0f} cycles ({found['cycles_source']})"]
    for time_ in found["times"]:
        least, most = (duration(seconds) for seconds in time_["seconds"])
        line = f"  at {time_['clock_hz'] / 1e6:g} MHz {least} to {most}"
        if time_["load"] is not None:
            low, high = time_["load"]
            verdict = {True: "it keeps up", False: "it is too slow", None: "it may be too slow"}[time_["keeps_up"]]
            line += f", {low:.0%} to {high:.0%} of real time: {verdict}"
        lines.append(line)
    if len(lines) > 2:
        lines[-1] += " (the clock that the firmware starts with)"
    return lines


def integer_line(integer: Mapping[str, Any]) -> str:
    """Whether the step runs in integers, and if not, what keeps it from that."""
    return "the step runs in integers" if integer["step"] else f"the step keeps float kernels: {integer['reason']}"


def product_lines(products: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many products of the model each kernel computes, and why no better one does."""
    groups = Counter((row["kernel"], row["reason"]) for row in products)
    return [
        f"  {count} product{'s' if count > 1 else ''}: {kernel}{f' ({reason})' if reason else ''}"
        for (kernel, reason), count in sorted(groups.items())
    ]
