"""`edgemem verify`: the proof, stage by stage."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemem.cli.options import json_option, print_json, progress_bar, stderr, stdout, table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edgemem.boards import Board
    from edgemem.program import Program
    from edgemem.runtimes.firmware.emulator import BoardProgram
    from edgemem.runtimes.firmware.proof import Proof
    from edgemem.verify import Report, Stage


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
    """Compare FILE, step by step, with the torch module rebuilt from it, or with the file it was made from: the parent
    of a quantized file, the foreign file of an adopted one.

    \b
    edgemem verify r.onnx --steps 10000
    edgemem verify r.onnx --runtime ort --runtime aot --board rpi4 --board visionfive2
    edgemem verify q.onnx --reference r.onnx --json
    edgemem verify vad.onnx --reference silero_vad.onnx --runtime ort --runtime aot
    edgemem verify k.onnx --board mps2_an386 --board mps2_an500 --steps 200 --json
    edgemem verify r.onnx --runtime opencl --board pocl

    Error and what is allowed are those of the tensor that comes nearest to its tolerance: 1e-5 of its largest value,
    more where rounding alone takes torch further from its own float64. Of a quantized file, what is allowed is what
    `edgemem quantize` measured against the parent and wrote into the contract, doubled: the largest error of any
    tensor, and where that would let zeros pass, the RMS error of the outputs. No file may have that beyond 0.9 of their
    own RMS.

    For a microcontroller, JSON also says whether a free run gives the very bytes of this machine (byte_equal; of a
    step in integers, those of its reference), and the instructions of a step that the emulator counts.
    """
    from edgemem.boards import board
    from edgemem.errors import CheckFailed, UsageError
    from edgemem.modelfile import open_model
    from edgemem.verify import verify

    targets = {name: board(name) for name in boards}  # all are known before the first is built
    if file.is_dir():
        raise UsageError(
            f"{file} is a folder: verify the model file that its program was made of, with --board {board_of(file)}"
        )
    model = open_model(file)
    for target in targets.values():
        if target.kind == "bare":
            from edgemem.runtimes.firmware.emulator import require_emulator

            require_emulator(target)  # before anything is compiled
    programs, unbuilt = on_boards(file, targets)
    # a runtime whose board is named runs there; but that of host programs runs here too
    elsewhere = {target.runtime for target in targets.values()} - {"aot"}
    runtimes = tuple(name for name in runtimes if name not in elsewhere)
    with progress_bar() as progress:
        task = progress.add_task("comparing", total=steps * (len(runtimes) + 2 * len(boards)))
        report = verify(
            file, steps, runtimes, reference, programs=programs, seed=seed, tick=lambda: progress.advance(task)
        )
        proofs = firmware_proofs(file, programs, steps, seed, lambda: progress.advance(task))
    report = replace(report, stages=(*report.stages, *unbuilt))
    if as_json:
        print_json(with_proofs(report, proofs, differing(programs, proofs) is None))
    else:
        show(report)
        for name, proof in proofs.items():
            bytes_are = "the bytes of this machine" if proof.byte_equal else f"first {proof.first_difference}"
            stdout().print(f"{name}: {proof.instructions_per_step:,.0f} instructions a step; {bytes_are}")
    if reference is None and model.contract.quant.get("scheme", "none") != "none":
        stderr().print(
            f"{file} was not compared with the file that it was quantized from: that was recorded by `quantize`; pass "
            "--reference PARENT to compare again",
            markup=False,
            highlight=False,
        )
    if report.ok and (other := differing(programs, proofs)) is not None:
        raise CheckFailed(
            f"{file}: on {other} the step in integers is not, byte for byte, that of its reference; first "
            f"{proofs[other].first_difference}"
        )
    if not report.ok:
        broken = next(stage for stage in report.stages if not stage.holds)
        if broken.refused:
            raise CheckFailed(f"{file}: {broken.refused}")
        raise CheckFailed(
            f"{file}: stage {broken.name} differs from {broken.reference}: {broken}; first at {broken.first}"
        )


def board_of(folder: Path) -> str:
    """The board that a compiled folder is for, as its manifest says; BOARD if it says none."""
    try:
        return str(json.loads((folder / "manifest.json").read_text())["board"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return "BOARD"


def on_boards(file: Path, targets: Mapping[str, Board]) -> tuple[dict[str, Program], list[Stage]]:
    """The program of every board, and a failed stage for every board that it does not fit."""
    from edgemem.errors import BudgetError
    from edgemem.program import load
    from edgemem.verify import unbuilt

    programs: dict[str, Program] = {}
    failed = []
    for name, target in targets.items():
        try:
            programs[name] = load(file, runtime=target.runtime, board=name)
        except BudgetError as error:
            failed.append(unbuilt(name, error))
    return programs, failed


def firmware_proofs(
    file: Path, programs: Mapping[str, Program], steps: int, seed: int, tick: Callable[[], None]
) -> dict[str, Proof]:
    """What there is to say of the programs that are firmware, by board."""
    from edgemem.runtimes.firmware.emulator import BoardProgram
    from edgemem.runtimes.firmware.proof import proof

    boards = {name: program for name, program in programs.items() if isinstance(program, BoardProgram)}
    if not boards:
        return {}
    hosts: dict[str, Program] = {}
    for name, program in boards.items():
        hosts[name] = integer_reference(file) if program.integer else float_reference(file, program)
    return {name: proof(program, hosts[name], steps, seed, tick) for name, program in boards.items()}


def float_reference(file: Path, program: BoardProgram) -> Program:
    """The board's float kernels on this machine, or this machine's own where it cannot round as the board does."""
    from edgemem.program import load
    from edgemem.runtimes.firmware.twin import twin

    return twin(file, program.board) or load(file, runtime="aot")


def integer_reference(file: Path) -> Program:
    """The step in integers, in NumPy."""
    from edgemem.runtimes.integer.reference import IntegerProgram

    return IntegerProgram(file)


def differing(programs: Mapping[str, Program], proofs: Mapping[str, Proof]) -> str | None:
    """The first board whose step in integers does not give its reference's bytes; floats may differ in rounding."""
    integer = (name for name in proofs if getattr(programs[name], "integer", False))
    return next((name for name in integer if not proofs[name].byte_equal), None)


