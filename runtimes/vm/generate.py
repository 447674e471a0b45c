"""From a model file to an executable of TVM's virtual machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem import modelfile
from edgemem.boards import Board
from edgemem.errors import ConfigError
from edgemem.runtimes.aot import dots
from edgemem.runtimes.aot.importer import require_tvm
from edgemem.runtimes.aot.machine import Machine, machine
from edgemem.runtimes.vm.nvrtc import cubin
from edgemem.runtimes.vm.program import NATIVE, arch_here

KEEP_SOURCE = "TVM_COMPILE_FORCE_FALLBACK"  # read by TVM whenever it has generated CUDA C++
STORAGE = "relax.memory.alloc_storage"
ALIGNMENT = 256  # of what CUDA allocates; every architecture that TVM's CUDA serves has __dp4a


@dataclass(frozen=True)
class Generated:
    """A model as an executable; for CUDA `source` is the C++ of its kernels, `code` their cubin.

    `kernels` says which PrimFunc each kernel is, and its schedule.
    """

    model: modelfile.ModelFile
    executable: Any
    source: str
    code: bytes
    kernels: list[dict[str, str]]
    calls: list[str]  # kernels of a step, in order
    products: list[Any]
    workspace: int  # bytes of what lies between kernels
    arch: str | None  # of the GPU


def generated(path: Path, board: Board, progress: Callable[[str], None] = lambda stage: None) -> Generated:
    """Import, fuse, schedule and build a model for the GPU of a board, or for this machine's processor.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
        ConfigError: the board has no CUDA GPU.
        MissingDependency: TVM or CUDA's compiler is not installed.
    """
    require_tvm()
    from edgemem.runtimes.gpu.legalize import fused
    from edgemem.runtimes.vm.in_place import COPY, in_place

    core = machine_of(board)
    found = fused(path, core, progress)
    module = in_place(found.graph, found.model.contract)
    progress("scheduling")
    kernels = schedule(module, core.target)
    progress("generating code")
    executable, workspace = built(module, core.target)
    source = cuda_source(executable.mod)
    arch = core.target.attrs.get("arch")
    code = cubin(source, str(arch)) if source else b""
    names = {kernel["primfunc"]: kernel["kernel"] for kernel in kernels}
    calls = [names[call.kernel] for call in found.graph.calls]
    calls += [kernel["kernel"] for kernel in kernels if kernel["primfunc"].startswith(COPY)]
    return Generated(found.model, executable, source, code, kernels, calls, found.products, workspace, arch)


def machine_of(board: Board) -> Machine:
    """The target of a board: CUDA, or its processor where it is the machine that compiles.

    Raises:
        ConfigError: it has no CUDA GPU.
    """
    from tvm.target import Target

    if board.gpu is None and board.is_host:
        return machine(board)
    if board.gpu is None or board.gpu.api != "cuda":
        raise ConfigError(f"board {board.name} has no CUDA GPU; choose one that has, see `edgemem boards`")
    gpu = board.gpu
    host: dict[str, Any] = {"kind": "llvm"}
    if not board.is_host:
        host |= {"mtriple": board.triple, "mcpu": board.core}
    described = {
        "kind": "cuda",
        "arch": arch_here() if gpu.arch == NATIVE else gpu.arch,
        "max_num_threads": gpu.threads,
        "max_threads_per_block": gpu.threads,
        "max_shared_memory_per_block": gpu.shared_bytes,
        "thread_warp_size": gpu.warp,
    }
    return Machine(Target(described, host=host), lanes=1, registers=1, alignment=ALIGNMENT, dot=dots.DP4A)


def schedule(module: Any, target: Any) -> list[dict[str, str]]:
    """Give every PrimFunc of a module its threads, in place; on a processor it keeps its loops."""
    from tvm import tirx

    from edgemem.runtimes.gpu.schedules import scheduled

    kernels = []
    for variable, function in list(module.functions.items()):
        if not isinstance(function, tirx.PrimFunc):
            continue
        name, how = str(variable.name_hint), "loops"
        if target.kind.name == "cuda":
            function, how = scheduled(function, target)
            module.update_func(variable, function)
        kernels.append({"kernel": f"{name}_kernel" if how != "loops" else name, "primfunc": name, "schedule": how})
    return kernels


def captures(target: Any) -> bool:
    """Whether a step becomes a CUDA graph."""
    return str(target.kind.name) == "cuda"


def built(module: Any, target: Any) -> tuple[Any, int]:
    """The executable, and the bytes of its work space, planned once; on CUDA a step is one graph.

    Every shape is known, so no function looks at its arguments' shapes.
    """
    from tvm import relax, transform

    from edgemem.runtimes.vm.in_place import EVEN

    rewrite = relax.transform
    graphs = [rewrite.RewriteCUDAGraph()] if captures(target) else []
    lower = [rewrite.LowerAllocTensor(), rewrite.KillAfterLastUse(), rewrite.LowerRuntimeBuiltin(),
             rewrite.AttachGlobalSymbol()]  # fmt: skip
    with target, as_source(), transform.PassContext(config={"relax.backend.use_cuda_graph": captures(target)}):
        planned = rewrite.StaticPlanBlockMemory()(module)
        executable = relax.build(transform.Sequential([*graphs, *lower])(planned), target, relax_pipeline=None)
    return executable, workspace_bytes(planned[EVEN])


@contextmanager
def as_source() -> Iterator[None]:
    """Let TVM keep CUDA C++ as it is, also where its library for CUDA is loaded.

    There TVM would compile it at once, by a compiler of its own (the package `cuda-bindings`), and lose the source.
    """
    before = os.environ.get(KEEP_SOURCE)
    os.environ[KEEP_SOURCE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[KEEP_SOURCE]
        else:
            os.environ[KEEP_SOURCE] = before


def workspace_bytes(function: Any) -> int:
    """What the storages of a function take together; both functions of a step use the same."""
    calls = [binding.value for block in function.body.blocks for binding in block.bindings]
    found = [call for call in calls if str(getattr(getattr(call, "op", None), "name", "")) == STORAGE]
    return sum(int(call.args[0].values[0]) for call in found)


def cuda_source(module: Any) -> str:
    """The CUDA C++ of a module and of what it imports."""
    own = str(module.inspect_source()) if module.kind == "cuda" else ""
    return own + "".join(cuda_source(part) for part in module.imports)
