"""From a scheduled PrimFunc to a function of plain pointers: no packed arguments, no heap, no runtime.

    f(x: Buffer, y: Buffer) with blocks   ->   f(float *x, float *y[, float *work])

    a shared loop over N             ->   f(..., begin, end)      that share of the outermost loop,
                                                                  or, where a kernel says so, of loops inside others

Buffers that stay small live on the stack; larger ones become a last argument that the memory plan provides. Two
parameters that name one buffer (a state updated in place) become one pointer, so that no `noalias` promise is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgemem.runtimes.aot.ahead import asking
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.statements import nbytes, sequence

STACK_BYTES = 2048  # of one buffer inside a kernel
STACK = "edgemem.stack_bytes"  # attribute of a PrimFunc that may have more
SHARED = "edgemem.shared"  # of a loop whose turns threads may share
# Of a PrimFunc whose shared loops, all of as many turns, lie inside others: what is around them each thread computes
# for itself, in buffers of the scope `local`, which stay on its stack; others it writes only where its turns do.
REPEATS = "edgemem.repeats"


@dataclass(frozen=True)
class Lowered:
    """A kernel ready for code generation; `work_bytes` are the sizes of the buffers that it wants beside its own.

    `shares`: into how many parts it may be divided among threads, if it may; it then takes the first and the last.
    `repeats`: whether each part repeats some work, so that they are better few.
    """

    function: Any
    work_bytes: tuple[int, ...]
    shares: int | None = None
    repeats: bool = False


def passes(target: Any) -> Any:
    """TVM's lowering of scheduled programs, without what only GPUs and packed calls need."""
    from tvm import s_tir, tirx, transform

    return transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.LowerInitBlock(),
            s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
            s_tir.transform.ConvertBlocksToOpaque(),
            s_tir.transform.CompactBufferAllocation(),
            s_tir.transform.LowerMatchBuffer(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            s_tir.transform.HoistIfThenElse(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            tirx.transform.RemoveNoOp(),
            s_tir.transform.RewriteUnsafeSelect(),
            tirx.transform.CommonSubexprElim(),
            tirx.transform.VerifyMemory(),
            tirx.transform.LowerIntrin(),
        ]
    )


def lowered(function: Any, name: str, machine: Machine, shared: Sequence[tuple[int, int]] = ()) -> Lowered:
    """The kernel of a scheduled PrimFunc; `shared` holds pairs of parameters that are one buffer."""
    import tvm

    function = function.with_attr("global_symbol", name).with_attr("tirx.noalias", True)
    function = function.with_attr("target", machine.target)
    with machine.target:
        flat = passes(machine.target)(tvm.IRModule({name: function}))[name]
    return with_pointers(flat, dict(shared))


def with_pointers(function: Any, shared: dict[int, int]) -> Lowered:
    """Parameters of buffers as parameters of pointers; large buffers of its own as further ones."""
    from tvm import ir, tirx
    from tvm.tirx.stmt import AllocBuffer, DeclBuffer

    pointers = [pointer(parameter) for parameter in function.params]
    for kept, dropped in shared.items():
        pointers[dropped] = pointers[kept]
    statements, work = [], []
    buffers: dict[int, Any] = {}
    most, repeats = int((function.attrs or {}).get(STACK, STACK_BYTES)), REPEATS in (function.attrs or {})

    def on_stack(statement: Any) -> bool:
        return nbytes(statement.buffer) <= most or (repeats and own(statement))

    for statement in sequence(function.body):
        if isinstance(statement, DeclBuffer) and isinstance(statement.data, ir.Call):
            index = next((i for i, p in enumerate(function.params) if statement.data.args[0].same_as(p)), None)
            if index is not None:
                statement = DeclBuffer(statement.buffer, data=pointers[index])
                buffers[index] = statement.buffer
        elif isinstance(statement, AllocBuffer) and not on_stack(statement):
            room = pointer(statement.buffer)
            work.append((room, nbytes(statement.buffer)))
            statement = DeclBuffer(statement.buffer, data=room)
        statements.append(asking(statement, buffers))
    statements, bounds, shares = divided_inside(statements) if repeats else divided_alone(statements, not work)
    kept_pointers = [p for i, p in enumerate(pointers) if i not in shared.values()]
    parameters = [*kept_pointers, *(room for room, _ in work), *bounds]
    body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
    result = tirx.PrimFunc(parameters, body, ret_type=function.ret_type, attrs=function.attrs)
    return Lowered(result, tuple(size for _, size in work), shares, repeats and shares is not None)


