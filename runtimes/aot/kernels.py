"""Kernels of a step: scheduled, lowered and compiled once for each way in which their parameters are one buffer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgemem.runtimes.aot import emit_calls
from edgemem.runtimes.aot.aliasing import elementwise
from edgemem.runtimes.aot.lowering import Lowered, lowered
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules import TILED, scheduled
from edgemem.runtimes.aot.toolchain import Toolchain

HINT_CHARACTERS = 40  # of a kernel's name that say what it computes


@dataclass(frozen=True)
class Variant:
    """One kernel as it is compiled: a PrimFunc, its schedule, and which parameters are one buffer."""

    symbol: str
    kernel: str
    schedule: str
    lowered: Lowered


class Kernels:
    """Kernels by PrimFunc and shared parameters, compiled once each, named in the order of first use."""

    def __init__(self, name: str, functions: Mapping[str, Any], target: Machine) -> None:
        self.name, self.functions, self.machine = name, functions, target
        self.scheduled: dict[str, tuple[Any, str]] = {}
        self.variants: dict[tuple[str, tuple[tuple[int, int], ...]], Variant] = {}
        self.answers: dict[tuple[str, int, int], bool] = {}

    def variant(self, kernel: str, shared: tuple[tuple[int, int], ...]) -> Variant:
        if (kernel, shared) not in self.variants:
            function, schedule = self.in_order(kernel)
            hint = kernel.removeprefix("fused_")[:HINT_CHARACTERS].rstrip("_")
            symbol = f"{self.name}_k{len(self.variants):02d}_{hint}"
            self.variants[kernel, shared] = Variant(
                symbol, kernel, schedule, lowered(function, symbol, self.machine, shared)
            )
        return self.variants[kernel, shared]

    def in_order(self, kernel: str) -> tuple[Any, str]:
        """A kernel in its order of execution, and the name of its schedule."""
        if kernel not in self.scheduled:
            self.scheduled[kernel] = scheduled(self.functions[kernel], self.machine)
        return self.scheduled[kernel]

    @property
    def tiled(self) -> bool:
        """Whether kernels use the core's matrix unit."""
        return self.machine.tiles and any(self.in_order(kernel)[1] == TILED for kernel in self.functions)

    def work_bytes(self, kernel: str, shared: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
        return self.variant(kernel, shared).lowered.work_bytes

    def elementwise(self, kernel: str, read: int, written: int) -> bool:
        if (kernel, read, written) not in self.answers:
            self.answers[kernel, read, written] = elementwise(self.functions[kernel], read, written)
        return self.answers[kernel, read, written]

    def built(self) -> Any:
        """All kernels as one module of LLVM."""
        import tvm

        module = tvm.IRModule({v.symbol: v.lowered.function for v in self.variants.values()})
        return tvm.get_global_func("target.build.llvm")(module, self.machine.target)

    def object_file(self, path: Path) -> None:
        """All kernels as one object."""
        self.built().write_to_file(str(path), "o")

    @property
    def target(self) -> str:
        return str(self.machine.target)

    def objects(self, folder: Path, tools: Toolchain) -> list[Path]:
        """The object of all kernels, as it is linked."""
        path = folder / f"{self.name}_kernels.o"
        self.object_file(path)
        tools.tidy(path.name, folder)
        return [path]

    def sources(self, folder: Path) -> list[str]:
        """C files that a project has to compile: none, the kernels are an object."""
        return []

    def assembly(self, folder: Path, tools: Toolchain) -> str:
        """All kernels as text, to see how much stack they take."""
        return str(self.built().inspect_source("asm"))

    def facts(self, source: emit_calls.Source) -> list[dict[str, Any]]:
        """Kernels for the manifest."""
        return [kernel_facts(variant, source) for variant in self.variants.values()]


class AnyKernels(Protocol):
    """Kernels of a step, whoever makes them: an object of TVM's, or C sources."""

    @property
    def target(self) -> str: ...
    def objects(self, folder: Path, tools: Toolchain) -> list[Path]: ...
    def sources(self, folder: Path) -> list[str]: ...
    def assembly(self, folder: Path, tools: Toolchain) -> str: ...
    def facts(self, source: emit_calls.Source) -> list[dict[str, Any]]: ...


def kernel_facts(variant: Variant, source: emit_calls.Source) -> dict[str, Any]:
    """One kernel: the PrimFunc that it is, and how it was scheduled."""
    script = variant.lowered.function.script()
    return {
        "symbol": variant.symbol,
        "primfunc": variant.kernel,
        "schedule": variant.schedule,
        "tir_sha256": hashlib.sha256(script.encode()).hexdigest(),
        "work_bytes": list(variant.lowered.work_bytes),
        "shares": variant.lowered.shares,
        "calls": sum(kernel.symbol == variant.symbol for kernel in source.symbols),
    }
