"""Opening a file from outside: held against its bounds before anything reads it as a model."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem import contract as contracts
from edgemem import onnxfile
from edgemem.errors import EdgememError, ModelFileError, UsageError
from edgemem.export.adopt.bounds import check_functions, check_names, check_ports
from edgemem.export.adopt.rewrite import REWRITES
from edgemem.export.adopt.schemas import STANDARD, check_nodes
from edgemem.muted import muted
from edgemem.text import first_line

NO_NUMBERS = frozenset(
    {"ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"}
)


def opened(path: Path) -> ir.Model:
    """A foreign model, functions inlined.

    Raises:
        ModelFileError: no whole ONNX file, a pickle, external data outside its folder, an operator of no standard, one
            with inputs or attributes missing, a graph with a cycle or an undefined value, or inputs of no fixed rank.
        UsageError: the file has a contract already.
    """
    if not path.exists():
        raise ModelFileError(f"{path} does not exist; give the ONNX file that is to be adopted")
    if path.is_file():
        check_pickle(path)
    found = onnxfile.read(path)  # bounds, and external data of the graph itself
    if contracts.KEY in found.metadata:
        raise UsageError(f"{path} has a contract already; use it as it is, or adopt the file that it was made from")
    with muted("onnx_ir"), readable(path):
        model = ir.load(path.resolve())  # external data lies beside the file itself, not beside a link to it
        check_functions(path, model)
        model = ir.passes.common.InlinePass()(model).model
        check_tensors(path, model)
        check_operators(path, model)
        check_nodes(path, model)
        check_names(path, model)
        check_order(path, model)
        ir.external_data.load_to_model(model)
        ir.passes.common.RemoveInitializersFromInputsPass()(model)
        check_ports(path, model)
        check_numbers(path, model)
    return model


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what readers of files raise, which may be anything, into a ModelFileError."""
    try:
        yield
    except EdgememError:
        raise
    except Exception as error:
        raise ModelFileError(f"{path} cannot be read as a model ({first_line(error)}); export it again") from error


def check_pickle(path: Path) -> None:
    """Refuse Python pickles, alone or in an archive: opening one runs whatever is in it."""
    with path.open("rb") as file:
        start = file.read(2)
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    if zipfile.is_zipfile(path):
        with readable(path), zipfile.ZipFile(path) as archive:
            pickled = any(name.endswith(".pkl") for name in archive.namelist())
        if not pickled:
            raise ModelFileError(f"{path} is an archive; unpack it and give the .onnx file in it")
    if pickled:
        raise ModelFileError(
            f"{path} is a Python pickle, which can run any program when it is opened; this is refused: export the "
            "model to ONNX where it was made"
        )


def check_tensors(path: Path, model: ir.Model) -> None:
    """Refuse external data that is not whole in a file of the model's folder, of nested graphs and attributes too."""
    for tensor in tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            onnxfile.data_file(path, tensor.name, str(tensor.location), tensor.offset or 0, tensor.nbytes)


def check_numbers(path: Path, model: ir.Model) -> None:
    """Refuse constants that hold NaN: what is computed with one proves nothing, and equals nothing."""
    for tensor in tensors(model):
        if tensor is None or not tensor.dtype.is_floating_point():
            continue
        bad = np.isnan(tensor.numpy())
        if bad.any():
            place = np.argwhere(bad)[0].tolist()
            raise ModelFileError(
                f"{path}: the constant {tensor.name or 'of a node'} holds NaN at {place}; its training has failed, or "
                "the file is damaged: export the model again"
            )


def tensors(model: ir.Model) -> list[Any]:
    """Every tensor of a model, wherever it hides."""
    found = []
    for graph in [model.graph, *model.graph.subgraphs()]:
        found += [value.const_value for value in graph.initializers.values()]
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                found.append(attribute.as_tensor())
            elif attribute.type == ir.AttributeType.TENSORS:
                found += attribute.as_tensors()
    return found


def check_operators(path: Path, model: ir.Model) -> None:
    """Refuse operators of text and pictures, and of other domains than the standard's that cannot be rewritten."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in NO_NUMBERS:
            raise ModelFileError(
                f"{path}: operator {node.op_type} ({node.name or 'unnamed'}) works on text or pictures, and a step "
                "takes numbers; do that before the model, and export it without"
            )
        if node.domain not in STANDARD and (node.domain, node.op_type) not in REWRITES:
            raise ModelFileError(
                f"{path}: operator {node.domain}::{node.op_type} ({node.name or node.outputs[0].name}) is not standard "
                "ONNX; export the model with standard operators only"
            )


def check_order(path: Path, model: ir.Model) -> None:
    """Refuse values that nothing defines, and nodes that wait for each other; bring all others into their order."""
    for graph in [model.graph, *model.graph.subgraphs()]:
        reads = [(value, node.name or node.op_type) for node in graph for value in node.inputs]
        for value, reader in [*reads, *((value, "the graph's outputs") for value in graph.outputs)]:
            defined = value is None or value.producer() or value.is_graph_input() or value.is_initializer()
            if value is not None and not defined:
                raise ModelFileError(f"{path}: {reader} reads {value.name!r}, which nothing defines; export it again")
    try:
        model.graph.sort()
    except ValueError as error:
        raise ModelFileError(f"{path}: its nodes form a cycle, so none can be first; export it again") from error
