"""From a model file to an executable of TVM's virtual machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem import modelfile
from edgemem.boards import Board
from edgemem.errors import ConfigError
from edgemem.muted import muted
from edgemem.runtimes.aot import dots
from edgemem.runtimes.aot.folding import folded
from edgemem.runtimes.aot.importer import REMARKS, imported, require_tvm
from edgemem.runtimes.aot.machine import Machine, machine
from edgemem.runtimes.vm.nvrtc import cubin
from edgemem.runtimes.vm.program import NATIVE, arch_here

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
    products: list[Any]
    inputs: list[str]  # of `main`, in order
    outputs: list[str]
    arch: str | None  # of the GPU


def generated(path: Path, board: Board, progress: Callable[[str], None] = lambda stage: None) -> Generated:
    """Import, fuse, schedule and build a model for the GPU of a board, or for this machine's processor.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
        ConfigError: the board has no CUDA GPU.
        MissingDependency: TVM or CUDA's compiler is not installed.
    """
    require_tvm()
    from edgemem.runtimes.gpu.legalize import legalized
    from edgemem.runtimes.gpu.products import converted

    model = modelfile.open_model(path)
    core = machine_of(board)
    ranges = {port.name: port.range for port in model.contract.inputs if port.range is not None}
    progress("importing")
    found = imported(model, core, converted)
    progress("fusing")
    with muted(*REMARKS):
        module = legalized(folded(found.module, ranges), core.target, ranges)
    progress("scheduling")
    kernels = schedule(module, core.target)
    progress("generating code")
    executable = built(module, core.target)
    source = cuda_source(executable.mod)
    arch = core.target.attrs.get("arch")
    code = cubin(source, str(arch)) if source else b""
    products = list(found.products)
    return Generated(model, executable, source, code, kernels, products, found.inputs, found.outputs, arch)


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


def built(module: Any, target: Any) -> Any:
    """The executable: memory planned once, launches captured as CUDA graphs where their addresses stay."""
    from tvm import relax, transform

    rewrite = relax.transform
    cuda = target.kind.name == "cuda"
    passes = [
        rewrite.CallTIRRewrite(),
        rewrite.StaticPlanBlockMemory(),
        *([rewrite.RewriteCUDAGraph()] if cuda else []),
        rewrite.LowerAllocTensor(),
        rewrite.KillAfterLastUse(),
        rewrite.LowerRuntimeBuiltin(),
        rewrite.ComputePrimValue(),
        rewrite.VMShapeLower(),
        rewrite.AttachGlobalSymbol(),
    ]
    with target, transform.PassContext(config={"relax.backend.use_cuda_graph": cuda}):
        return relax.build(transform.Sequential(passes)(module), target, relax_pipeline=None)


def cuda_source(module: Any) -> str:
    """The CUDA C++ of a module and of what it imports."""
    own = str(module.inspect_source()) if module.kind == "cuda" else ""
    return own + "".join(cuda_source(part) for part in module.imports)
