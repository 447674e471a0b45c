"""`edgemem compile --board` for a microcontroller: a project that builds, its image, and what everything weighs."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from edgemem.boards import Board
from edgemem.contract import Contract
from edgemem.modelfile import open_model
from edgemem.program import load
from edgemem.runtimes.aot import emit, emit_header
from edgemem.runtimes.aot.compiler import (
    Generated,
    existing_parent,
    generated,
    install,
    manifest_of,
    write_manifest,
)
from edgemem.runtimes.aot.toolchain import toolchain
from edgemem.runtimes.firmware import budget, build, cost, elf, layout, sound, sources, work
from edgemem.runtimes.firmware.readme import readme
from edgemem.runtimes.firmware.vectors import Vectors, vectors
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.generate import IntegerKernels, is_integer
from edgemem.runtimes.integer.generate import generated as integer_step
from edgemem.text import human_bytes


def write_firmware(
    path: Path,
    board: Board,
    output: Path,
    name: str | None,
    progress: Callable[[str], None],
    snapshots: bool = True,
) -> dict[str, Any]:
    """Compile a model file into a firmware project in the folder `output`, and return the manifest.

    Without `snapshots`, their code and their flash are left out.

    Raises:
        BudgetError: the firmware needs more flash or RAM than the board has; nothing is written.
        CompileError: the C compiler or the linker failed.
        MissingDependency: TVM, the board's C compiler or GNU Make is not installed.
    """
    tools = toolchain(board)
    program, reason = program_of(path, board, name, progress)
    progress("test vectors")
    checks = test_vectors(path, program, reason)
    progress("generating code")
    with tempfile.TemporaryDirectory(prefix=".edgemem-", dir=existing_parent(output)) as folder:
        place = Path(folder)
        predicted = budget.predicted(board, program, checks, place, tools, snapshots)
        budget.check(board, program, predicted)
        kept = snapshot_facts(board, program, predicted, snapshots)
        heard = write_project(place, board, program, checks, predicted, kept)
        progress("building")
        build.make(place, "EXTRA=-Werror", f"PYTHON={sys.executable}")
        manifest = manifest_of(place, program.model, board, program.source, program.kernels, tools)
        manifest["budget"] = budget.weighed(board, predicted, elf.read(place / build.IMAGE))
        manifest["products"] = program.products
        manifest["integer"] = integer_facts(program, reason)
        manifest["work"] = work.of_program(program)
        manifest["prediction"] = cost.facts(prediction(board, program, manifest["work"]))
        manifest["snapshots"] = kept
        manifest["sound"] = None if heard is None else asdict(heard)
        manifest["no_sound"] = no_sound(board, program.source.contract, predicted)
        clean(place, program)
        write_manifest(place, manifest)
        for own in (build.SHARED, build.EXAMPLES):
            shutil.rmtree(output / own, ignore_errors=True)
        install(place, output)
    return manifest


def program_of(
    path: Path, board: Board, name: str | None, progress: Callable[[str], None]
) -> tuple[Generated, str | None]:
    """The step in integers where the file's scheme is made for that, else with float kernels, and why not."""
    if not is_integer(open_model(path).contract):
        return generated(path, board, name, progress), "the scheme has no fixed scales"
    try:
        progress("lowering to integers")
        return integer_step(path, name), None
    except NotInteger as error:
        return generated(path, board, name, progress), str(error)


def test_vectors(path: Path, program: Generated, reason: str | None) -> Vectors:
    """Vectors of the integer reference, to be met byte for byte, or of onnxruntime."""
    if reason is None:
        from edgemem.runtimes.integer.reference import IntegerProgram

        return vectors(IntegerProgram(path), exact=True)
    return vectors(load(path), rounded=str(program.model.contract.quant.get("scheme")).startswith("w8a8"))


def integer_facts(program: Generated, reason: str | None) -> dict[str, Any]:
    """Whether the step runs in integers, why not, and the scales of the states that are kept as integers."""
    if not isinstance(program.kernels, IntegerKernels):
        return {"step": False, "reason": reason, "state_scales": {}}
    return {"step": True, "reason": None, "state_scales": program.kernels.step.scales}


