"""Where a compiled step spends its time: the same driver with a clock around every kernel call.

The clocked driver is the program's own NAME.c with two lines added to each call. Of each call the shortest of many
times counts, less what the clock itself takes: an interruption makes one time longer, nothing makes one shorter. A
kernel shorter than the clock's own jitter shows as 0.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemem import contract as contracts
from edgemem.boards import board
from edgemem.digests import canonical
from edgemem.errors import CompileError, UsageError
from edgemem.runtimes import kernel_times
from edgemem.runtimes.aot.load import AotProgram, Library, check_file, read_manifest
from edgemem.runtimes.aot.toolchain import FLAGS, toolchain
from edgemem.trial import random_inputs

CLOCK = """\
#define _POSIX_C_SOURCE 200809L
#define _DEFAULT_SOURCE
#include <time.h>
__attribute__((visibility("default"))) double edgemem_times[{count}];
static double edgemem_now(void)
{{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}}
"""


def profile(path: Path, steps: int = 500, seed: int = 0) -> dict[str, Any]:
    """Time, bytes and bandwidth of every kernel of a program: a model file, or a folder compiled for this machine.

    Raises:
        ModelFileError, ContractError: neither a model nor a program.
        UsageError: a program for another board, or fewer than one step.
        MissingDependency, CompileError: the clocked driver cannot be compiled.
    """
    if steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}")
    with tempfile.TemporaryDirectory(prefix="edgemem-") as name:
        folder = Path(name)
        if not path.is_dir():
            from edgemem.runtimes.aot.compiler import compile_model

            compile_model(path, board("host"), folder / "program")
        program = path if path.is_dir() else folder / "program"
        manifest = read_manifest(program)
        if manifest["board"].get("core") != "native":
            raise UsageError(f"{path} was compiled for {manifest['board'].get('name')}; profile it on that board")
        times_us = best_times_us(program, folder, manifest, steps, seed)
    return {"steps": steps, "total_us": round(sum(times_us), 3), "kernels": by_kernel(manifest, times_us)}


def best_times_us(program: Path, folder: Path, manifest: dict[str, Any], steps: int, seed: int) -> list[float]:
    """The shortest time of every call of a step, in the order of the calls."""
    name, count = manifest["name"], len(manifest["calls"])
    library = Library(clocked(program, folder, manifest), name)
    contract = contracts.decode(canonical(manifest["contract"]))
    bench = AotProgram(library, contract, manifest["bytes"])
    times = (ctypes.c_double * (count + 1)).in_dll(library.handle, "edgemem_times")
    rng, state = np.random.default_rng(seed), bench.new_state()
    best = np.full(count + 1, np.inf)
    for _ in range(steps):
        bench.step(random_inputs(contract, rng), state)
        best = np.minimum(best, np.ctypeslib.as_array(times))
    return [max(0.0, float(ns - best[count])) / 1e3 for ns in best[:count]]


def clocked(program: Path, folder: Path, manifest: dict[str, Any]) -> Path:
    """A library of the program whose driver notes how long each call takes; the last time is of no call at all.

    Raises:
        ModelFileError: a file of the program is not that of its manifest.
        CompileError: the driver has other calls than the manifest, or does not compile.
    """
    name, count = manifest["name"], len(manifest["calls"])
    for file in (f"{name}.c", f"{name}.h", f"{name}_kernels.o", f"{name}_weights.S", f"{name}_weights.bin"):
        check_file(program / file, manifest)
    lines, index = [], 0
    for line in (program / f"{name}.c").read_text().splitlines():
        if re.match(rf"    {name}_k\d+_\w*\(.*\);$", line):
            line = f"    t = edgemem_now();\n{line}\n    edgemem_times[{index}] = edgemem_now() - t;"
            index += 1
        elif line.startswith("static void run("):
            line = f"static double t;\n{line}"
        lines.append(line)
    if index != count:
        raise CompileError(
            f"{program / name}.c has {index} kernel calls, its manifest {count}; compile the model again"
        )
    text = "\n".join(lines).replace("    memcpy(outputs->", f"{nothing(count)}    memcpy(outputs->", 1)
    (folder / "clocked.c").write_text(CLOCK.format(count=count + 1) + text + "\n")
    tools = toolchain(board("host"))
    sources = [str(program.resolve() / f"{name}_kernels.o"), str(program.resolve() / f"{name}_weights.S")]
    command = [tools.compiler, *FLAGS, f"-I{program.resolve()}", f"-Wa,-I{program.resolve()}", "-shared"]
    run(command, ["-o", "clocked.so", "clocked.c", *sources], folder)
    return folder / "clocked.so"


def nothing(index: int) -> str:
    """C text that times no call."""
    return f"    t = edgemem_now();\n    edgemem_times[{index}] = edgemem_now() - t;\n"


def run(command: Sequence[str], arguments: Sequence[str], folder: Path) -> None:
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{command[0]} cannot compile the clocked driver:\n{done.stderr[:500]}")


def by_kernel(manifest: dict[str, Any], times_us: Sequence[float]) -> list[dict[str, Any]]:
    """One row for each kernel, the costliest first."""
    kernels = [{**kernel, "kernel": kernel["symbol"]} for kernel in manifest["kernels"]]
    calls = manifest["calls"]
    touched = [call["weight_bytes"] + call["activation_bytes"] for call in calls]
    found = kernel_times.by_kernel({"kernels": kernels}, [call["symbol"] for call in calls], times_us, touched)
    rows: list[dict[str, Any]] = found["kernels"]
    return rows
