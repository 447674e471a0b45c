"""Where a step of TVM's virtual machine spends its time: a clock around every kernel, each waited for.

The machine lets an instrument look on before and after every call. A replayed CUDA graph has no calls, so the graph's
function is run as it is. Of each call the shortest of many times counts; what waiting costs is in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.runtimes.gpu.folder import read_program_folder
from edgemem.runtimes.kernel_times import by_kernel
from edgemem.runtimes.vm.folder import RUNTIME, load_folder
from edgemem.trial import random_inputs

GRAPH = "vm.builtin.cuda_graph.run_or_capture"


def profile(folder: Path, steps: int, seed: int = 0) -> dict[str, Any]:
    """Time, bytes and bandwidth of every kernel of a compiled folder.

    Raises:
        ModelFileError, ContractError: no program of TVM's.
        MissingDependency, DeviceError: there is no such device here.
    """
    manifest, contract = read_program_folder(folder, RUNTIME)
    names = {kernel["primfunc"]: kernel["kernel"] for kernel in manifest["kernels"]}
    with without_graphs():
        program = load_folder(folder)
        clock = Clock(program.device, names)
        program.machine.set_instrument(clock)
        rng, state = np.random.default_rng(seed), program.new_state()
        best: list[float] = []
        for _ in range(steps):
            clock.times_us, clock.launches, clock.touched = [], [], []
            program.step(random_inputs(contract, rng), state)
            best = [min(pair) for pair in zip(best or clock.times_us, clock.times_us, strict=True)]
    return by_kernel(manifest, clock.launches, best, clock.touched) | {"steps": steps}


class Clock:
    """What the machine calls before and after every call."""

    def __init__(self, device: Any, names: dict[str, str]) -> None:
        self.device, self.names = device, names
        self.begin = 0.0
        self.times_us: list[float] = []
        self.launches: list[str] = []
        self.touched: list[int] = []

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        if name in self.names:
            self.device.sync()
            if before:
                self.begin = time.perf_counter()
            else:
                self.times_us.append((time.perf_counter() - self.begin) * 1e6)
                self.launches.append(self.names[name])
                self.touched.append(sum(nbytes(argument) for argument in arguments))
        return 0  # go on


def nbytes(tensor: Any) -> int:
    return int(np.prod([int(extent) for extent in tensor.shape])) * np.dtype(str(tensor.dtype)).itemsize


@contextmanager
def without_graphs() -> Iterator[None]:
    """Let machines that are loaded inside run what they would replay."""
    import tvm
    import tvm_ffi

    invoke = tvm.get_global_func("vm.builtin.invoke_closure")
    before = tvm_ffi.get_global_func(GRAPH, allow_missing=True)

    def run(machine: Any, graph: Any, arguments: Any, *rest: Any) -> Any:
        return invoke(machine, graph, *arguments)

    tvm_ffi.register_global_func(GRAPH, run, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(GRAPH)
        else:
            tvm_ffi.register_global_func(GRAPH, before, override=True)
