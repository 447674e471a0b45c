"""Which GPUs and compilers for them this machine has, and CUDA graphs without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def has_pocl() -> bool:
    """Whether OpenCL runs on this machine's processor."""
    try:
        import pyopencl
    except ImportError:
        return False
    try:
        return any("portable" in platform.name.lower() for platform in pyopencl.get_platforms())
    except pyopencl.Error:
        return False


def has_gpu() -> bool:
    """Whether TVM can run programs on a CUDA GPU here."""
    from edgemem.errors import EdgememError
    from edgemem.runtimes.vm.program import arch_here

    try:
        return arch_here().startswith("sm_")
    except (ImportError, EdgememError):
        return False


def has_nvrtc() -> bool:
    from edgemem.errors import MissingDependency
    from edgemem.runtimes.vm.nvrtc import package

    try:
        return package("cuda_nvrtc", "lib").is_dir() and package("cuda_runtime", "include").is_dir()
    except MissingDependency:
        return False


needs_pocl = pytest.mark.skipif(not has_pocl(), reason="no PoCL on this machine: make boards")
needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="NVRTC 12 is not installed: pip install 'edgemem[cuda]'")
needs_gpu = pytest.mark.skipif(not has_gpu(), reason="TVM finds no CUDA GPU on this machine")


@contextmanager
def graphs_replayed() -> Iterator[dict[int, list[Any]]]:
    """Let TVM's calls of CUDA graphs do on the processor what they do on a GPU; gives the arguments of each graph.

    The first call of a graph runs it; every further one runs it with the arguments of the first, whatever it is given.
    """
    import tvm
    import tvm_ffi

    captured: dict[int, list[Any]] = {}
    allocated: dict[int, Any] = {}
    invoke = tvm.get_global_func("vm.builtin.invoke_closure")

    def run_or_capture(machine: Any, graph: Any, arguments: Any, index: int) -> Any:
        return invoke(machine, graph, *captured.setdefault(index, list(arguments)))

    def get_cached_alloc(machine: Any, allocate: Any, index: int) -> Any:
        if index not in allocated:
            allocated[index] = invoke(machine, allocate)
        return allocated[index]

    fakes = {f"vm.builtin.cuda_graph.{f.__name__}": f for f in (run_or_capture, get_cached_alloc)}
    before = {name: tvm_ffi.get_global_func(name, allow_missing=True) for name in fakes}
    for name, fake in fakes.items():
        tvm_ffi.register_global_func(name, fake, override=True)
    try:
        yield captured
    finally:
        for name, real in before.items():
            if real is None:
                tvm_ffi.registry.remove_global_func(name)
            else:
                tvm_ffi.register_global_func(name, real, override=True)
