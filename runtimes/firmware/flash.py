"""The two banks of flash that hold a device's state, as a file; made from a stream's snapshot, and read back.

    python -m edgemem.runtimes.firmware.flash fw/ --put s.safetensors -o flash.bin
    flash.bin: 2 banks of 5120 bytes; write it to 0x003fd800 (0x3fd800 from the start of flash), and the firmware
    goes on from there
    python -m edgemem.runtimes.firmware.flash fw/ --get flash.bin -o s.safetensors
    s.safetensors: the state in flash.bin; `edgemem run FILE --state s.safetensors` goes on from it

`fw/` is a folder that `edgemem compile --board` wrote; its `src/snapshot.h` says what lies in a bank. Which input a
stream was at is no part of a device's state: a snapshot that is read back counts from 0.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemem import contract as contracts
from edgemem import snapshot as snapshots
from edgemem.contract import Contract
from edgemem.errors import EdgememError, ModelFileError, SnapshotError, UsageError
from edgemem.program import Program, StateBlock
from edgemem.runtimes.integer.states import DTYPE, as_float, as_integers

Array = np.ndarray[Any, np.dtype[Any]]
HEADER = struct.Struct("<QII")  # identity, sequence number, bytes of state; a CRC-32 follows
CRC = struct.Struct("<I")
BANKS = 2


class Held(StateBlock):
    """States that nothing advances."""

    def __init__(self, contract: Contract) -> None:
        self.values: dict[str, Array] = {s.name: np.zeros(s.shape, s.dtype) for s in contract.states}

    def get(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.values.items()}

    def set(self, values: Mapping[str, Array]) -> None:
        self.values = {name: value.copy() for name, value in values.items()}

    def reset(self) -> None:
        self.values = {name: np.zeros_like(value) for name, value in self.values.items()}


class Idle(Program):
    """A program that only holds states: enough of one to write a snapshot."""

    runtime = "none"
    weight_bytes = 0

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def new_state(self) -> StateBlock:
        return Held(self.contract)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        raise NotImplementedError("states in a file take no step")


def bank_bytes(manifest: Mapping[str, Any]) -> int:
    """Bytes of one bank.

    Raises:
        UsageError: no firmware, or that of a board whose flash edgemem does not write.
    """
    if "snapshots" not in manifest:
        raise UsageError(f"{manifest['board']['name']} is no microcontroller; give a folder with firmware")
    found = int(manifest["snapshots"]["bank_bytes"])
    if not found and manifest["snapshots"].get("left_out"):
        why = manifest["snapshots"]["left_out"]
        raise UsageError(f"the firmware keeps no snapshot: {why}; compile it again with room for them")
    if not found:
        raise UsageError(
            f"{manifest['board']['name']}: edgemem has no driver for its flash, so its firmware keeps no snapshot; "
            "give src/flash_none.c one"
        )
    return found


def layout(manifest: Mapping[str, Any]) -> list[tuple[str, tuple[int, ...], str]]:
    """Name, shape and dtype of every state as the device keeps it, in order."""
    scales = manifest["integer"]["state_scales"]
    states = contract_of(manifest).states
    return [(s.name, tuple(s.shape), DTYPE if s.name in scales else s.dtype) for s in states]


def contract_of(manifest: Mapping[str, Any]) -> Contract:
    return contracts.decode(json.dumps(manifest["contract"]))


def image(manifest: Mapping[str, Any], states: Mapping[str, Array], sequence: int = 0) -> bytes:
    """Both banks: the states in the first, as the firmware would have written them, the second erased."""
    size, scales = bank_bytes(manifest), manifest["integer"]["state_scales"]
    stored = as_integers(states, scales)
    parts = (np.asarray(stored[name], np.dtype(kind).newbyteorder("<")) for name, _, kind in layout(manifest))
    body = b"".join(part.tobytes() for part in parts)
    header = HEADER.pack(int(manifest["snapshots"]["identity"], 16), sequence, len(body))
    head = header + CRC.pack(zlib.crc32(header + body))
    return (head.ljust(state_at(manifest), b"\xff") + body).ljust(BANKS * size, b"\xff")


def state_at(manifest: Mapping[str, Any]) -> int:
    """Where the states begin in a bank: with the first unit of flash behind what is written before them.

    Raises:
        ModelFileError: the manifest does not say how much is written at once.
    """
    unit = manifest["snapshots"].get("unit_bytes")
    if type(unit) is not int or unit < 1:
        raise ModelFileError(f"manifest: snapshots.unit_bytes must be 1 or more, got {unit!r}; compile the model again")
    return -(-(HEADER.size + CRC.size) // unit) * unit


def newest(manifest: Mapping[str, Any], flash: bytes) -> dict[str, Array]:
    """The states of the newest whole snapshot in both banks, in the contract's types.

    Raises:
        SnapshotError: not two banks of this firmware, or no whole snapshot in them.
    """
    size = bank_bytes(manifest)
    if len(flash) != BANKS * size:
        raise SnapshotError(f"flash: {BANKS} banks of {size} bytes were wanted, {len(flash)} bytes came")
    found = [whole(manifest, flash[at : at + size]) for at in range(0, len(flash), size)]
    kept = [bank for bank in found if bank is not None]
    if not kept:
        raise SnapshotError("flash: no whole snapshot of this firmware in either bank")
    if len(kept) == BANKS and (kept[1][0] - kept[0][0]) % (1 << 32) >= 1 << 31:
        kept = kept[:1]  # the counter wraps around
    body, states, at = kept[-1][1], {}, 0
    for name, shape, kind in layout(manifest):
        wanted = np.dtype(kind).newbyteorder("<")
        count = int(np.prod(shape))
        states[name] = np.frombuffer(body, wanted, count, at).astype(kind).reshape(shape)
        at += count * wanted.itemsize
    return as_float(states, manifest["integer"]["state_scales"])


def whole(manifest: Mapping[str, Any], bank: bytes) -> tuple[int, bytes] | None:
    """Sequence number and states of a bank, None where it holds no snapshot of this firmware."""
    identity, sequence, count = HEADER.unpack_from(bank)
    (checksum,) = CRC.unpack_from(bank, HEADER.size)
    start = state_at(manifest)
    wanted = sum(int(np.prod(shape)) * np.dtype(kind).itemsize for _, shape, kind in layout(manifest))
    if identity != int(manifest["snapshots"]["identity"], 16) or count != wanted or start + count > len(bank):
        return None
    body = bank[start : start + count]
    return (sequence, body) if zlib.crc32(bank[: HEADER.size] + body) == checksum else None


def put(manifest: Mapping[str, Any], snapshot: bytes) -> bytes:
    """Flash that goes on where a stream's snapshot was taken.

    Raises:
        SnapshotError: of another model, damaged, or with input that waits for a whole chunk.
    """
    found = snapshots.decode(snapshot, contract_of(manifest))
    waiting = [name for name, array in found.group("pending").items() if array.size]
    if waiting:
        raise SnapshotError(f"snapshot: {waiting[0]} waits for a whole chunk; save it after a whole number of chunks")
    return image(manifest, found.group("state"))


def get(manifest: Mapping[str, Any], flash: bytes) -> bytes:
    """A snapshot that a stream of the model goes on from."""
    stream = Idle(contract_of(manifest)).stream()
    stream.set_state(newest(manifest, flash))
    return stream.snapshot()


def main() -> None:
    """See the module docstring."""
    from edgemem.files import atomic_write
    from edgemem.runtimes.aot.load import read_manifest

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a compiled firmware")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--put", type=Path, metavar="SNAPSHOT", help="a stream's snapshot to be put into flash")
    way.add_argument("--get", type=Path, metavar="FLASH", help="both banks, as they were read from a device")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    try:
        manifest = read_manifest(options.folder)
        source = options.put or options.get
        if not source.is_file():
            raise UsageError(f"{source} is not a file; give a snapshot, or the flash of a device")
        data = source.read_bytes()
        made = put(manifest, data) if options.put else get(manifest, data)
        with atomic_write(options.output) as file:
            file.write(made)
    except EdgememError as error:
        print(f"edgemem: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if options.put:
        address, offset = (manifest["snapshots"][key] for key in ("address", "offset"))
        print(f"{options.output}: {BANKS} banks of {len(made) // BANKS} bytes; write it to {address:#010x} "
              f"({offset:#x} from the start of flash), and the firmware goes on from there")  # fmt: skip
        if manifest["board"].get("flash_driver") is None:
            print("edgemem has no driver for this flash: the firmware needs one in app/, see src/flash_none.c")
    else:
        print(f"{options.output}: the state in {source}; `edgemem run FILE --state {options.output}` goes on from it")


if __name__ == "__main__":
    main()
