"""The float kernels of a board on this machine: the same schedules, sums in the same order, so the same bytes.

Kernels come from one program in TVM's form, scheduled for the board; LLVM keeps the order of float operations. What
may differ is whether a product and a sum are rounded once (fused) or twice. A core without an FPU and the Cortex-M4F
round twice, and so does this machine when LLVM is told that it cannot fuse; for cores that fuse, it may fuse too.
"""

from __future__ import annotations

import re
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemem.boards import Board
from edgemem.boards import board as described
from edgemem.program import Program
from edgemem.runtimes.aot.compiler import build, generated, manifest_of, write_manifest
from edgemem.runtimes.aot.load import ALIGNMENT, load_folder
from edgemem.runtimes.aot.lowering import lowered
from edgemem.runtimes.aot.machine import Machine, machine
from edgemem.runtimes.aot.toolchain import toolchain

FUSED = re.compile(r"\bv?fn?m(?:a|s|add|sub)[\d.]")  # Arm, RISC-V, x86
PLAIN, FUSING = "x86-64", "x86-64-v3"


def twin_machine(board: Board) -> Machine | None:
    """The board's lanes and registers with this machine's code; None where this machine cannot round as the board."""
    from tvm.target import Target, codegen

    triple = codegen.llvm_get_system_triple()
    if not triple.startswith("x86_64"):
        return None
    own = machine(board)
    host = machine(described("host"))
    core = FUSING if fuses(own) else PLAIN
    if core == FUSING and not fuses(host):
        return None
    target = Target({"kind": "llvm", "mtriple": triple, "mcpu": core})
    return replace(own, target=target, alignment=ALIGNMENT, dot="portable")


def fuses(target: Machine) -> bool:
    """Whether LLVM rounds a product and the sum that follows once on this machine."""
    import tvm
    from tvm import te

    a, b, c = (te.placeholder((4,), "float32", name) for name in "abc")
    y = te.compute((4,), lambda i: a[i] * b[i] + c[i], name="y")
    function = lowered(te.create_prim_func([a, b, c, y]), "probe", target).function
    module = tvm.get_global_func("target.build.llvm")(tvm.IRModule({"probe": function}), target.target)
    return FUSED.search(str(module.inspect_source("asm"))) is not None


def twin(path: Path, board: Board) -> Program | None:
    """A model file with the board's float kernels on this machine; None where they cannot round alike."""
    target = twin_machine(board)
    if target is None:
        return None
    host: Any = described("host")
    tools = toolchain(host)
    folder = tempfile.TemporaryDirectory(prefix="edgemem-")
    program = generated(path, host, target=target)
    place = Path(folder.name)
    build(place, program.source, program.blob, program.kernels, tools)
    write_manifest(place, manifest_of(place, program.model, host, program.source, program.kernels, tools))
    loaded = load_folder(place)
    weakref.finalize(loaded, folder.cleanup)
    return loaded
