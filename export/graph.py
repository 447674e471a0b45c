"""A torch module's chunk form as a flat, static ONNX graph of standard operators.

    forward(x, ..., valid, state_0, state_1, ...) -> (y, ..., state_0, state_1, ...)

Parameters stay recoverable from the file (see `edgemem.weights`): constants are folded, but nothing that is computed
from a parameter is, except that a matrix which is only ever read transposed is stored transposed, as `NAME.T`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from torch import Tensor, nn
from torch._decomp import decomposition_table

from edgemem import module as streaming
from edgemem.errors import ExportError
from edgemem.muted import muted
from edgemem.state import Port, StateTensor
from edgemem.text import first_line
from edgemem.weights import START, TRANSPOSED

OPSET = 20
FOLDING_ROUNDS = 2  # a rewrite can leave one more constant to fold
FOLDED_ELEMENTS = 1 << 22  # larger constants than this are left as the module computes them
PREFIX = "module."  # what the wrapper below puts before every parameter's name
# Control flow, sequences and randomness have no place in a static step graph.
REFUSED = frozenset(
    {
        "Loop",
        "Scan",
        "If",
        "NonZero",
        "Unique",
        "Optional",
        "DFT",
        "STFT",
        "SplitToSequence",
        "Bernoulli",
        "Multinomial",
    }
    | {f"Sequence{verb}" for verb in ("At", "Construct", "Empty", "Erase", "Insert", "Length", "Map", "Split")}
    | {f"Random{kind}{like}" for kind in ("Normal", "Uniform") for like in ("", "Like")}
)


@dataclass(frozen=True)
class Signature:
    """Names and order of everything that enters and leaves the graph."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: Mapping[str, StateTensor]
    valid: bool

    @property
    def input_names(self) -> list[str]:
        names = [port.name for port in self.inputs] + (["valid"] if self.valid else [])
        return names + [f"{name}_in" for name in self.states]

    @property
    def output_names(self) -> list[str]:
        return [port.name for port in self.outputs] + [f"{name}_out" for name in self.states]


class Flat(nn.Module):
    """The chunk form with its state as plain arguments and results."""

    def __init__(self, module: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.module, self.signature = module, signature
        self.train(module.training)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        ports, count = self.signature.inputs, len(self.signature.inputs)
        x: Any = arguments[0] if count == 1 else {p.name: a for p, a in zip(ports, arguments[:count], strict=True)}
        valid = arguments[count] if self.signature.valid else None
        before = arguments[count + self.signature.valid :]
        state = dict(zip(self.signature.states, before, strict=True))
        y, after = streaming.chunk(self.module, x, state, valid)
        rows = y if isinstance(y, dict) else {self.signature.outputs[0].name: y}
        outputs = [rows[port.name] for port in self.signature.outputs]
        results = (*outputs, *(after[name] for name in self.signature.states))
        # an argument that is also a result would have two names
        return tuple(r.clone() if any(r is argument for argument in arguments) else r for r in results)


def step_graph(program: torch.export.ExportedProgram, signature: Signature, parameters: Sequence[str]) -> ir.Model:
    """The ONNX model of an exported `Flat`; `parameters` are the names to keep recoverable.

    Raises:
        ExportError: an operator that has no standard ONNX form.
    """
    try:
        with quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=signature.input_names,
                output_names=signature.output_names,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # torch's exporter wraps whatever went wrong in private classes
        raise ExportError(untranslated(error, program)) from error
    assert exported is not None
    model = exported.model
    kept = {PREFIX + name for name in parameters}
    with quiet():
        simplify(model, kept)
    store_transposed(model, kept)
    rename_parameters(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.TopologicalSortPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name, model.producer_name, model.producer_version = "step", "edgemem", ""
    check_operators(model)
    return model


def untranslated(error: Exception, program: torch.export.ExportedProgram) -> str:
    """What torch.onnx stopped at, by operator and module path where its message tells."""
    found = re.search(r"translating node %(\w+) .*?target=torch\.ops\.([\w.]+)", str(error))
    if found is None:
        return f"torch.onnx cannot translate the module: {first_cause(error)}"
    nodes = [
        node  # the translator decomposes some operators further than the default does, others not
        for table in (None, dict(decomposition_table))
        for node in program.run_decompositions(table).graph.nodes
        if node.name == found[1]
    ]
    where = module_path(nodes[0]) if nodes else "the module"
    return (
        f"{where}: operator {found[2]} has no form in standard ONNX; write the step with basic tensor operators, "
        "and keep this one in `forward`"
    )


def module_path(node: torch.fx.Node) -> str:
    """Dotted name of the innermost module that called an operator."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    name = paths[-1].removeprefix("L['self'].").removeprefix(PREFIX) if paths else ""
    return name if name and name != "module" else "the module itself"


def simplify(model: ir.Model, kept: set[str]) -> None:
    """Inline, fold and rewrite; onnxscript's own optimizer also merges equal parameters, which would lose names."""
    common.InlinePass()(model)
    for _ in range(FOLDING_ROUNDS):
        optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=lambda node: folds(node, kept),
        )
        with hidden_values(model, kept):
            rewriter.rewrite(model)
        common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)


