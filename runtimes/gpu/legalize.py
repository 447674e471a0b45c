"""Operators as PrimFuncs for GPUs, neighbours fused.

matmul by a constant   the weights by output           [N, K]
take                   a checked index is read as it is, any other is clamped
all others             TVM's own forms
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvm import ir, relax

from edgemem import modelfile
from edgemem.muted import muted
from edgemem.runtimes.aot.folding import dtype_of, folded, shape_of
from edgemem.runtimes.aot.graph import Graph, graph_of
from edgemem.runtimes.aot.importer import REMARKS, imported
from edgemem.runtimes.aot.legalize import default, legal_quantize, legal_take
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.gpu.products import converted, float_product

Expr = Any
Rule = Callable[[Any, Expr], Expr]


def rules(ranges: Mapping[str, tuple[int, int]]) -> dict[str, Rule]:
    """What `LegalizeOps` is to use for each operator."""

    def take(builder: Any, call: Expr) -> Expr:
        return legal_take(builder, call, ranges)

    return {"relax.take": take, "relax.matmul": legal_matmul, "relax.quantize": legal_quantize}


def legal_matmul(builder: Any, call: Expr) -> Expr:
    """A product with a constant matrix reads it by outputs; any other keeps TVM's form."""
    left, right = call.args
    if shape_of(left)[-1] == 1 and len(shape_of(left)) > 1 and len(shape_of(right)) > 1:
        return default("multiply", builder, relax.op.multiply(left, right))  # an outer product
    if not isinstance(right, ir.GenericConst) or dtype_of(call) != "float32" or len(shape_of(left)) < 2:
        return default("matmul", builder, call)
    weights = right.value.numpy()
    if math.prod(weights.shape[:-2]) != 1:
        return default("matmul", builder, call)
    return float_product(builder, left, weights.reshape(weights.shape[-2:]), shape_of(call))


@dataclass(frozen=True)
class Fused:
    """A model as a straight line of kernel calls that have no schedules yet."""

    model: modelfile.ModelFile
    graph: Graph
    products: list[Any]  # which kernel computes each product of the model


def fused(path: Path, machine: Machine, progress: Callable[[str], None]) -> Fused:
    """Import a model file and fuse its operators.

    Raises:
        ModelFileError, ContractError: the file is not a model, or has an operator without a kernel.
    """
    model = modelfile.open_model(path)
    ranges = {port.name: port.range for port in model.contract.inputs if port.range is not None}
    progress("importing")
    found = imported(model, machine, converted)
    progress("fusing")
    with muted(*REMARKS):
        module = legalized(folded(found.module, ranges), machine.target, ranges)
        graph = graph_of(module, found.inputs, found.outputs)
    return Fused(model, graph, list(found.products))


def legalized(module: Any, target: Any, ranges: Mapping[str, tuple[int, int]]) -> Any:
    """Every operator as a PrimFunc, neighbours fused; views (`relax.reshape`) stand alone again."""
    from tvm import transform

    passes = [
        relax.transform.LegalizeOps(rules(ranges)),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    with target:
        return transform.Sequential(passes)(module)
