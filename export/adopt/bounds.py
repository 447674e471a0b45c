"""What a file from outside may say of its names, types, sizes and functions, before anything is made of them."""

from __future__ import annotations

import graphlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from edgemem.errors import ModelFileError

MOST_NODES = 1 << 18  # that the calls of all functions may come to
MOST_ELEMENTS = 1 << 26  # of one input, of one value in a step
MOST_AXES = 16
TYPES = frozenset(  # those that NumPy has
    {"FLOAT", "FLOAT16", "DOUBLE", "BOOL", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))}
)


def check_functions(path: Path, model: ir.Model) -> None:
    """Refuse functions that call themselves, or that come to too much where every call is written out.

    Raises:
        ModelFileError: naming the file.
    """
    calls = {key: [node.op_identifier() for node in body.all_nodes()] for key, body in model.functions.items()}
    inner = {key: {name for name in names if name in calls} for key, names in calls.items()}
    try:
        order = list(graphlib.TopologicalSorter(inner).static_order())
    except graphlib.CycleError as error:
        raise ModelFileError(
            f"{path}: its function {error.args[1][0][1]} calls itself, so it has no end; export the model again"
        ) from error
    count: dict[ir.OperatorIdentifier, int] = {}
    for key in order:
        count[key] = sum(count.get(name, 1) for name in calls[key])
    total = sum(count.get(node.op_identifier(), 1) for node in ir.traversal.RecursiveGraphIterator(model.graph))
    if total > MOST_NODES:
        raise ModelFileError(
            f"{path}: with its functions written out it has more than {MOST_NODES:,} operators; export the model with "
            "fewer"
        )


def check_names(path: Path, model: ir.Model) -> None:
    """Refuse graphs in which one name means two things, or an input or output has none.

    Raises:
        ModelFileError: the first such name.
    """
    for graph in [model.graph, *model.graph.subgraphs()]:
        made = [value.name for node in graph for value in node.outputs if value.name]
        inputs = [value.name or "" for value in graph.inputs]
        outputs = [value.name or "" for value in graph.outputs] if graph is model.graph else []
        for what, names in (("input", [*inputs, *made]), ("output", outputs)):
            name, times = next(iter(Counter(names).most_common(1)), ("", 1))
            if times > 1 or "" in names:
                problem = f"several values are called {name!r}" if times > 1 else f"an {what} has no name"
                problem = f"the output {name!r} is there twice" if times > 1 and what == "output" else problem
                raise ModelFileError(f"{path}: {problem}; the file is malformed, export it again")


def check_ports(path: Path, model: ir.Model) -> None:
    """Refuse inputs that are no tensors of numbers, or that have no size that a step can have.

    Raises:
        ModelFileError: the first of them, what was wanted and what came.
    """
    for value in model.graph.inputs:
        for problem in problems(value):
            raise ModelFileError(f"{path}: input {value.name} {problem}")


def problems(value: ir.Value) -> Iterator[str]:
    """What is wrong with an input."""
    if not isinstance(value.type, ir.TensorType) or value.dtype is None or value.dtype.name not in TYPES:
        came = "no type" if value.type is None else str(value.type).lower()
        yield f"is of {came}; a tensor of numbers was wanted, of a type that NumPy has: export the model with such"
    if value.shape is None:
        yield "has no shape; its axes are wanted, those without a fixed size under a name: export the model again"
        return
    numbers = [size for size in value.shape if isinstance(size, int)]
    if len(value.shape) > MOST_AXES:
        yield f"has {len(value.shape)} axes, {MOST_AXES} are the limit"
    elif any(size < 1 for size in numbers):
        yield f"has the sizes {list(numbers)}; each has to be 1 or more, or a name: export the model again"
    elif math.prod(numbers) > MOST_ELEMENTS:
        yield f"has {math.prod(numbers)} elements, {MOST_ELEMENTS} are the limit; choose a shorter step"
