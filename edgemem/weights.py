"""A model's parameters inside its file: found by name, held against the digests of the contract.

A parameter is the initializer of its own dotted torch name, or, where the graph wants it transposed, the initializer
`NAME.T`. A learned start of state S is the initializer `S_start`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.digests import canonical
from edgemem.errors import ContractError

if TYPE_CHECKING:
    from edgemem.modelfile import ModelFile

Array = np.ndarray[Any, np.dtype[Any]]
TRANSPOSED = ".T"
START = "_start"


def tensor_digest(array: Array) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes, in the parameter's own layout."""
    header = canonical([str(array.dtype), list(array.shape)]).encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def stored_tensors(model: ModelFile) -> dict[str, Array]:
    """Every tensor that the contract names, from the file's initializers, in its own layout.

    Raises:
        ContractError: an initializer is missing.
    """
    found = {}
    for name in model.contract.model.tensors:
        if name in model.onnx.initializers:
            found[name] = model.onnx.initializers[name].numpy()
        elif name + TRANSPOSED in model.onnx.initializers:
            found[name] = model.onnx.initializers[name + TRANSPOSED].numpy().T
        else:
            raise ContractError(
                f"contract field model.tensors.{name}: {model.path} has no initializer of that name; "
                "it was rewritten by another tool: give the file it was made from by --reference"
            )
    return found


def altered_tensors(model: ModelFile, tensors: Mapping[str, Array]) -> list[str]:
    """Names of the tensors whose values are not those that were exported."""
    return [name for name, wanted in model.contract.model.tensors.items() if tensor_digest(tensors[name]) != wanted]


def stored_digest(model: ModelFile) -> str:
    """SHA-256 of every initializer of a file: name, dtype, shape and bytes, by name."""
    total = hashlib.sha256()
    for name, held in sorted(model.onnx.initializers.items()):
        total.update(canonical([name, held.dtype, list(held.shape), held.nbytes]).encode())
        total.update(held.data)
    return total.hexdigest()