def with_proofs(report: Report, proofs: Mapping[str, Proof], equal: bool) -> dict[str, Any]:
    """The report as JSON; of microcontrollers also equality of bytes, and instructions by board.

    `equal`: steps in integers give the bytes of their reference.
    """
    found = report.to_json()
    if proofs:
        found["ok"] = bool(found["ok"]) and equal
        found["byte_equal"] = all(proof.byte_equal for proof in proofs.values())
        found["instructions_per_step"] = {name: proof.instructions_per_step for name, proof in proofs.items()}
        found["boards"] = {name: asdict(proof) for name, proof in proofs.items()}
    return found


def show(report: Report) -> None:
    """The stages as a table."""
    rows = [
        (
            stage.name,
            stage.reference,
            *measures(stage),
            "holds" if stage.holds else stage.refused or f"FAILS at {stage.first}",
        )
        for stage in report.stages
    ]
    stdout().print(
        table(("stage", "against", "steps", "error", "allowed", "of tensor", "drift / 1000", "verdict"), rows)
    )


def measures(stage: Stage) -> tuple[str, str, str, str, str]:
    """Steps, error, what is allowed, of which tensor, and drift; what a stage has none of is a dash."""
    if stage.refused:
        return ("–", "not built", "–", "–", "–")
    if stage.counts:
        return ("–", f"{stage.max_abs_error:.0f} altered", "0", stage.tensor or "–", "–")
    error, allowed = f"{stage.max_abs_error:.1e}", f"{stage.tolerance:.1e}"
    return (str(stage.steps), error, allowed, stage.tensor or "–", f"{stage.drift_per_1000_steps:.1e}")
