"""What the folders of `opencl` and `tvm` programs have in common: a manifest, digests, the starts of states."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgemem import __version__, modelfile
from edgemem import contract as contracts
from edgemem.contract import Contract
from edgemem.errors import ModelFileError
from edgemem.program import Array
from edgemem.runtimes.aot.load import FORMAT, read_manifest


def write_program_folder(
    output: Path,
    runtime: str,
    name: str,
    contract: Contract,
    products: Sequence[Any],
    facts: Mapping[str, Any],
    fill: Callable[[Path], None],
) -> dict[str, Any]:
    """Let `fill` write the files of a program, put them into `output` with their manifest, and return that.

    `facts` are what the manifest says of this runtime alone.
    """
    from edgemem.runtimes.aot.compiler import existing_parent, install, write_manifest

    with tempfile.TemporaryDirectory(prefix=".edgemem-", dir=existing_parent(output)) as work:
        folder = Path(work)
        fill(folder)
        manifest = {
            "format": FORMAT,
            "runtime": runtime,
            "name": name,
            "contract": json.loads(contracts.encode(contract)),
            "products": [asdict(product) for product in products],
            "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir())},
            "versions": {"edgemem": __version__, "apache-tvm": metadata.version("apache-tvm")},
            **facts,
        }
        write_manifest(folder, manifest)
        install(folder, output)
    return manifest


def read_program_folder(folder: Path, runtime: str) -> tuple[dict[str, Any], Contract]:
    """Manifest and contract of a folder.

    Raises:
        ModelFileError: no manifest, or the one of another runtime.
        ContractError: the contract is damaged.
    """
    manifest = read_manifest(folder)
    if manifest.get("runtime") != runtime:
        raise ModelFileError(
            f"{folder} holds no program of the {runtime} runtime; `edgemem compile --board BOARD --runtime {runtime}` "
            "writes one"
        )
    return manifest, contracts.decode(json.dumps(manifest["contract"]))


def checked(path: Path, manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a file, if they are those of the manifest.

    Raises:
        ModelFileError: they are not, or it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); compile the model again") from error
    if hashlib.sha256(data).hexdigest() != manifest["files"].get(path.name):
        raise ModelFileError(f"{path} is not the file of its manifest; compile the model again")
    return data


def packed_starts(model: modelfile.ModelFile, first: int) -> tuple[bytes, dict[str, int]]:
    """The start of every state one after another, and where each begins in a file that has `first` bytes already."""
    blob, offsets = bytearray(), {}
    for name, array in modelfile.start_values(model).items():
        offsets[name] = first + len(blob)
        blob += array.tobytes()
    return bytes(blob), offsets


def unpacked_starts(contract: Contract, offsets: Any, blob: bytes) -> dict[str, Array]:
    """The start of every state, each [batch, *shape].

    Raises:
        ModelFileError: the manifest says none, or one outside the file.
    """
    found = {}
    for state in contract.states:
        count = int(np.prod(state.shape))
        size = count * np.dtype(state.dtype).itemsize
        offset = offsets.get(state.name) if isinstance(offsets, Mapping) else None
        if type(offset) is not int or offset < 0 or offset + size > len(blob):
            raise ModelFileError(f"the manifest has no start of state {state.name}; compile the model again")
        found[state.name] = np.frombuffer(blob, state.dtype, count, offset).reshape(state.shape)
    return found
