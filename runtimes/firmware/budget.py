"""Bytes of flash, RAM and stack of a firmware, before anything of it is built; and what the linker made of it.

flash   code (an estimate), weights, test vectors, two banks of snapshots
ram     stack (a bound), data, inputs and outputs, state, arena
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem.boards import Board
from edgemem.errors import BudgetError
from edgemem.runtimes.aot.compiler import Generated
from edgemem.runtimes.aot.emit_calls import Source
from edgemem.runtimes.aot.toolchain import Toolchain
from edgemem.runtimes.firmware import build, elf, sources
from edgemem.runtimes.firmware.stack import stack_bytes
from edgemem.runtimes.firmware.vectors import Vectors
from edgemem.runtimes.integer.generate import IntegerKernels
from edgemem.text import human_bytes

SNAPSHOT_HEADER_BYTES = 20
SNAPSHOT_CODE_BYTES = 1050  # of them, and of a driver of flash
DRIVER_RAM_BYTES = {"rp": 384, "esp32c3": 128}  # functions in RAM, and what they keep there
NESTED = 3  # functions of an integer kernel that are open at once
# Bytes beside those of float32 weights, the mildest scheme first; see the table of schemes in the README.
SMALLER_WEIGHTS = (("f16", 0.5), ("w8a8", 0.26), ("w4g32", 0.15), ("vq:dim=4,codes=256", 0.1))
PRESENT = {"none": 1.0, "f16": 0.5, "w8": 0.26, "w8a8": 0.26, "w8a8-dynamic": 0.26, "w4g32": 0.15}
SMALLER_STATES = (("i16", 2), ("i8", 4))  # by what divides float32
DATA_BYTES = 64  # variables of console, counter and snapshots
FIRMWARE_CODE_BYTES = 3700  # start-up, console, self-test, snapshots, and what comes of a C library
CALL_BYTES, ARGUMENT_BYTES = 4, 6  # of the driver
SOFT_FLOAT_BYTES = {"thumbv6m": 4000, "thumbv7m": 1400, "riscv32": 4900}  # libgcc's, by core, where floats are soft
MATH = re.compile(r"(a?(?:sin|cos|tan)h?|atan2|pow|fmod|exp2|log2|log10|log1p|expm1|cbrt|hypot|rint|nearbyint)f")
MATH_BYTES, POWER_BYTES = 1400, 3400  # of a function of the math library, where floats are soft
MATH_STACK_BYTES = 256


@dataclass(frozen=True)
class Budget:
    """Bytes by part; `flash` and `ram` say what each part of the device's memory goes to."""

    flash: dict[str, int]
    ram: dict[str, int]

    @property
    def flash_bytes(self) -> int:
        return sum(self.flash.values())

    @property
    def ram_bytes(self) -> int:
        return sum(self.ram.values())