def prediction(board: Board, program: Generated, counts: list[dict[str, float]]) -> cost.Prediction | None:
    """Instructions of a step, and how busy the core is if its input comes in real time."""
    chunk = program.model.contract.chunk
    seconds = None if chunk.seconds_per_unit is None else chunk.seconds_per_unit * chunk.size
    return cost.predicted(board, isinstance(program.kernels, IntegerKernels), counts, seconds)


def snapshot_facts(board: Board, program: Generated, predicted: budget.Budget, asked: bool) -> dict[str, Any]:
    """Where the two banks of flash are, whose states they take, and why they are left out."""
    assert board.flash_origin is not None and board.flash_bytes is not None
    each = predicted.flash["snapshots"] // 2
    offset = board.flash_bytes - 2 * each
    wanted = 2 * budget.bank_bytes(board, program.source)
    left_out = None if asked else "compiled with --no-snapshots"
    if asked and wanted and not each:
        rest = board.flash_bytes - predicted.flash_bytes
        left_out = f"two snapshots take {human_bytes(wanted)} of flash, {human_bytes(rest)} are left"
    identity = f"{program.source.identity:#018x}"
    return {
        "address": board.flash_origin + offset,
        "offset": offset,  # from the start of flash
        "bank_bytes": each,
        "unit_bytes": board.flash_unit_bytes,
        "identity": identity,
        "left_out": left_out,
    }


def no_sound(board: Board, contract: Contract, predicted: budget.Budget) -> str | None:
    """Why there is no example that hears, and whether there would be without snapshots."""
    free = budget.free(board, predicted)
    why = sound.obstacle(board, contract, free)
    if why is None:
        return None
    without = {**free, "flash": free["flash"] + predicted.flash["snapshots"]}
    helps = sound.obstacle(board, contract, without) is None
    return f"{why}; --no-snapshots makes room" if helps else why


def write_project(
    folder: Path,
    board: Board,
    program: Generated,
    checks: Vectors,
    predicted: budget.Budget,
    snapshots: Mapping[str, Any],
) -> build.Sound | None:
    """Every source of a project, beside the kernels' object; what of it takes sound."""
    source, name = program.source, program.source.name
    bank = int(snapshots["bank_bytes"])
    own = folder / build.SHARED
    own.mkdir()
    (folder / f"{name}.h").write_text(emit_header.header(source))
    (folder / f"{name}.c").write_text(emit.driver(source))
    (folder / f"{name}_weights.bin").write_bytes(program.blob)
    (folder / f"{name}_weights.S").write_text(emit.weights_text(name, source.plan.alignment, ".weights"))
    (own / "board.h").write_text(sources.board_h(board, bank))
    (own / "edgemem_model.c").write_text(sources.model_c(source))
    (own / "vectors.c").write_text(sources.vectors_c(checks))
    (folder / "firmware.ld").write_text(layout.linker_script(board, predicted.ram["stack"], bank))
    shared = build.copy_sources(board, folder, snapshots=bank > 0)
    if board.boot == "rp2040":
        build.write_boot_checksum(board, folder)
    files = [*shared, f"{build.SHARED}/edgemem_model.c", f"{build.SHARED}/vectors.c", f"{name}.c", f"{name}_weights.S"]
    kernels = program.kernels.sources(folder)
    heard = sound.write(folder, board, name, source.contract, budget.free(board, predicted))
    (folder / "Makefile").write_text(build.makefile(board, name, files, kernels, heard))
    (folder / "CMakeLists.txt").write_text(build.cmakelists(board, name, files, kernels, heard))
    (folder / "toolchain.cmake").write_text(build.toolchain_cmake(board))
    if board.uf2_family is not None:
        (folder / "uf2.py").write_text(resources.files("edgemem.runtimes.firmware").joinpath("uf2.py").read_text())
    model = source.contract.model.name
    (folder / "README.md").write_text(readme(board, model, kernels, heard, snapshots))
    return heard


def clean(folder: Path, program: Generated) -> None:
    """Drop what `make` can make again; kernels that are an object stay."""
    kept = () if program.kernels.sources(folder) else (f"{program.source.name}_kernels.o",)
    for file in folder.rglob("*.o"):
        if file.name not in kept:
            file.unlink()
