"""From a model file to a folder with a program: the stages one after another.

NAME.h NAME.c           what a C program includes, and the step in C99
NAME_kernels.o          TVM's code for the board's core
NAME_weights.bin .S     the weights, and the section that holds them
NAME.so NAME.a          the same linked
NAME_team.h NAME_team.c the step on several threads
NAME.pc -config.cmake   how pkg-config and CMake find them
NAME_frontend.h         of a model of sound, with edgemem_frontend.h and .c: features from samples
tokenizer.json          of a model of text that has one
manifest.json           contract, digests, compilers, sizes, memory plan, the PrimFunc behind each kernel
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgemem import __version__, modelfile, tokenizer
from edgemem import contract as contracts
from edgemem.boards import Board
from edgemem.digests import canonical
from edgemem.errors import BudgetError, UsageError
from edgemem.files import check_place
from edgemem.muted import muted
from edgemem.runtimes.aot import (
    emit,
    emit_audio,
    emit_calls,
    emit_flush,
    emit_frontend,
    emit_header,
    emit_package,
    emit_run,
    emit_team,
    emit_tiles,
    tile_unit,
)
from edgemem.runtimes.aot.attention import with_attention
from edgemem.runtimes.aot.folding import folded
from edgemem.runtimes.aot.graph import Graph, Tensor, graph_of
from edgemem.runtimes.aot.importer import REMARKS, imported, require_tvm
from edgemem.runtimes.aot.kernels import AnyKernels, Kernels
from edgemem.runtimes.aot.legalize import legalized
from edgemem.runtimes.aot.load import FORMAT, MANIFEST
from edgemem.runtimes.aot.lowering import Lowered
from edgemem.runtimes.aot.machine import Machine, machine
from edgemem.runtimes.aot.picture import arena_rows
from edgemem.runtimes.aot.plan import Plan, StateSlot, aligned, planned
from edgemem.runtimes.aot.rings import with_rings
from edgemem.runtimes.aot.toolchain import FLAGS, WARNINGS, Toolchain, toolchain
from edgemem.text import human_bytes

EXPORTED = ("reset", "step", "step_bound", "finite", "state", "check",
            "team_bytes", "team_start", "team_step", "team_idle", "team_stop")  # fmt: skip
GATHER = "take"  # PrimFuncs that read rows by index
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")  # of what C code of a user's can call


def compile_model(
    path: str | Path,
    board: Board,
    output: str | Path,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
    snapshots: bool = True,
) -> dict[str, Any]:
    """Compile a model file for a board into the folder `output`, and return the manifest.

    `snapshots`: whether firmware may keep its state in flash, where there is room.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
        BudgetError: the program needs more memory than the board has; nothing is written.
        CompileError: the C compiler failed.
        MissingDependency: TVM or the board's C compiler is not installed.
        UsageError: `output` is a file, or a folder that holds something else or cannot be written, or `name` is no C
            identifier.
    """
    target_folder = Path(output)
    check_name(name)
    check_output(target_folder)
    require_tvm()
    if board.gpu is not None:
        from edgemem.runtimes.gpu import write_program

        return write_program(Path(path), board, target_folder, name, progress)
    if board.kind == "bare":
        from edgemem.runtimes.firmware.writer import write_firmware

        return write_firmware(Path(path), board, target_folder, name, progress, snapshots)
    tools = toolchain(board)
    program = generated(Path(path), board, name, progress)
    check_budget(board, program.model.contract.model.name, program.source)
    with tempfile.TemporaryDirectory(prefix=".edgemem-", dir=existing_parent(target_folder)) as folder:
        progress("generating code")
        build(Path(folder), program.source, program.blob, program.kernels, tools)
        attach_tokenizer(Path(folder), program.model)
        manifest = manifest_of(Path(folder), program.model, board, program.source, program.kernels, tools)
        manifest["products"] = program.products
        write_manifest(Path(folder), manifest)
        install(Path(folder), target_folder)
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """`manifest.json` of a finished build."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Generated:
    """A model as source text, weights and kernels, before any of it is written."""

    model: modelfile.ModelFile
    source: emit_calls.Source
    blob: bytes
    kernels: AnyKernels
    products: list[dict[str, Any]]  # which kernel computes each product of the model, and why no better one


