"""A program of another board: `edgemem-run --serve` under the board's emulator, one process for each stream."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import MissingDependency, StreamError
from edgemem.program import Array, Program, StateBlock
from edgemem.runtimes.aot.load import OK, refused

if TYPE_CHECKING:
    from edgemem.contract import Contract

PROGRAM = "edgemem-run"
CODE_BYTES = 4


class RemoteState(StateBlock):
    """A running process that holds the state of one stream."""

    def __init__(self, command: Sequence[str], contract: Contract) -> None:
        self._contract = contract
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._code_of(b"R")

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with suppress(OSError):  # what was still to be written has no reader any more
                    pipe.close()

    def get(self) -> dict[str, Array]:
        self._send(b"G")
        return {state.name: self._array(state.shape, state.dtype) for state in self._contract.states}

    def set(self, values: Mapping[str, Array]) -> None:
        states = (np.asarray(values[s.name], np.dtype(s.dtype).newbyteorder("<")) for s in self._contract.states)
        self._code_of(b"P" + b"".join(state.tobytes() for state in states))

    def reset(self) -> None:
        self._code_of(b"R")

    def step(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One chunk; raises what a step in this process would raise."""
        parts = [np.asarray(inputs[p.name], np.dtype(p.dtype).newbyteorder("<")) for p in self._contract.inputs]
        self._send(b"S" + b"".join(part.tobytes() for part in parts))
        code = int.from_bytes(self._receive(CODE_BYTES), "little")
        outputs = {port.name: self._array(port.shape, port.dtype) for port in self._contract.outputs}
        if code != OK:
            raise refused(code)
        return outputs

    def _code_of(self, command: bytes) -> None:
        self._send(command)
        code = int.from_bytes(self._receive(CODE_BYTES), "little")
        if code != OK:
            raise StreamError(f"the board's program answers code {code} to {command[:1]!r}")

    def _array(self, shape: tuple[int, ...], dtype: str) -> Array:
        kind = np.dtype(dtype).newbyteorder("<")
        data = self._receive(math.prod(shape) * kind.itemsize)
        return np.frombuffer(data, kind).astype(dtype).reshape(shape)

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def _receive(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) != count:
            raise self._ended()
        return data

    def _ended(self) -> StreamError:
        code = self._process.wait()
        assert self._process.stderr is not None
        said = self._process.stderr.read().decode(errors="replace").strip()
        return StreamError(f"the board's program ended with code {code}: {said or 'it said nothing'}")


class RemoteProgram(Program):
    """A program that runs elsewhere; every stream is a process."""

    def __init__(self, command: Sequence[str], contract: Contract, board: str, weight_bytes: int) -> None:
        self.contract, self.weight_bytes = contract, weight_bytes
        self.runtime = f"aot on {board}"
        self._command = list(command)

    def new_state(self) -> RemoteState:
        return RemoteState(self._command, self.contract)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, RemoteState)
        return state.step(inputs)


def remote_program(folder: Path, manifest: Mapping[str, Any], contract: Contract) -> RemoteProgram:
    """The program in a folder that was compiled for another board.

    Raises:
        MissingDependency: the board has no emulator, or it is not installed.
    """
    board = manifest["board"]
    emulator = [str(part) for part in board.get("emulator", [])]
    if not emulator or shutil.which(emulator[0]) is None:
        wanted = f"{emulator[0]} is not installed; `make boards` installs it" if emulator else "it has no emulator"
        raise MissingDependency(
            f"{folder} was compiled for {board['name']}: {wanted}. Copy {PROGRAM} to the board to run it there."
        )
    command = [*emulator, str(folder / PROGRAM), "--serve"]
    return RemoteProgram(command, contract, str(board["name"]), int(manifest["bytes"]["weights"]))
