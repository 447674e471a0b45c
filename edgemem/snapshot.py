"""A stream's state as a small file: versioned, checksummed, tied to the model and not to the runtime.

A snapshot is a safetensors file. Its tensors are `state.NAME` for every state of the contract, `pending.INPUT` for
frames that wait for a whole chunk, and `frontend.NAME` for the audio front end. Its metadata has one entry, `edgemem`
(safetensors writes several in an arbitrary order, and equal snapshots are to be equal bytes), canonical JSON of:

    version       1, of this layout
    fingerprint   of the model's weights and states: a snapshot of another model is refused
    position      of the stream, see `Position`
    sha256        of the three above and of every tensor's name, dtype, shape and bytes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgemem.digests import canonical, digest
from edgemem.errors import SnapshotError

if TYPE_CHECKING:
    from edgemem.contract import Contract

VERSION = 1
KEY = "edgemem"
Array = np.ndarray[Any, np.dtype[Any]]


class Position(NamedTuple):
    """How far a stream has come: real frames taken, output rows made (of padding too), and whether it has ended."""

    taken: int = 0
    rows: int = 0
    ended: bool = False

    def given(self, look_ahead: int) -> int:
        """Rows so far that are of real frames: with look-ahead, that of a frame is made `look_ahead` rows later."""
        return max(0, min(self.taken, self.rows - look_ahead)) if look_ahead else self.taken


@dataclass(frozen=True)
class Snapshot:
    """What a file holds once it is checked: tensors by prefixed name, and the stream's position."""

    tensors: dict[str, Array]
    position: Position

    def group(self, prefix: str) -> dict[str, Array]:
        """The tensors named `prefix.NAME`, by NAME."""
        return {name[len(prefix) + 1 :]: t for name, t in self.tensors.items() if name.startswith(prefix + ".")}


def fingerprint(contract: Contract) -> str:
    """What a snapshot is tied to: the model's weights and its states, whatever the chunk, file or runtime."""
    states = [(state.name, list(state.shape), state.dtype) for state in contract.states]
    return digest([contract.model.family, contract.model.digest, states])


def checksum(tensors: Mapping[str, Array], header: Mapping[str, object]) -> str:
    """SHA-256 over everything a snapshot says; `header` is without its own sha256."""
    total = hashlib.sha256(canonical(header).encode())
    for name in sorted(tensors):
        array = tensors[name]
        total.update(canonical([name, str(array.dtype), list(array.shape)]).encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def encode(tensors: Mapping[str, Array], position: Position, contract: Contract) -> bytes:
    """The bytes of a snapshot file."""
    from safetensors.numpy import save

    header = {"version": VERSION, "fingerprint": fingerprint(contract), "position": position._asdict()}
    metadata = {KEY: canonical({**header, "sha256": checksum(tensors, header)})}
    return save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, metadata)


def decode(data: bytes, contract: Contract) -> Snapshot:
    """Check a snapshot file against the model it is to continue.

    Raises:
        SnapshotError: truncated, altered, of another version or of another model.
    """
    tensors, header = parsed(data)
    if header.get("version") != VERSION:
        raise SnapshotError(
            f"snapshot: version {VERSION} was wanted, {header.get('version')!r} came; save it again with this edgemem"
        )
    stored = header.pop("sha256", None)
    if stored != checksum(tensors, header):
        raise SnapshotError("snapshot: its SHA-256 does not fit its contents; it was altered, take an older copy")
    owner = str(header.get("fingerprint"))
    if owner != fingerprint(contract):
        raise SnapshotError(
            f"snapshot: it belongs to a model with fingerprint {owner[:12]}…, this is "
            f"{contract.model.name} ({fingerprint(contract)[:12]}…); restore it into the model that saved it"
        )
    return Snapshot(tensors, checked_position(header.get("position")))


def checked_position(position: object) -> Position:
    """The position in a header.

    Raises:
        SnapshotError: counters missing, unknown or below zero, or more frames than rows.
    """
    kinds = {"taken": int, "rows": int, "ended": bool}
    if isinstance(position, dict) and {name: type(value) for name, value in position.items()} == kinds:
        found = Position(**position)
        if 0 <= found.taken <= found.rows < 1 << 62:
            return found
    raise SnapshotError(f"snapshot: 0 <= taken <= rows, and ended, were wanted, {str(position)[:80]} came")


def parsed(data: bytes) -> tuple[dict[str, Array], dict[str, Any]]:
    """Tensors and header of a snapshot file, nothing checked but their form."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        if not isinstance(header, dict):
            raise TypeError("its header is not an object")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(
            f"snapshot: not a snapshot file ({error}); it is truncated or altered, take an older copy"
        ) from error
    return tensors, header