def generated(
    path: Path,
    board: Board,
    name: str | None = None,
    progress: Callable[[str], None] = lambda stage: None,
    target: Machine | None = None,
) -> Generated:
    """Import, fuse, schedule and place a model for a board; `target` stands in for the machine of the board.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
    """
    model = modelfile.open_model(path)
    name = emit_calls.prefix(name or model.contract.model.name)
    ranges = {port.name: port.range for port in model.contract.inputs if port.range is not None}
    progress("importing")
    target = machine(board) if target is None else target
    found = imported(model, target)
    progress("fusing")
    with muted(*REMARKS):
        module = with_attention(folded(found.module, ranges), target)
        if board.kind != "bare":  # a ring is faster and takes two places; a microcontroller has no room for that
            module = with_rings(module, found.inputs, found.outputs, target.alignment)
        graph = graph_of(legalized(module, target, ranges), found.inputs, found.outputs)
    kernels = Kernels(name, graph.functions, target)
    progress("scheduling")
    mark_bytes = emit_tiles.MARK_BYTES if kernels.tiled else 0
    plan = planned(graph, model.contract, kernels.elementwise, kernels.work_bytes, target.alignment, mark_bytes)
    source, blob = source_of(name, model, graph, plan, kernels)
    source = replace(source, tiles=kernels.tiled)
    if board.kind != "bare":  # the FPU of a microcontroller takes subnormal numbers as fast as others
        source = replace(source, flush=emit_flush.core_of(target.target))
    return Generated(model, source, blob, kernels, [asdict(product) for product in found.products])


def check_name(name: str | None) -> None:
    """Refuse a prefix of C functions that is no C identifier.

    Raises:
        UsageError: with what came, and a name near it.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(
            f"--name {name!r} begins the names of C functions: a letter, then letters, digits and _ were wanted; "
            f"take for example {emit_calls.prefix(name)}"
        )


def check_output(folder: Path) -> None:
    """Refuse to write over anything but an earlier program, or where nothing can be written.

    Raises:
        UsageError: a file, a folder of other things, or a place that takes no files.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give a folder for the program")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise UsageError(f"{folder} holds other files and no {MANIFEST}; give a new or empty folder")
    check_place(folder)


def existing_parent(folder: Path) -> Path:
    """The folder beside which a program is built."""
    folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    return folder.resolve().parent


def install(built: Path, folder: Path) -> None:
    """Put the files of a finished build in their place, the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for file in sorted(built.iterdir(), key=lambda f: f.name == MANIFEST):
        shutil.move(str(file), folder / file.name)


def source_of(
    name: str, model: modelfile.ModelFile, graph: Graph, plan: Plan, kernels: Kernels
) -> tuple[emit_calls.Source, bytes]:
    """Everything that the C text says, and the bytes of the weights."""
    blob = bytearray(plan.weight_bytes)
    for number, slot in plan.weights.items():
        blob[slot.offset : slot.offset + slot.nbytes] = graph.constants[number].tobytes()
    starts, offsets = modelfile.start_values(model), {}
    for state in model.contract.states:
        if isinstance(state.start, str):
            offsets[state.name] = len(blob)
            data = starts[state.name].tobytes()
            blob += data + bytes(aligned(len(data), plan.alignment) - len(data))
    blob = blob or bytearray(plan.alignment)
    symbols = [
        emit_calls.Kernel(
            (variant := kernels.variant(placed.call.kernel, placed.shared)).symbol,
            parameter_types(placed.call.reads, placed.call.writes, placed.shared, variant.lowered),
            variant.lowered.shares,
            variant.lowered.repeats,
        )
        for placed in plan.calls
    ]
    return emit_calls.Source(
        name=name,
        contract=model.contract,
        graph=graph,
        plan=plan,
        symbols=symbols,
        start_offsets=offsets,
        identity=fingerprint(model),
        weight_bytes=len(blob),
        checksum=emit.checksum(bytes(blob), plan.alignment),
    ), bytes(blob)


def fingerprint(model: modelfile.ModelFile) -> int:
    """64 bits of what a state block depends on."""
    return int.from_bytes(hashlib.sha256(canonical(identity(model)).encode()).digest()[:8], "little")


def identity(model: modelfile.ModelFile) -> dict[str, Any]:
    """What a state block depends on: the weights and the states' layout."""
    return {
        "model": model.contract.model.digest,
        "states": [[s.name, list(s.shape), s.dtype] for s in model.contract.states],
    }


