"""A bound of the stack that a firmware needs, from the assembly text of its kernels."""

from __future__ import annotations

import re

STEP_BYTES = 64
# Calls around a kernel: main, serve, step and driver; a float routine of libgcc; one exception frame with floats.
OUTSIDE_BYTES = 448
REALIGNED_BYTES = 16  # what rounding the stack pointer down may cost
WORD_BYTES = 4
LOWERED = (
    re.compile(r"\bsub(?:\.w|w)?\s+sp, (?:sp, )?#(\d+)"),  # Arm
    re.compile(r"\baddi\s+sp, ?sp, ?-(\d+)"),  # RISC-V
    re.compile(r"\[sp, #-(\d+)\]!"),
)
PUSHED = re.compile(r"\b(v?push)(?:\.\w+)?\s+\{([^}]*)\}")
OFFSET = re.compile(r"\.cfi_def_cfa_offset (\d+)")
REALIGNED = re.compile(r"\bmov\s+sp, r\d|\bandi?\s+sp, sp")


def stack_bytes(assembly: str, nested: int) -> int:
    """Frames of the deepest kernel and all around it, in whole steps of 64 bytes; `nested` functions at once.

    Kernels of TVM's call nothing; an integer operation calls a shared kernel, and that the function which stores.
    """
    frames = [frame_bytes(text) for text in re.split(r"^\w+:", assembly, flags=re.MULTILINE)]
    needed = sum(sorted(frames)[-nested:]) + OUTSIDE_BYTES
    return -(-needed // STEP_BYTES) * STEP_BYTES


def frame_bytes(function: str) -> int:
    """The most that one function takes: all that it pushes and reserves, or what its unwinding notes say if more."""
    lowered = sum(int(found) for pattern in LOWERED for found in pattern.findall(function))
    pushed = sum(registers(names) * (2 if kind == "vpush" else 1) for kind, names in PUSHED.findall(function))
    noted = max((int(found) for found in OFFSET.findall(function)), default=0)
    realigned = REALIGNED_BYTES if REALIGNED.search(function) else 0
    return max(lowered + pushed * WORD_BYTES, noted) + realigned


def registers(names: str) -> int:
    """How many registers a list such as `r4, r5, lr` or `d8-d15` names."""
    count = 0
    for name in names.split(","):
        first, _, last = name.strip().partition("-")
        count += int(last[1:]) - int(first[1:]) + 1 if last else 1
    return count