def up(count: int, step: int) -> int:
    return -(-count // step) * step


def bank_bytes(board: Board, source: Source) -> int:
    """Flash of one snapshot: whole pages, none where firmware cannot write flash."""
    if board.flash_page_bytes is None:
        return 0
    states = sum(sources.nbytes(state) for state in source.contract.states)
    return up(up(SNAPSHOT_HEADER_BYTES, board.flash_unit_bytes) + states, board.flash_page_bytes)


def predicted(
    board: Board, program: Generated, checks: Vectors, folder: Path, tools: Toolchain, snapshots: bool = True
) -> Budget:
    """What the firmware will take, with room for `snapshots` or without; its kernels are compiled into `folder`."""
    source = program.source
    objects = program.kernels.objects(folder, tools)
    math = math_functions(objects)
    flash = {
        "code": code_bytes(board, program, objects) + sum(map(math_bytes, math)),
        "weights": source.weight_bytes,
        "test_vectors": up(checks.nbytes, 16) + 32,
        "snapshots": 2 * bank_bytes(board, source) if snapshots else 0,
    }
    flash = without_snapshots(board, flash)
    ram = {
        "stack": stack_bytes(program.kernels.assembly(folder, tools), NESTED if program.kernels.sources(folder) else 1)
        + (MATH_STACK_BYTES if math else 0),
        "data": DATA_BYTES + snapshot_ram_bytes(board, flash["snapshots"]),
        "io": sources.io_bytes(source),
        "state": source.plan.state_bytes,
        "arena": source.plan.arena_bytes,
    }
    return Budget(flash, ram)


def snapshot_ram_bytes(board: Board, banks: int) -> int:
    """The unit that is being written, and the part of the driver that runs from RAM."""
    return board.flash_unit_bytes + DRIVER_RAM_BYTES.get(str(board.flash_driver), 0) if banks else 0


def code_bytes(board: Board, program: Generated, objects: Sequence[Path]) -> int:
    """Kernels as they are, the driver by its calls, and what every firmware has."""
    calls = program.source.plan.calls
    arguments = sum(len(c.call.reads) + len(c.call.writes) + len(c.work) for c in calls)
    sections = [s for path in objects for s in elf.read(path).sections]
    own = sum(s.nbytes for s in sections if s.allocated and s.name.startswith((".text", ".rodata")))
    library = SOFT_FLOAT_BYTES.get(str(board.triple).partition("-")[0], 0) if build.soft(board) else 0
    return own + CALL_BYTES * len(calls) + ARGUMENT_BYTES * arguments + FIRMWARE_CODE_BYTES + library


def math_functions(objects: Sequence[Path]) -> set[str]:
    """What kernels call of a math library; most functions are polynomials in the kernels themselves."""
    return {name for path in objects for name in elf.read(path).symbols if MATH.fullmatch(name)}


def math_bytes(function: str) -> int:
    return POWER_BYTES if function == "powf" else MATH_BYTES


def check(board: Board, program: Generated, budget: Budget) -> None:
    """Refuse what the board cannot hold.

    Raises:
        BudgetError: bytes needed and there of every memory that is too small, part by part, and the cheapest change
            that would fit; `needs` holds the numbers.
    """
    assert board.flash_bytes is not None and board.ram_bytes is not None
    memories = (("flash", budget.flash, board.flash_bytes), ("RAM", budget.ram, board.ram_bytes))
    sums = [(what, parts, sum(parts.values()), there) for what, parts, there in memories]
    short = [row for row in sums if row[2] > row[3]]
    if not short:
        return
    needs = {what: {"needed_bytes": n, "board_bytes": there, "parts": parts} for what, parts, n, there in sums}
    said = []
    for what, parts, needed, there in short:
        listed = ", ".join(f"{name.replace('_', ' ')} {human_bytes(count)}" for name, count in parts.items())
        said.append(
            f"{human_bytes(needed)} of {what} needed, {human_bytes(there)} on the board, {human_bytes(needed - there)} "
            f"too much ({listed})"
        )
    advised = dict.fromkeys(advice(board, program, what, parts, needed - there) for what, parts, needed, there in short)
    raise BudgetError(
        f"{program.model.contract.model.name} does not fit {board.name}: {'; '.join(said)}. {' '.join(advised)}", needs
    )


def without_snapshots(board: Board, flash: dict[str, int]) -> dict[str, int]:
    """The parts of flash, the snapshots left out where there are none or all is too much: a step needs none."""
    assert board.flash_bytes is not None
    if flash["snapshots"] and sum(flash.values()) <= board.flash_bytes:
        return flash
    return {**flash, "snapshots": 0, "code": flash["code"] - SNAPSHOT_CODE_BYTES}


def free(board: Board, budget: Budget) -> dict[str, int]:
    """Bytes of the board's memory that the firmware leaves."""
    assert board.flash_bytes is not None and board.ram_bytes is not None
    return {"flash": board.flash_bytes - budget.flash_bytes, "ram": board.ram_bytes - budget.ram_bytes}


def advice(board: Board, program: Generated, what: str, parts: dict[str, int], excess: int) -> str:
    """The change that costs the least quality among those that would free `excess` bytes."""
    return flash_advice(board, program, parts, excess) if what == "flash" else ram_advice(program, parts, excess)


def flash_advice(board: Board, program: Generated, parts: dict[str, int], excess: int) -> str:
    """A scheme with smaller weights, or how much smaller they have to be.

    A float file is first advised to run in integers; schemes whose activations stay float32 come where they are more
    exact or smaller, and not at all on a core without an FPU, if integers are small enough.
    """
    scheme, weights = str(program.model.contract.quant.get("scheme", "none")), parts["weights"]
    present = PRESENT.get(scheme, 0.0)
    for other, ratio in SMALLER_WEIGHTS:
        wanted = weights * ratio / present if present else weights
        if ratio >= present or weights - wanted < excess or (other == "f16" and build.soft(board)):
            continue
        origin = "" if scheme == "none" else ", from the float file"
        return f"`edgemem quantize --scheme {other}`{origin}: its weights take about {human_bytes(int(wanted))}."
    if excess < weights:
        times = weights / (weights - excess)
        return f"Its weights have to be {times:.1f} times smaller: take a smaller width or fewer layers."
    return "Code alone is too large: take another board."


def ram_advice(program: Generated, parts: dict[str, int], excess: int) -> str:
    """A shorter chunk, narrower states, a step in integers, or a smaller model."""
    contract, integer = program.model.contract, isinstance(program.kernels, IntegerKernels)
    chunk, floats = contract.chunk.size, contract.quant.get("scheme", "none") == "none"
    if chunk > 1 and (parts["arena"] + parts["io"]) * (1 - 1 / chunk) >= excess:
        return f"Export it with --chunk 1: its arena grows with the {chunk} {contract.chunk.unit}s of a step."
    narrow = [s for s in contract.states if s.dtype == "float32" and not s.quant.get("wide") and "of" not in s.quant]
    held = 0 if integer else sum(sources.nbytes(state) for state in narrow)
    offers = [(f"--state {policy}", held - held // divisor, 1 / divisor) for policy, divisor in SMALLER_STATES]
    if floats:
        offers.insert(1, ("--scheme w8a8", (parts["state"] + parts["arena"]) // 2, 0.5))
    for option, freed, size in offers:
        if freed < excess:
            continue
        if option == "--scheme w8a8":
            return "`edgemem quantize --scheme w8a8`: states and arena are int16, half as large, in an integer step."
        return f"`edgemem quantize {option}`: the states that may be narrow take {human_bytes(int(held * size))}."
    return "For its RAM take a smaller width, fewer layers or another board."


def weighed(board: Board, budget: Budget, image: elf.Elf) -> dict[str, Any]:
    """Predicted and linked bytes side by side, for the manifest."""
    size = image.size
    linked = {
        "flash": {
            "code": sum(size(s) for s in (".boot", ".vectors", ".image_def", ".text", ".rodata", ".data")),
            "weights": size(".weights"),
            "test_vectors": size(".testvectors"),
            "snapshots": image.symbols["snapshot_end"][0] - image.symbols["snapshot_start"][0],
        },
        "ram": {
            "stack": size(".stack"),
            "data": size(".data") + size(".bss"),
            "io": size(".io"),
            "state": size(".state"),
            "arena": size(".arena"),
        },
    }
    return {
        "predicted": {"flash": budget.flash, "ram": budget.ram},
        "linked": linked,
        "flash_bytes": {"predicted": budget.flash_bytes, "linked": sum(linked["flash"].values())},
        "ram_bytes": {"predicted": budget.ram_bytes, "linked": sum(linked["ram"].values())},
        "board": {"flash_bytes": board.flash_bytes, "ram_bytes": board.ram_bytes},
    }
