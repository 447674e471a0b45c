"""The straight line of kernel calls that a legalized Relax module is.

    call   kernel, tensors that it reads, tensors that it writes
    view   one tensor under another shape: no call, no copy

Tensors are numbered by where they come from: an input or state of the model, a constant, or a call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgemem.errors import ModelFileError

Array = np.ndarray[Any, np.dtype[Any]]
ROLE = "edgemem.ring"  # attribute of the PrimFuncs that mark a ring: what they stand for
ROLE_KEPT, ROLE_ROW = f"{ROLE}.kept", f"{ROLE}.row_bytes"
APPEND, KEPT = "ring_append", "ring_kept"
BYTES = {
    "float32": 4,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
}


@dataclass(frozen=True)
class Tensor:
    """One buffer: `name` is the parameter's for inputs and states."""

    number: int
    source: Literal["input", "constant", "call", "ring"]
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True)
class Call:
    """One kernel on its tensors, inputs before outputs as in the PrimFunc's parameters."""

    kernel: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]


@dataclass(frozen=True)
class Ring:
    """A state that slides: `known` are the rows of `before` and behind them those of `new`; `kept` of them stay.

    `after` is the state's next value. One row is `row_bytes` long; `before` has `rows` of them, `known` has `reach`.
    """

    before: Tensor
    new: Tensor
    known: Tensor
    after: Tensor
    kept: int
    row_bytes: int

    @property
    def rows(self) -> int:
        return self.before.nbytes // self.row_bytes

    @property
    def reach(self) -> int:
        return self.known.nbytes // self.row_bytes


@dataclass
class Graph:
    """All calls in order; `results` are the graph's outputs by name."""

    inputs: dict[str, Tensor]
    calls: list[Call] = field(default_factory=list)
    constants: dict[int, Array] = field(default_factory=dict)  # by tensor number
    results: dict[str, Tensor] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)  # PrimFuncs by kernel name
    rings: dict[str, Ring] = field(default_factory=dict)  # by the name of the state


def graph_of(module: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """The calls of a module's `main`; `inputs` and `outputs` name its parameters and results.

    Raises:
        ModelFileError: something in it is neither a kernel nor a view.
    """
    return Walk(module, inputs).finished(outputs)


class Walk:
    """One pass over the bindings of `main`."""

    def __init__(self, module: Any, inputs: Sequence[str]) -> None:
        self.module, self.main = module, module["main"]
        self.count = 0
        self.held: dict[Any, Any] = {}  # relax variable -> Tensor, or a tuple of them
        self.constants: dict[tuple[str, bytes], Tensor] = {}
        self.graph = Graph({})
        self.appended: dict[int, tuple[Tensor, Tensor]] = {}  # known -> before, new
        for name, parameter in zip(inputs, self.main.params, strict=True):
            self.graph.inputs[name] = self.held[parameter] = self.tensor("input", name, parameter.ty)

    def tensor(self, source: Any, name: str, kind: Any) -> Tensor:
        """A new tensor of a Relax type."""
        dtype = str(kind.dtype)
        if dtype not in BYTES:
            raise ModelFileError(f"tensor {name} is {dtype}; compiled programs hold {', '.join(sorted(BYTES))}")
        self.count += 1
        return Tensor(self.count - 1, source, name, tuple(int(extent) for extent in kind.shape), dtype)

    def finished(self, outputs: Sequence[str]) -> Graph:
        for block in self.main.body.blocks:
            for binding in block.bindings:
                self.held[binding.var] = self.bound(binding)
        results = self.value(self.main.body.body)
        results = results if isinstance(results, tuple) else (results,)
        self.graph.results = dict(zip(outputs, results, strict=True))
        return self.graph

    def value(self, expr: Any) -> Any:
        """The tensor (or tensors) that an expression stands for."""
        from tvm import ir, relax

        if isinstance(expr, ir.GenericConst):
            return self.constant(expr)
        if isinstance(expr, relax.Tuple):
            return tuple(self.value(part) for part in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self.value(expr.tuple_value)[expr.index]
        if expr in self.held:
            return self.held[expr]
        raise ModelFileError(f"the compiler cannot place {str(expr)[:80]!r}; please report this model")

    def constant(self, expr: Any) -> Tensor:
        """A constant; equal bytes are one tensor."""
        array = np.ascontiguousarray(expr.value.numpy())
        key = (str(array.dtype), array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.tensor("constant", "constant", expr.ty)
            self.graph.constants[self.constants[key].number] = array
        return self.constants[key]

    def bound(self, binding: Any) -> Any:
        """What a binding's variable is."""
        from tvm import ir, relax

        call = binding.value
        if not isinstance(call, relax.Call):
            return self.value(call)
        name = str(call.op.name) if isinstance(call.op, ir.Op) else str(call.op)
        if name == "relax.reshape":
            return self.value(call.args[0])
        if name != "relax.call_tir":
            raise ModelFileError(f"operator {name} has no kernel in the aot runtime; export the model without it")
        kernel = str(call.args[0].name_hint)
        attributes = self.module[kernel].attrs
        if attributes is not None and ROLE in attributes:
            return self.ring(attributes, call, binding.var.ty)
        kinds = binding.var.ty
        several = not hasattr(kinds, "dtype")
        writes = tuple(self.tensor("call", kernel, kind) for kind in (kinds.fields if several else [kinds]))
        reads = tuple(self.value(argument) for argument in call.args[1].fields)
        self.graph.functions[kernel] = self.module[kernel]
        self.graph.calls.append(Call(kernel, reads, writes))
        return writes if several else writes[0]

    def ring(self, attributes: Any, call: Any, kind: Any) -> Tensor:
        """What a mark stands for: the rows known in a step, or the state after it."""
        role = str(attributes[ROLE])
        place = self.tensor("ring", role, kind)
        reads = tuple(self.value(argument) for argument in call.args[1].fields)
        if role == APPEND:
            self.appended[place.number] = (reads[0], reads[1])
            return place
        before, new = self.appended[reads[0].number]
        kept, row_bytes = int(attributes[ROLE_KEPT]), int(attributes[ROLE_ROW])
        self.graph.rings[before.name.removesuffix("_in")] = Ring(before, new, reads[0], place, kept, row_bytes)
        return place