@contextmanager
def hidden_values(model: ir.Model, kept: set[str]) -> Iterator[None]:
    """Keep the values of parameters from rules that look at them: one would drop a bias that is all zeros."""
    values = [(v, v.const_value) for name, v in model.graph.initializers.items() if name in kept]
    for value, _ in values:
        value.const_value = None
    try:
        yield
    finally:
        for value, content in values:
            value.const_value = content


def folds(node: ir.Node, kept: set[str]) -> bool | None:
    """Leave alone what reads a parameter; otherwise the default rules."""
    return False if any(value is not None and value.name in kept for value in node.inputs) else None


def store_transposed(model: ir.Model, kept: set[str]) -> bool:
    """`Transpose(W)` -> `W.T`, where every reader of the matrix W transposes it; says whether any was."""
    changed = False
    for name in sorted(kept & set(model.graph.initializers)):
        weight = model.graph.initializers[name]
        readers = [node for node, _ in weight.uses()]
        if not readers or weight.is_graph_output() or not all(transposes(node) for node in readers):
            continue
        assert weight.const_value is not None
        twin = constant(name + TRANSPOSED, weight.const_value.numpy().T)
        model.graph.register_initializer(twin)
        for node in readers:
            node.outputs[0].replace_all_uses_with(twin)
            model.graph.remove(node, safe=True)
        del model.graph.initializers[name]
        changed = True
    return changed


def transposes(node: ir.Node) -> bool:
    """Whether a node is the transpose of a matrix and nothing the graph gives away."""
    if node.op_type != "Transpose" or node.outputs[0].is_graph_output():
        return False
    order = node.attributes.get("perm")
    return order is not None and list(order.as_ints()) == [1, 0]


def rename_parameters(model: ir.Model) -> None:
    """`module.NAME` -> `NAME`: the wrapper leaves no trace."""
    for name in list(model.graph.initializers):
        if name.startswith(PREFIX):
            value = model.graph.initializers[name]
            value.name = name.removeprefix(PREFIX)
            if value.const_value is not None:
                value.const_value.name = value.name


def check_operators(model: ir.Model) -> None:
    """Refuse what is not a standard operator of a static graph.

    Raises:
        ExportError: naming the operator and the node.
    """
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type in REFUSED:
            raise ExportError(
                f"operator {node.domain}::{node.op_type} ({node.name}) cannot be in a static step graph; "
                "write the step with plain tensor operators and fixed sizes"
            )


def add_starts(model: ir.Model, starts: Mapping[str, Tensor]) -> None:
    """Learned start values as initializers `STATE_start` that no node reads."""
    for name, start in starts.items():
        model.graph.register_initializer(constant(name + START, start.detach().numpy()))


def constant(name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """An initializer's value."""
    stored = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(stored.dtype), const_value=stored)


def first_cause(error: BaseException) -> str:
    """The innermost message of a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def quiet() -> AbstractContextManager[None]:
    """Keep torch's remarks about packages that edgemem does not use off the user's screen."""
    return muted(
        "torch.onnx",
        "torch.onnx._internal.exporter._registration",
        "torch.export",
        "torch.fx.experimental.symbolic_shapes",
        "onnxscript",
        "onnx_ir",
    )