def parameter_types(
    reads: tuple[Tensor, ...], writes: tuple[Tensor, ...], shared: tuple[tuple[int, int], ...], variant: Lowered
) -> tuple[str, ...]:
    """C types of a kernel's parameters: pointers, constant where it only reads, and the bounds of its share."""
    kept, dropped = {pair[0] for pair in shared}, {pair[1] for pair in shared}
    types = []
    for index in range(len(reads) + len(writes)):
        if index in dropped:
            continue
        const = "const " if index < len(reads) and index not in kept else ""
        types.append(f"{const}void *")
    bounds = [] if variant.shares is None else ["int32_t", "int32_t"]
    return tuple(types + ["void *"] * len(variant.work_bytes) + bounds)


def check_budget(board: Board, model: str, source: emit_calls.Source) -> None:
    """Refuse a program that the board cannot hold.

    Raises:
        BudgetError: with what is needed, what there is, and what would help.
    """
    ram = source.plan.state_bytes + source.plan.arena_bytes + source.weight_bytes
    if board.ram_bytes is not None and ram > board.ram_bytes:
        raise BudgetError(
            f"{model} does not fit {board.name}: {human_bytes(ram)} of memory needed, "
            f"{human_bytes(board.ram_bytes)} on the board (state {human_bytes(source.plan.state_bytes)}, "
            f"arena {human_bytes(source.plan.arena_bytes)}). "
            "Quantize the model, export it with a smaller --chunk, or take a smaller one."
        )


def build(folder: Path, source: emit_calls.Source, blob: bytes, kernels: AnyKernels, tools: Toolchain) -> None:
    """All files of a program but its manifest."""
    n = source.name
    (folder / f"{n}.h").write_text(emit_header.header(source))
    (folder / f"{n}.c").write_text(emit.driver(source))
    (folder / f"{n}_weights.bin").write_bytes(blob)
    (folder / f"{n}_weights.S").write_text(emit.weights_text(n, source.plan.alignment))
    (folder / f"{n}_team.h").write_text(emit_team.header(source))
    (folder / f"{n}_team.c").write_text(emit_team.driver(source))
    exported = "".join(f"{n}_{function}; " for function in EXPORTED)
    (folder / "exports.map").write_text(f"{{ global: {exported}local: *; }};\n")
    kernels.objects(folder, tools)
    tools.compile(f"{n}.c", f"{n}.o", folder, *WARNINGS, *FLAGS)
    tools.compile(f"{n}_team.c", f"{n}_team.o", folder, *WARNINGS, *FLAGS, "-pthread")
    tools.compile(f"{n}_weights.S", f"{n}_weights.o", folder)
    objects = [f"{n}.o", f"{n}_kernels.o", f"{n}_weights.o"]
    sound = front_end(folder, source)
    for file in sound:
        tools.compile(file, f"{file}.o", folder, *WARNINGS, *FLAGS)
    tools.archive(f"{n}.a", [*objects, f"{n}_team.o", *(f"{file}.o" for file in sound)], folder)
    tools.shared(f"{n}.so", [*objects, f"{n}_team.o"], "exports.map", folder)
    (folder / "edgemem-run.c").write_text(emit_run.program(source))
    tools.executable("edgemem-run", ["edgemem-run.c", *sound, *objects], folder, *WARNINGS, *FLAGS)
    (folder / f"{n}.pc").write_text(emit_package.pkg_config(source))
    (folder / f"{n}-config.cmake").write_text(emit_package.cmake_config(source, sound))
    made = (f"{n}.o", f"{n}_weights.o", f"{n}_team.o", *(f"{file}.o" for file in sound))
    for leftover in (*made, "exports.map", "edgemem-run.c"):
        (folder / leftover).unlink()


