"""Kernels outside a program: compiled as they are scheduled (or as they are), and called on arrays."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import te

from edgemem.boards import board
from edgemem.runtimes.aot.graph import graph_of
from edgemem.runtimes.aot.legalize import legalized
from edgemem.runtimes.aot.lowering import Lowered, lowered
from edgemem.runtimes.aot.machine import Machine, machine
from edgemem.runtimes.aot.schedules import scheduled

Array = np.ndarray[Any, np.dtype[Any]]
HOST = machine(board("host"))


def aligned(array: Array) -> Array:
    """A copy that starts at a multiple of 64 bytes."""
    raw = np.zeros(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def unwritten(shape: Sequence[int], dtype: str) -> Array:
    """An array of NaN or of the type's largest value, to be written over."""
    kind = np.dtype(dtype)
    return aligned(np.full(shape, np.nan if kind.kind == "f" else np.iinfo(kind).max, kind))


def halves(shares: int | None) -> list[tuple[int, ...]]:
    """First and last of each of two parts of a kernel that threads may share, the second part first; () of others."""
    return [()] if shares is None else [(shares // 2, shares), (0, shares // 2)]


class Library:
    """Lowered kernels by symbol, as machine code."""

    def __init__(self, folder: Path, kernels: dict[str, Lowered], target: Machine = HOST) -> None:
        import tvm

        functions = {symbol: kernel.function for symbol, kernel in kernels.items()}
        built = tvm.get_global_func("target.build.llvm")(tvm.IRModule(functions), target.target)
        path = folder / f"{len(list(folder.iterdir()))}.so"  # a path is loaded once per process
        built.write_to_file(f"{path}.o", "o")
        subprocess.run(["gcc", "-shared", "-o", path, f"{path}.o"], check=True)
        self.kernels, self.handle = kernels, ctypes.CDLL(str(path))

    def __call__(self, symbol: str, reads: Sequence[Array], writes: Sequence[Array]) -> None:
        work = [aligned(np.full(size, 255, np.uint8)) for size in self.kernels[symbol].work_bytes]
        held = [*map(aligned, reads), *writes, *work]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in held]
        for share in halves(self.kernels[symbol].shares):
            self.handle[symbol](*pointers, *share)


def run_tensors(folder: Path, tensors: list[Any], arrays: list[Array], target: Machine = HOST) -> tuple[Array, str]:
    """One tensor expression on arrays: the last tensor is the result; also the schedule that it got."""
    function, schedule = scheduled(te.create_prim_func(tensors), target)
    library = Library(folder, {"kernel": lowered(function, "kernel", target)}, target)
    result = unwritten([int(n) for n in tensors[-1].shape], str(tensors[-1].dtype))
    library("kernel", arrays, [result])
    return result, schedule


def run_module(folder: Path, module: Any, arrays: list[Array], target: Machine = HOST) -> tuple[Array, str]:
    """The first result of a Relax module's `main` on arrays, and the schedule of its last kernel."""
    names = [f"input{index}" for index in range(len(arrays))]
    graph = graph_of(legalized(module, target, {}), names, ["result"])
    pairs = {name: scheduled(function, target) for name, function in graph.functions.items()}
    library = Library(folder, {name: lowered(pair[0], name, target) for name, pair in pairs.items()}, target)
    values: dict[int, Array] = {graph.inputs[name].number: array for name, array in zip(names, arrays, strict=True)}
    values |= graph.constants
    for made in graph.calls:
        results = [unwritten(tensor.shape, tensor.dtype) for tensor in made.writes]
        library(made.kernel, [values[tensor.number] for tensor in made.reads], results)
        values |= {tensor.number: result for tensor, result in zip(made.writes, results, strict=True)}
    result = graph.results["result"]
    return values[result.number].reshape(result.shape), pairs[graph.calls[-1].kernel][1]