def may_be_shared(statement: Any) -> bool:
    """Whether a statement is a loop whose turns may run beside each other."""
    from tvm import tirx

    return isinstance(statement, tirx.For) and SHARED in statement.annotations and int(statement.extent) > 1


def of_a_thread(statement: Any) -> bool:
    """Whether every thread that shares a kernel's loop may run a statement beside it: buffers of its own, registers."""
    from tvm import tirx

    if isinstance(statement, tirx.BufferStore):
        return str(statement.buffer.scope()) == "local"
    return isinstance(statement, tirx.stmt.DeclBuffer | tirx.stmt.AllocBuffer | tirx.Evaluate)


def divided_alone(statements: list[Any], own_memory: bool) -> tuple[list[Any], list[Any], int | None]:
    """The only loop of a kernel from `begin` to `end`, these two, and its turns; the statements as they are where it is
    not shared, or threads would meet in what lies beside it: `own_memory` says that no buffer is the memory plan's.
    """
    from tvm import tirx

    loops = [index for index, statement in enumerate(statements) if isinstance(statement, tirx.For)]
    others = [statement for index, statement in enumerate(statements) if index not in loops]
    if (
        not own_memory
        or len(loops) != 1
        or not may_be_shared(statements[loops[0]])
        or not all(map(of_a_thread, others))
    ):
        return statements, [], None
    statements[loops[0]], bounds, shares = divided(statements[loops[0]])
    return statements, bounds, shares


def divided(loop: Any) -> tuple[Any, list[Any], int]:
    """The loop from `begin` to `end`, these two, and its number of turns."""
    from tvm import tirx

    begin, end = (tirx.Var(name, str(loop.loop_var.ty.dtype)) for name in ("begin", "end"))
    share = tirx.For(loop.loop_var, begin, end - begin, tirx.ForKind.SERIAL, loop.body)
    return share, [begin, end], int(loop.extent)


def divided_inside(statements: list[Any]) -> tuple[list[Any], list[Any], int | None]:
    """All shared loops in statements as `divided` gives one; the statements as they are where no loop is shared."""
    from tvm import tirx

    begin, end = (tirx.Var(name, "int32") for name in ("begin", "end"))
    turns = set()

    def part(statement: Any) -> Any:
        if isinstance(statement, tirx.SeqStmt):
            return tirx.SeqStmt([part(inner) for inner in statement.seq])
        if not isinstance(statement, tirx.For):
            return statement
        if SHARED not in statement.annotations:
            return tirx.For(statement.loop_var, statement.min, statement.extent, statement.kind, part(statement.body))
        turns.add(int(statement.extent))
        return tirx.For(statement.loop_var, begin, end - begin, tirx.ForKind.SERIAL, statement.body)

    found = [part(statement) for statement in statements]
    assert len(turns) <= 1, turns
    return (found, [begin, end], turns.pop()) if turns else (statements, [], None)


def own(statement: Any) -> bool:
    """Whether each thread is to have the buffer that is allocated for itself, on its stack."""
    return str(statement.buffer.scope()) == "local"


def pointer(buffer: Any) -> Any:
    """A pointer to the elements of a buffer."""
    from tvm import tirx
    from tvm.ir import PointerType, PrimType

    kind = str(buffer.ty.dtype)
    return tirx.Var(str(buffer.name), PointerType(PrimType(kind.partition("x")[0])))