def attach_tokenizer(folder: Path, model: modelfile.ModelFile) -> None:
    """The tokenizer of a model that has one, beside its program."""
    text = tokenizer.attached(model.contract, model.path)
    if text is not None:
        (folder / tokenizer.FILE).write_text(text, encoding="utf-8")


def front_end(folder: Path, source: emit_calls.Source) -> list[str]:
    """The files that make a model's input of samples, where it takes sound; those of them that are to be compiled."""
    if not emit_audio.takes_sound(source.contract):
        return []
    frontend = emit_audio.front_end(source.contract.inputs[0])
    (folder / f"{source.name}_frontend.h").write_text(emit_frontend.header(source.name, frontend))
    for name in emit_frontend.files(frontend):
        (folder / name).write_text(emit_frontend.source(name))
    return [name for name in emit_frontend.files(frontend) if name.endswith(".c")]


def manifest_of(
    folder: Path,
    model: modelfile.ModelFile,
    board: Board,
    source: emit_calls.Source,
    kernels: AnyKernels,
    tools: Toolchain,
) -> dict[str, Any]:
    """What was compiled, by what, and where everything lies."""
    plan = source.plan
    return {
        "format": FORMAT,
        "name": source.name,
        "contract": json.loads(contracts.encode(model.contract)),
        "model_sha256": hashlib.sha256(model.path.read_bytes()).hexdigest(),
        "board": board.model_dump(mode="json"),
        "compiled_by": {
            "edgemem": __version__,
            "tvm": metadata.version("apache-tvm"),
            "target": kernels.target,
            "compiler": tools.version,
            "flags": [*tools.flags, *WARNINGS, *FLAGS],
        },
        "bytes": {
            "weights": source.weight_bytes,
            "state": plan.state_bytes,
            "arena": plan.arena_bytes,
            "arena_lower_bound": plan.arena_lower_bound_bytes,
        },
        "matrix_unit": tile_unit.FEATURE if source.tiles else None,
        "subnormal": "kept" if source.flush is None else "zero",
        "arena": arena_rows(plan),
        "states": {slot.name: state_facts(slot) for slot in plan.states.values()},
        "kernels": kernels.facts(source),
        "calls": [
            call_facts(placed, symbol, source) for placed, symbol in zip(plan.calls, source.symbols, strict=True)
        ],
        "files": {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.iterdir())
            if file.is_file()
        },
    }


def state_facts(slot: StateSlot) -> dict[str, Any]:
    """Where a state lies: both places where two take turns; the room of a ring."""
    facts: dict[str, Any] = {"offsets": [slot.first.offset, *([slot.second.offset] if slot.second else [])]}
    return facts | ({"ring": asdict(slot.ring) | {"bytes": slot.ring.nbytes}} if slot.ring else {})


def call_facts(placed: Any, kernel: emit_calls.Kernel, source: emit_calls.Source) -> dict[str, Any]:
    """One call: the bytes of weights and of activations that it touches."""
    weights = sum(tensor.nbytes for tensor in placed.call.reads if tensor.number in source.plan.weights)
    results = sum(tensor.nbytes for tensor in placed.call.writes)
    if placed.call.kernel.startswith(GATHER):
        weights = min(weights, results)  # of a table, only the rows that are looked up
    others = [t for t in (*placed.call.reads, *placed.call.writes) if t.number not in source.plan.weights]
    return {
        "symbol": kernel.symbol,
        "weight_bytes": weights,
        "activation_bytes": sum(tensor.nbytes for tensor in others),
        "result": [list(tensor.shape) for tensor in placed.call.writes],
    }
