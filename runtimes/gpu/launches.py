"""A scheduled PrimFunc as device functions, and how a step launches them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemem.errors import ModelFileError

KERNEL_CALL = "tirx.call_ffi_kernel"
DEVICE = 2  # TVM's calling convention of a device function


@dataclass(frozen=True)
class Launch:
    """One kernel: which of the PrimFunc's parameters (then of its work buffers) it takes, blocks and threads."""

    kernel: str
    arguments: tuple[int, ...]
    blocks: tuple[int, int, int]
    threads: tuple[int, int, int]


@dataclass(frozen=True)
class Lowered:
    """Device functions by name, their launches in order, and the sizes of the buffers between them."""

    functions: dict[str, Any]
    launches: tuple[Launch, ...]
    work_bytes: tuple[int, ...]


def lowered(function: Any, name: str, target: Any) -> Lowered:
    """The device functions of one scheduled PrimFunc.

    Raises:
        ModelFileError: part of it would run on the host.
    """
    import tvm
    from tvm import tirx, transform

    from edgemem.runtimes.aot.statements import sequence

    function = function.with_attr("global_symbol", name).with_attr("target", target)
    with target:
        module = transform.Sequential(passes())(tvm.IRModule({name: function}))
        device = {
            str(gv.name_hint): body
            for gv, body in module.functions.items()
            if int(body.attrs.get("calling_conv", 0)) == DEVICE
        }
        finished = transform.Sequential(
            [tirx.transform.LowerWarpMemory(), tirx.transform.StmtSimplify(), tirx.transform.LowerIntrin()]
        )(tvm.IRModule(device))
    host = module[name]
    places = Places(host.params)
    launches = [launch for statement in sequence(host.body) for launch in places.launches(statement)]
    return Lowered({str(gv.name_hint): body for gv, body in finished.functions.items()}, tuple(launches), places.work)


class Places:
    """Which parameter, or which work buffer after them, a kernel's argument is."""

    def __init__(self, parameters: Any) -> None:
        self.count = len(parameters)
        self.held: list[tuple[Any, int]] = [(parameter, index) for index, parameter in enumerate(parameters)]
        self.sizes: list[int] = []

    @property
    def work(self) -> tuple[int, ...]:
        return tuple(self.sizes)

    def launches(self, statement: Any) -> list[Launch]:
        """The launch that a statement of the host's is; buffers between kernels are remembered."""
        from tvm import tirx
        from tvm.tirx.stmt import AllocBuffer, DeclBuffer

        from edgemem.runtimes.aot.statements import nbytes

        if isinstance(statement, DeclBuffer):
            self.held.append((statement.buffer, self.place(statement.data)))
            return []
        if isinstance(statement, AllocBuffer):
            self.held.append((statement.buffer, self.count + len(self.sizes)))
            self.sizes.append(nbytes(statement.buffer))
            return []
        call: Any = getattr(statement, "value", None)
        if not isinstance(statement, tirx.Evaluate) or str(getattr(call.op, "name", "")) != KERNEL_CALL:
            raise ModelFileError(f"part of a kernel would run on the host: {str(statement)[:80]!r}; report this model")
        axes = [str(axis) for axis in call.attrs.launch_params]
        name, values = str(call.args[0].value), list(call.args[1:])
        pointers, extents = values[: len(values) - len(axes)], values[len(values) - len(axes) :]
        sizes = {axis: int(extent) for axis, extent in zip(axes, extents, strict=True)}
        blocks, threads = (
            (sizes.get(f"{kind}.x", 1), sizes.get(f"{kind}.y", 1), sizes.get(f"{kind}.z", 1))
            for kind in ("blockIdx", "threadIdx")
        )
        return [Launch(name, tuple(self.place(pointer) for pointer in pointers), blocks, threads)]

    def place(self, pointer: Any) -> int:
        """The number of a buffer, by the expression of its address."""
        held = pointer.args[0] if hasattr(pointer, "args") else pointer
        for known, number in self.held:
            if held.same_as(known):
                return number
        raise ModelFileError(f"a kernel reads {str(pointer)[:80]!r}, which has no place; report this model")


def passes() -> list[Any]:
    """TVM's lowering of scheduled programs for GPUs, up to the split of host and device."""
    from tvm import s_tir, tirx

    s, t = s_tir.transform, tirx.transform
    return [
        s.CanonicalizeLoop(),
        s.LowerCrossThreadReduction(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.LiftThreadBinding(),
        s.CompactBufferAllocation(),
        s.UnifyThreadBinding(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.NarrowDataType(32),
        s.LoopPartition(),
        t.VectorizeLoop(True),
        s.InjectVirtualThread(),
        t.StorageRewrite(),
        s.HoistIfThenElse(),
        t.UnrollLoop(),
        s.RenormalizeSplitPattern(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        t.CommonSubexprElim(),
        t.VerifyMemory(),
        t.AnnotateEntryFunc(),
        s.ThreadSync("shared"),
        s.ThreadSync("warp"),
        s.LowerThreadAllreduce(),
        s.MergeSharedMemoryAllocations(),
        t.SplitHostDevice(),
    ]
