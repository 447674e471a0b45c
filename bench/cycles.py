"""How many cycles does an instruction of a step take, by the tables that Arm publishes?

    python -m bench.cycles     runs steps of the small keyword spotter under QEMU, instruction by instruction

    cortex-m4 integer    1.17 to 1.38 cycles, 2.9 bytes an instruction

Every executed instruction costs what the table of its core says: at least and at most, where the table leaves it open
(refilling a pipeline, dividing, loads that follow one another). Memory has no wait states here. Cores without a table
of their own lie between bounds that are derived from it, see `derived`. Writes runtimes/firmware/cycles.json, which
`compile` predicts with; the same in every run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from bench.boards import SMALLEST
from edgemem.boards import board
from edgemem.files import atomic_write
from edgemem.runtimes.aot.compiler import compile_model
from edgemem.runtimes.firmware import cost
from edgemem.runtimes.firmware.build import IMAGE
from edgemem.runtimes.firmware.emulator import command_of

MODEL = "kws-tiny"
TRACED = {"microbit": "cortex-m0", "mps2_an385": "cortex-m3", "mps2_an386": "cortex-m4"}
TRACE = ("-singlestep", "-d", "exec,nochain", "-D")
AT = re.compile(rb"\[[0-9a-f]+/([0-9a-f]+)/")
LINE = re.compile(r"\s*([0-9a-f]+):\t((?:[0-9a-f]{4} ?)+)\s*\t(\S+)\t?([^;<]*)")
STEP, CALLER = "edgemem_step", "selftest"
STEPS = 2

# Read for these: DDI 0484C, 3.3; DDI 0337I, page 3-9; Arm 100166 (the Cortex-M4's later issue), 3.3.1. Of DDI 0432C, by
# tables made from it: branches of 3 cycles, loads of 2, lists of 1 + N, or 4 + N with the PC; the 4 of BL is in none of
# them. No document is known for the 4.20 of the Cortex-M55.
SOURCES = {
    "cortex-m0": "Arm DDI 0432C, Cortex-M0 TRM, table 3-1; multiplier of one cycle",
    "cortex-m0plus": "Arm DDI 0484C, Cortex-M0+ TRM, table 3-1; multiplier of one cycle",
    "cortex-m3": "Arm DDI 0337I, Cortex-M3 TRM, table 3-1 and load/store timings",
    "cortex-m4": "Arm DDI 0439B, Cortex-M4 TRM, tables 3-1 and 7-1, load/store timings",
    "cortex-m7": "no table is published: from two instructions a cycle (Arm DDI 0489) to none, by the Cortex-M4's",
    "cortex-m33": "no table is published: by the Cortex-M4's, at best 3.40 / 4.02 of it (Arm's CoreMark per MHz, "
    "NXP AN12284)",
    "cortex-m55": "no table is published: by the Cortex-M4's, at best 3.40 / 4.20 of it (Arm's CoreMark per MHz); "
    "at most two, as a vector instruction takes (Arm DDI 0553: four beats, two a cycle)",
}
# Of the branch that is taken, least and most. M3 and M4: 1 + P, "P ranges from 1 to 3" (table 3-1 of both manuals).
REFILL = {"cortex-m0": (3, 3), "cortex-m0plus": (2, 2), "cortex-m3": (2, 4), "cortex-m4": (2, 4)}
SMALL = ("cortex-m0", "cortex-m0plus")
LOAD_PC, TABLE_BRANCH = (5, 6), (3, 6)  # "at least five", "2 + P" in the table and "at least six" in the timings
# DDI 0439, table 7-1 (TI SWCU192, table 3-27, repeats it). One cycle otherwise; a float to or from a core register
# takes two in that table, and one where others measured it.
FLOAT = {"vdiv": 14, "vsqrt": 14, "vmla": 3, "vmls": 3, "vnmla": 3, "vnmls": 3, "vfma": 3, "vfms": 3, "vfnma": 3,
         "vfnms": 3, "vnmul": 1}  # fmt: skip
# DDI 0337I, table 3-1; on a Cortex-M4 all of them take one cycle.
LONG_PRODUCTS = {"smull": (3, 5), "umull": (3, 5), "smlal": (4, 7), "umlal": (4, 7), "mla": (2, 2), "mls": (2, 2)}
BRANCH = re.compile(r"b(?:l|x|lx)?(?:eq|ne|cs|cc|mi|pl|vs|vc|hi|ls|ge|lt|gt|le|al)?")
CORE_AND_FLOAT = re.compile(r"s\d+, *(?:r\d+|ip|lr)|(?:r\d+|ip|lr), *s\d+")
DOUBLE = re.compile(r"d\d")
MANY = re.compile(r"v?(?:push|pop|ldm|stm)\w*")
ONE = re.compile(r"v?(?:ldr|str)\w*")


@dataclass(frozen=True)
class Instruction:
    """As objdump writes it."""

    nbytes: int
    name: str  # without width
    operands: str


def instructions(image: Path) -> dict[int, Instruction]:
    """What an image executes, by address."""
    done = subprocess.run(["arm-none-eabi-objdump", "-d", image], capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        parts = LINE.match(line)
        if parts is not None:
            name = parts[3].lower().removesuffix(".w").removesuffix(".n").partition(".")[0]
            found[int(parts[1], 16)] = Instruction(len(parts[2].replace(" ", "")) // 2, name, parts[4].strip())
    return found


def registers(operands: str) -> int:
    """How many registers `{r4, r5, lr}` or `{s16-s19}` names."""
    count = 0
    for part in operands[operands.index("{") + 1 :].rstrip("}").split(","):
        first, _, last = part.strip().partition("-")
        width = 2 if first.startswith("d") else 1
        count += width * (int(last[1:]) - int(first[1:]) + 1 if last else 1)
    return count


def cycles(core: str, one: Instruction, taken: bool, before: Instruction | None) -> tuple[int, int]:
    """The least and the most that an instruction takes behind another."""
    refill, small = REFILL[core], core in SMALL
    if BRANCH.fullmatch(one.name) or one.name in ("cbz", "cbnz"):
        call = int(small and one.name == "bl")
        return (refill[0] + call, refill[1] + call) if taken else (1, 1)
    if MANY.fullmatch(one.name):
        least = 1 + registers(one.operands)
        if "pc" not in one.operands:
            return least, least
        return (least + refill[0], least + refill[1]) if small else (least + refill[0] - 1, least + refill[1] - 1)
    if ONE.fullmatch(one.name):
        return load_or_store(core, one, taken, before)
    if one.name in ("tbb", "tbh"):
        return TABLE_BRANCH
    if taken:  # a move to the program counter
        return refill
    if one.name in ("sdiv", "udiv"):
        return 2, 12
    if core == "cortex-m3" and one.name in LONG_PRODUCTS:
        return LONG_PRODUCTS[one.name]
    if one.name.startswith("v"):
        two = one.name == "vmov" and len(re.findall(r"\b[rs]\d", one.operands)) > 2
        if one.name == "vmov" and CORE_AND_FLOAT.fullmatch(one.operands):
            return 1, 2
        return (2, 2) if two else (FLOAT.get(one.name, 1), FLOAT.get(one.name, 1))
    return (0, 1) if one.name.startswith("it") and not small else (1, 1)


def load_or_store(core: str, one: Instruction, taken: bool, before: Instruction | None) -> tuple[int, int]:
    """Of one place in memory: two words take 1 + 2 cycles; on a Cortex-M3 or M4 one may overlap with its neighbours.

    "Load/store timings" of both manuals: STR takes one cycle, LDR two, and one less behind another load or store; one
    more where the address comes from the data processing right before, or where a constant beside the code is fetched.
    """
    words = 2 if one.name in ("ldrd", "strd") or (one.name.startswith("v") and DOUBLE.match(one.operands)) else 1
    if core in SMALL:
        return 1 + words, 1 + words
    if taken:
        return LOAD_PC
    late = int("[pc" in one.operands or address_is_new(one, before))
    if words == 2:
        return 3, 3 + late
    behind_memory = before is not None and ONE.fullmatch(before.name) is not None
    return 1 if behind_memory or one.name.startswith(("str", "vstr")) else 2, 2 + late


def address_is_new(one: Instruction, before: Instruction | None) -> bool:
    """Whether the instruction before computes a register that this address is made of."""
    if before is None or ONE.fullmatch(before.name) or MANY.fullmatch(before.name) or before.name.startswith("v"):
        return False
    result = before.operands.partition(",")[0].strip()
    _, _, address = one.operands.partition("[")
    return result in re.findall(r"\w+", address.partition("]")[0])


def traced(project: Path, on: str) -> Iterator[int]:
    """The address of every instruction that `STEPS` steps of the self-test execute, in order, -1 behind each step."""
    symbols = addresses(project / IMAGE)
    caller = range(symbols[CALLER][0], sum(symbols[CALLER]))
    pipe = project / "trace"
    os.mkfifo(pipe)
    process = subprocess.Popen(
        [*command_of(board(on), project / IMAGE), *TRACE, str(pipe)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        inside, steps = False, 0
        with pipe.open("rb") as lines:
            for line in lines:
                place = AT.search(line)
                if place is None:
                    continue
                address = int(place[1], 16)
                inside = inside or address == symbols[STEP][0]
                if inside and address in caller:
                    inside, steps = False, steps + 1
                    yield -1
                    if steps == STEPS:
                        return
                elif inside:
                    yield address
    finally:
        process.kill()
        process.wait()


def addresses(image: Path) -> dict[str, tuple[int, int]]:
    """Address and size of the functions, without the bit that says Thumb."""
    from edgemem.runtimes.firmware import elf

    return {name: (value & ~1, size) for name, (value, size) in elf.read(image).symbols.items()}


def counted(project: Path, on: str, cores: Sequence[str]) -> dict[str, dict[str, float]]:
    """Cycles and bytes of an instruction, the mean over a step, for every core that runs these instructions."""
    code = instructions(project / IMAGE)
    totals = {core: [0, 0] for core in cores}
    count = nbytes = 0
    last = -1
    before: Instruction | None = None
    for address in traced(project, on):
        if last >= 0:
            one = code[last]
            for core, total in totals.items():
                low, high = cycles(core, one, address != last + one.nbytes, before)
                total[0] += low
                total[1] += high
            count, nbytes = count + 1, nbytes + one.nbytes
            before = one
        last = address
    return {
        core: {"low": round(low / count, 3), "high": round(high / count, 3), "bytes": round(nbytes / count, 2)}
        for core, (low, high) in totals.items()
    }


def derived(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Cores without a table, by the Cortex-M4's."""
    bounds = {"cortex-m7": (0.5, 1.0), "cortex-m33": (3.40 / 4.02, 1.0), "cortex-m55": (3.40 / 4.20, 1.0)}
    result = {}
    for core, (least, most) in bounds.items():
        for kind in ("integer", "float"):
            own = found[f"cortex-m4 {kind}"]
            high = max(2.0, own["high"]) if core == "cortex-m55" else most * own["high"]
            result[f"{core} {kind}"] = {**own, "low": round(least * own["low"], 3), "high": round(high, 3)}
    return result


def main() -> None:
    """See the module docstring."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="edgemem-") as name:
        folder = Path(name)
        files = {"float": folder / "float.onnx", "integer": folder / "integer.onnx"}
        export_model(MODEL, files["float"])
        quantize(files["float"], files["integer"], "w8a8", smallest=SMALLEST, steps=64)
        for on, core in TRACED.items():
            for kind, path in files.items():
                project = folder / f"{on}-{kind}"
                compile_model(path, board(on), project, "model")
                cores = (core, "cortex-m0plus") if core == "cortex-m0" else (core,)
                found |= {f"{one} {kind}": row for one, row in counted(project, on, cores).items()}
    found |= derived(found)
    for key, row in found.items():
        row["source"] = SOURCES[key.partition(" ")[0]]
        print(f"{key:28} {row['low']:.2f} to {row['high']:.2f} cycles, {row['bytes']:.1f} bytes an instruction")
    path = Path(str(resources.files("edgemem.runtimes.firmware").joinpath(cost.CYCLES)))
    with atomic_write(path) as file:
        file.write(json.dumps({"source": "python -m bench.cycles", "cores": found}, indent=1, sort_keys=True).encode())
        file.write(b"\n")


if __name__ == "__main__":
    main()
