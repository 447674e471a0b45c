"""What the kernel calls of a step do, counted before anything of it runs: the terms that `cost.py` knows prices of.

Kernels of TVM's are loops around elementary operations; their bodies are walked, every operation counted as often as
its loops turn. Addresses are free: what computes them is hoisted or part of a load. Integer kernels are functions of
C that a few sizes describe.

    kernel of TVM's     call, loop, load, store, float, divide, whole, choice, convert, function
    integer kernel      KIND, KIND.elements, KIND.macs: calls, results, operands (of products: multiplications)
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

from edgemem.runtimes.aot.compiler import Generated
from edgemem.runtimes.aot.kernels import Kernels
from edgemem.runtimes.integer.generate import IntegerKernels
from edgemem.runtimes.integer.operation import Operation

FREE = ("reinterpret", "address_of")
CHOICES = ("if_then_else",)
PRODUCTS_OF_WEIGHTS, REDUCTIONS = ("product8", "product16"), ("row_sum", "wide_sum")
PRODUCTS = ("llvm.fmuladd", "llvm.fma")  # a product and a sum
REGISTERS = 32  # elements of a buffer that the compiler keeps in registers


def of_program(program: Generated) -> list[dict[str, float]]:
    """The terms of every call of a step, in order."""
    kernels = program.kernels
    if isinstance(kernels, IntegerKernels):
        return [of_operation(operation) for operation in kernels.step.operations]
    assert isinstance(kernels, Kernels)
    found: dict[str, dict[str, float]] = {}
    for variant in kernels.variants.values():
        walk = Walk(kernels.machine.lanes, variant.lowered.shares or 1)
        walk.statement(variant.lowered.function.body, 1.0)
        found[variant.symbol] = {"call": 1.0, **{name: count for name, count in walk.counts.items() if count}}
    return [found[kernel.symbol] for kernel in program.source.symbols]


def of_operation(operation: Operation) -> dict[str, float]:
    """The terms of one integer kernel."""
    kind, elements = operation.kind, math.prod(operation.write.shape)
    sizes = [math.prod(tensor.shape) for tensor in operation.reads]
    if kind in PRODUCTS_OF_WEIGHTS:  # columns [outputs, depth]
        macs = elements * sizes[1] / max(1, operation.reads[1].shape[0])
    elif kind in ("pair", "pair16"):  # of m x k and k x n: m k, k n and m n are known
        macs = math.sqrt(sizes[0] * sizes[1] * elements)
    elif kind in REDUCTIONS:
        macs = sizes[0]
    else:
        macs = elements * len(sizes)
    return {kind: 1, f"{kind}.elements": elements, f"{kind}.macs": macs}


class Walk:
    """Counts what the body of a kernel does; `shares` are the turns of an outermost loop that threads could share."""

    def __init__(self, lanes: int, shares: int) -> None:
        self.bits, self.shares = 32 * lanes, shares
        self.counts: defaultdict[str, float] = defaultdict(float)
        self.registers: set[str] = set()  # names of buffers that are no memory
        self.loaded: set[str] = set()  # by the statements of one sequence

    def statement(self, node: Any, times: float) -> None:
        """Add what a statement does, done `times` times."""
        kind = type(node).__name__
        if kind == "SeqStmt":
            outer, self.loaded = self.loaded, set()
            for part in node.seq:
                self.statement(part, times)
            self.loaded = outer
        elif kind == "For":
            turns = times * self.turns(node.extent)
            self.counts["loop"] += turns
            outer, self.loaded = self.loaded, set()
            self.statement(node.body, turns)
            self.loaded = outer
        elif kind == "IfThenElse":
            self.expression(node.condition, times)
            self.counts["choice"] += times
            self.statement(node.then_case, times)
        elif kind == "AllocBuffer":
            if math.prod(self.turns(extent) for extent in node.buffer.shape) <= REGISTERS:
                self.registers.add(str(node.buffer.name))
        elif kind == "BufferStore":
            if str(node.buffer.name) not in self.registers:
                self.counts["store"] += times * self.vectors(node.value)
            self.expression(node.value, times)
        elif kind in ("Bind", "Evaluate") and is_float(node.value):
            self.expression(node.value, times)

    def turns(self, extent: Any) -> float:
        """A loop's turns; where they are no constant, the loop is shared by threads: all of them."""
        value = getattr(extent, "value", None)
        return float(value) if isinstance(value, int) else float(self.shares)

    def vectors(self, node: Any) -> int:
        """Registers that a value takes."""
        from tvm import DataType

        kind = DataType(str(node.ty.dtype))
        return max(1, -(-int(kind.bits) * int(kind.lanes) // self.bits))

    def expression(self, node: Any, times: float) -> None:
        """Add what an expression does."""
        kind = type(node).__name__
        if kind in ("BufferLoad", "TensorLoad"):
            place = str(node)
            if str(node.source.name) not in self.registers and place not in self.loaded:
                self.counts["load"] += times * self.vectors(node)
                self.loaded.add(place)
        elif kind == "Call":
            self.call(node, times)
        elif kind not in ("IntImm", "FloatImm", "StringImm", "Var", "Ramp"):
            own = {"Div": "divide", "Cast": "convert", "Select": "choice", "Max": "choice", "Min": "choice"}.get(kind)
            if own is None or (own == "divide" and not is_float(node)):
                own = "float" if any(is_float(part) for part in operands(node)) else "whole"
            self.counts[own] += 0 if kind == "Broadcast" else times * self.vectors(node)
            for part in operands(node):
                self.expression(part, times)

    def call(self, node: Any, times: float) -> None:
        """Add an intrinsic, and its arguments."""
        from tvm.target.codegen import llvm_get_intrinsic_name

        name, arguments = str(getattr(node.op, "name", node.op)).rpartition(".")[2], list(node.args)
        if name.startswith("call_llvm"):
            name = llvm_get_intrinsic_name(int(arguments.pop(0).value))
        if name in PRODUCTS:
            self.counts["float"] += 2 * times * self.vectors(node)
        elif name in CHOICES:
            self.counts["choice"] += times
        elif name not in FREE:
            kind = "whole" if name.startswith(("shift", "bitwise")) else "function"
            self.counts[kind] += times * self.vectors(node)
        for part in arguments:
            if hasattr(part, "ty"):
                self.expression(part, times)


def is_float(node: Any) -> bool:
    return str(node.ty.dtype).startswith("float")


def operands(node: Any) -> list[Any]:
    """The parts of an expression that are computed first."""
    names = ("a", "b", "condition", "true_value", "false_value", "value")
    return [part for part in (getattr(node, name, None) for name in names) if hasattr(part, "ty")]
