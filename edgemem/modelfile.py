"""A model file: ONNX bytes, the contract inside them, and the check that they belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemem import contract as contracts
from edgemem import onnxfile
from edgemem.contract import Contract
from edgemem.errors import ContractError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ModelFile:
    """An opened and checked model file; weights stay on disk until they are asked for."""

    path: Path
    onnx: onnxfile.OnnxFile
    contract: Contract


def open_model(path: str | Path) -> ModelFile:
    """Read a model file and hold its contract against its graph.

    Raises:
        ModelFileError: not a whole ONNX file.
        ContractError: no contract, a newer, malformed or altered one, or one of another graph; it names the file and
            the field.
    """
    onnx = onnxfile.read(path)
    if contracts.KEY not in onnx.metadata:
        raise ContractError(
            f"{path} is ONNX without a contract (metadata {contracts.KEY}); "
            "`edgemem export` writes one for a torch model, `edgemem adopt` for an ONNX file from elsewhere"
        )
    try:
        contract = contracts.decode(onnx.metadata[contracts.KEY])
        contracts.check_graph(contract, onnx.inputs, onnx.outputs, onnx.initializers)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    return ModelFile(Path(path), onnx, contract)


def start_values(model: ModelFile) -> dict[str, Array]:
    """The start of every state, [batch, *shape], writable copies."""
    return starts(model.contract, lambda name: model.onnx.initializers[name].numpy())


def starts(contract: Contract, constant: Callable[[str], Array]) -> dict[str, Array]:
    """The start of every state of a contract, [batch, *shape], writable copies; `constant` gives the learned ones."""
    values = {}
    for state in contract.states:
        start: Any = constant(state.start) if isinstance(state.start, str) else state.start
        values[state.name] = np.broadcast_to(np.asarray(start, state.dtype), state.shape).copy()
    return values
