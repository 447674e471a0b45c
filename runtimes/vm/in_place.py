"""A step as a Relax function of what it reads and writes, all of which is given, at an address for good.

    even(inputs, outputs, first, second)    reads the states in `first`, writes the next ones into `second`
    odd(inputs, outputs, second, first)     the same kernels, the places exchanged

A CUDA graph replays its launches with the addresses of the first time. So the step is two graphs, one for each way
that its states go; constants lie in the executable, which holds them on the device once for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tvm import relax, te

from edgemem.contract import Contract
from edgemem.runtimes.aot.graph import Graph, Tensor

EVEN, ODD = "even", "odd"
IDENTITY = "vm.builtin.copy"  # gives its argument
COPY = "copy"  # begins the names of kernels that only copy


def turns(contract: Contract) -> tuple[str, ...]:
    """The functions of a model's executable: without states, nothing is exchanged."""
    return (EVEN, ODD) if contract.states else (EVEN,)


def in_place(graph: Graph, contract: Contract) -> Any:
    """The kernels of a graph and the functions of a step over them, in one module."""
    copies = {name: f"{COPY}_{index}" for index, name in enumerate(copied(graph))}
    kernels = dict(graph.functions) | {kernel: copy(graph.results[name]) for name, kernel in copies.items()}
    builder = relax.BlockBuilder()
    variables = {name: builder.add_func(function, name) for name, function in kernels.items()}
    constants = Constants(graph)
    for turn in turns(contract):
        emitter = Emitter(builder, kernels, variables, graph, constants)
        builder.add_func(emitter.function(turn, contract, copies), turn)
    return builder.get()


def copied(graph: Graph) -> list[str]:
    """Results that no kernel writes into their place: an input, a constant, or a tensor that has a place already."""
    placed: set[int] = set()
    found = []
    for name, tensor in graph.results.items():
        if tensor.source != "call" or tensor.number in placed:
            found.append(name)
        placed.add(tensor.number)
    return found


def copy(tensor: Tensor) -> Any:
    """A PrimFunc that copies a tensor of this shape."""
    source = te.placeholder(tensor.shape, tensor.dtype, name="source")
    return te.create_prim_func([source, te.compute(tensor.shape, lambda *index: source(*index), name="target")])


class Constants:
    """Constants of a graph as Relax has them, one of each shape that a kernel wants."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[int, tuple[int, ...]], Any] = {}

    def of(self, tensor: Tensor, shape: tuple[int, ...]) -> Any:
        key = tensor.number, shape
        if key not in self.made:
            self.made[key] = relax.const(self.graph.constants[tensor.number].reshape(shape), tensor.dtype)
        return self.made[key]


class Emitter:
    """One pass over the calls of a graph."""

    def __init__(
        self,
        builder: Any,
        kernels: Mapping[str, Any],
        variables: Mapping[str, Any],
        graph: Graph,
        constants: Constants,
    ) -> None:
        self.builder, self.kernels, self.variables = builder, kernels, variables
        self.graph, self.constants = graph, constants
        self.bindings: list[Any] = []
        self.held: dict[int, Any] = {}  # variables by tensor number: parameters, and what is allocated

    def function(self, turn: str, contract: Contract, copies: Mapping[str, str]) -> Any:
        """The Relax function in the form that TVM's planner of memory takes: no dataflow blocks, kernels called."""
        reads = [*((port.name, port) for port in contract.inputs), *((s.input, s) for s in contract.states)]
        writes = [*((port.name, port) for port in contract.outputs), *((s.output, s) for s in contract.states)]
        parameters = {name: relax.Var(name.replace(".", "_"), kind(fact)) for name, fact in (*reads, *writes)}
        for name, _ in reads:
            self.held[self.graph.inputs[name].number] = parameters[name]
        for name, _ in writes:
            if name not in copies:
                self.held[self.graph.results[name].number] = parameters[name]
        for call in self.graph.calls:
            for tensor in call.writes:
                if tensor.number not in self.held:
                    self.held[tensor.number] = self.allocated(tensor)
            self.launch(call.kernel, (*call.reads, *call.writes))
        for name, kernel in copies.items():
            self.launch(kernel, (self.graph.results[name], parameters[name]))
        result = self.result(parameters[writes[0][0]])
        body = relax.SeqExpr([relax.BindingBlock(self.bindings)], result)
        count = len(contract.inputs), len(contract.outputs)
        names = [name for name, _ in (*reads[: count[0]], *writes[: count[1]], *reads[count[0] :], *writes[count[1] :])]
        function = relax.Function([parameters[name] for name in names], body, result.ty, is_pure=False)
        # of the first `num_input` parameters the addresses may change: of none
        return function.with_attr({"global_symbol": turn, "num_input": 0})

    def result(self, written: Any) -> Any:
        """What the function gives, which nobody needs: a graph that gives nothing would have no register to write.

        A view of something written is part of the graph, and the call behind it reads that from outside.
        """
        size = math.prod(int(extent) for extent in written.ty.shape)
        type_of = relax.TensorType((size,), written.ty.dtype)
        view = self.bound(relax.op.reshape(written, relax.ShapeExpr((size,))), type_of)
        return self.bound(relax.Call(relax.ExternFunc(IDENTITY), [view], None, [type_of]), type_of)

    def allocated(self, tensor: Tensor) -> Any:
        call = relax.op.builtin.alloc_tensor(relax.ShapeExpr(tensor.shape), tensor.dtype, 0)
        return self.bound(call, kind(tensor))

    def launch(self, kernel: str, tensors: Sequence[Tensor | Any]) -> None:
        """One call of a kernel, on tensors of the graph or on variables."""
        parameters = self.kernels[kernel].params
        shapes = [tuple(int(extent) for extent in parameter.shape) for parameter in parameters]
        arguments = [self.value(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]
        nothing = relax.TupleType([])
        self.bound(relax.Call(self.variables[kernel], arguments, None, [nothing]), nothing)

    def value(self, tensor: Tensor | Any, shape: tuple[int, ...]) -> Any:
        """What holds a tensor, under the shape that a kernel wants."""
        if isinstance(tensor, Tensor) and tensor.source == "constant":
            return self.constants.of(tensor, shape)
        held = self.held[tensor.number] if isinstance(tensor, Tensor) else tensor
        if tuple(int(extent) for extent in held.ty.shape) == shape:
            return held
        return self.bound(relax.op.reshape(held, relax.ShapeExpr(shape)), relax.TensorType(shape, held.ty.dtype))

    def bound(self, value: Any, type_of: Any) -> Any:
        variable = relax.Var(f"v{len(self.bindings)}", type_of)
        self.bindings.append(relax.VarBinding(variable, self.builder.normalize(value)))
        return variable


def kind(fact: Any) -> Any:
    """The Relax type of a tensor, port or state."""
    return relax.TensorType(tuple(fact.shape), fact.dtype)
