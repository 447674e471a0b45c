"""Leave to use a core's matrix unit: Linux gives it to a process that asks, as its registers are 8 KiB for each thread.

Whoever compiles for this machine asks at once, and so do the programs that are compiled with it (`emit_tiles`).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.boards import Board

FEATURE, FLAG = "amx-int8", "amx_int8"  # LLVM's name, and Linux's in /proc/cpuinfo
CPUINFO = Path("/proc/cpuinfo")
CALL, ASK, UNIT = 158, 0x1023, 18  # SYS_arch_prctl of x86-64, ARCH_REQ_XCOMP_PERM, the tiles' number in XCR0


def has_unit(target: Any) -> bool:
    """Whether a core has the unit, and LLVM makes code for it."""
    from tvm.target import codegen

    triple = str(target.attrs.get("mtriple", ""))
    return triple.startswith("x86_64") and bool(codegen.target_has_features(FEATURE, target))


def usable(board: Board, target: Any) -> bool:
    """Whether kernels for a board may use the unit: this machine's system gives leave, or the board's file names it."""
    if not has_unit(target):
        return False
    return granted() if board.is_host else f"+{FEATURE}" in board.features


def granted() -> bool:
    """Ask the system for this process; False where there is no such question, too.

    LLVM goes by the name of a core, of which a virtual machine may have less.
    """
    if sys.platform != "linux":
        return False
    try:
        return FLAG in CPUINFO.read_text().split() and int(ctypes.CDLL(None).syscall(CALL, ASK, UNIT)) == 0
    except (OSError, AttributeError):  # no such file; a C library that cannot be opened, or without the function
        return False
