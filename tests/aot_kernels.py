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
        kernel, reads = self.kernels[symbol], [aligned(array) for array in reads]
        for share in halves(kernel.shares):
            self.run(symbol, reads, writes, share)
        if kernel.shares is not None:
            self.check_turns(symbol, reads, writes, kernel.shares)

    def run(self, symbol: str, reads: Sequence[Array], writes: Sequence[Array], share: tuple[int, ...]) -> None:
        """One call, on work buffers of its own."""
        work = [aligned(np.full(size, 255, np.uint8)) for size in self.kernels[symbol].work_bytes]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in [*reads, *writes, *work]]
        self.handle[symbol](*pointers, *share)

    def check_turns(self, symbol: str, reads: Sequence[Array], writes: Sequence[Array], shares: int) -> None:
        """Threads may take any turns: each byte of the result is written in one of them, and needs no other."""
        before, times = [read.tobytes() for read in reads], [np.zeros(written.nbytes, int) for written in writes]
        for turn in range(shares):
            low, high = ([aligned(np.full(w.nbytes, fill, np.uint8)) for w in writes] for fill in (0, 255))
            for results in (low, high):
                self.run(symbol, reads, results, (turn, turn + 1))
            for count, a, b, whole in zip(times, low, high, writes, strict=True):
                touched = a == b  # what is not written stays 0 in one, 255 in the other
                count += touched
                assert np.array_equal(a[touched], whole.reshape(-1).view(np.uint8)[touched]), (symbol, turn)
        assert all((count == 1).all() for count in times), symbol
        assert [read.tobytes() for read in reads] == before, symbol


def run_tensors(folder: Path, tensors: list[Any], arrays: list[Array], target: Machine = HOST) -> tuple[Array, str]:
    """One tensor expression on arrays: the last tensor is the result; also the schedule that it got."""
    function, schedule = scheduled(te.create_prim_func(tensors), target)
    library = Library(folder, {"kernel": lowered(function, "kernel", target)}, target)
    result = unwritten([int(n) for n in tensors[-1].shape], str(tensors[-1].dtype))
    library("kernel", arrays, [result])
    return result, schedule


def kernels_of(module: Any, inputs: Sequence[str], target: Machine) -> tuple[Any, dict[str, Lowered], dict[str, str]]:
    """The graph of a Relax module's `main`, with the lowered kernel and the schedule of each of its PrimFuncs."""
    graph = graph_of(legalized(module, target, {}), inputs, ["result"])
    pairs = {name: scheduled(function, target) for name, function in graph.functions.items()}
    kernels = {name: lowered(function, name, target) for name, (function, _) in pairs.items()}
    return graph, kernels, {name: schedule for name, (_, schedule) in pairs.items()}


def run_module(folder: Path, module: Any, arrays: list[Array], target: Machine = HOST) -> tuple[Array, str]:
    """The first result of a Relax module's `main` on arrays, and the schedule of its last kernel."""
    names = [f"input{index}" for index in range(len(arrays))]
    graph, kernels, schedules = kernels_of(module, names, target)
    library = Library(folder, kernels, target)
    values: dict[int, Array] = {graph.inputs[name].number: array for name, array in zip(names, arrays, strict=True)}
    values |= graph.constants
    for made in graph.calls:
        results = [unwritten(tensor.shape, tensor.dtype) for tensor in made.writes]
        library(made.kernel, [values[tensor.number] for tensor in made.reads], results)
        values |= {tensor.number: result for tensor, result in zip(made.writes, results, strict=True)}
    result = graph.results["result"]
    return values[result.number].reshape(result.shape), schedules[graph.calls[-1].kernel]
