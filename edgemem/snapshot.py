"""A stream's state as a small file: versioned, checksummed, tied to the model and not to the runtime.

A snapshot is a safetensors file. Its tensors are `state.NAME` for every state of the contract, `pending.INPUT` for
frames that wait for a whole chunk, and `frontend.NAME` for the audio front end. Its metadata:

    edgemem.snapshot   1, the version of this layout
    fingerprint        of the model's weights and states: a snapshot of another model is refused
    position           JSON of the stream's counters
    sha256             of fingerprint, position and every tensor's name, dtype, shape and bytes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.digests import canonical, digest
from edgemem.errors import SnapshotError

if TYPE_CHECKING:
    from edgemem.contract import Contract

VERSION = "1"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Snapshot:
    """What a file holds once it is checked: tensors by prefixed name, and counters."""

    tensors: dict[str, Array]
    position: dict[str, int]

    def group(self, prefix: str) -> dict[str, Array]:
        """The tensors named `prefix.NAME`, by NAME."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + ".")}


def fingerprint(contract: Contract) -> str:
    """What a snapshot is tied to: the model's weights and its states, whatever the chunk, file or runtime."""
    states = [(state.name, list(state.shape), state.dtype) for state in contract.states]
    return digest([contract.model.family, contract.model.digest, states])


def checksum(tensors: Mapping[str, Array], position: str, owner: str) -> str:
    """SHA-256 over everything a snapshot says."""
    total = hashlib.sha256(canonical([VERSION, owner, position]).encode())
    for name in sorted(tensors):
        array = tensors[name]
        total.update(canonical([name, str(array.dtype), list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def encode(tensors: Mapping[str, Array], position: Mapping[str, int], contract: Contract) -> bytes:
    """The bytes of a snapshot file."""
    from safetensors.numpy import save

    counters, owner = canonical(dict(position)), fingerprint(contract)
    metadata = {
        "edgemem.snapshot": VERSION,
        "fingerprint": owner,
        "position": counters,
        "sha256": checksum(tensors, counters, owner),
    }
    return save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, metadata)


def decode(data: bytes, contract: Contract) -> Snapshot:
    """Check a snapshot file against the model it is to continue.

    Raises:
        SnapshotError: truncated, altered, of another version or of another model.
    """
    tensors, metadata = parsed(data)
    version = metadata.get("edgemem.snapshot")
    if version != VERSION:
        raise SnapshotError(
            f"snapshot: version {VERSION} was wanted, {version!r} came; save it again with this edgemem"
        )
    position, owner = metadata.get("position", ""), metadata.get("fingerprint", "")
    if metadata.get("sha256") != checksum(tensors, position, owner):
        raise SnapshotError("snapshot: its SHA-256 does not fit its contents; it was altered, take an older copy")
    if owner != fingerprint(contract):
        raise SnapshotError(
            f"snapshot: it belongs to a model with fingerprint {owner[:12]}…, this is {contract.model.name} "
            f"({fingerprint(contract)[:12]}…); restore it into the model that saved it"
        )
    return Snapshot(tensors, {str(key): int(value) for key, value in json.loads(position).items()})


def parsed(data: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors and metadata of a safetensors file, its header read once more for the metadata."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SnapshotError(f"snapshot: not a safetensors file ({error}); it is truncated or altered") from error
    return tensors, metadata
