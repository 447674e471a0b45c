"""Firmware under its board's emulator as a program: one QEMU for each stream, spoken to over the board's console.

The firmware first writes lines of text: who it is, the outcome of its self-test, `ready`. Then it answers commands, see
`c/serve.h`. Every wait has an end; an error shows the last lines of the console.
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.boards import Board
from edgemem.errors import CheckFailed, MissingDependency, StreamError
from edgemem.program import Array, Program, StateBlock
from edgemem.runtimes.aot.load import OK, refused
from edgemem.runtimes.firmware.build import IMAGE
from edgemem.runtimes.integer.states import DTYPE, as_float, as_integers

if TYPE_CHECKING:
    from edgemem.contract import Contract

WORD_BYTES = 4
TIMEOUT_S = 60.0  # of one answer; a step of a large model on an emulated soft-float core takes seconds
TAIL_CHARACTERS = 400
WHOLE = 0xFFFFFFFF
COUNTED_STEPS = 32  # that a count of instructions is the mean of
COUNTED = ("-icount", "shift=0")  # one instruction is one nanosecond of the emulated clock


def command_of(board: Board, image: Path, counted: bool = False, flash: tuple[Path, int] | None = None) -> list[str]:
    """The emulator's command line; `flash` is a file of bytes, and the address where they lie at the start.

    Raises:
        MissingDependency: the board has no emulator, or it is not installed.
    """
    require_emulator(board)
    return command_line(board, image, counted, flash)


def require_emulator(board: Board) -> None:
    """Refuse a board whose firmware nothing runs here.

    Raises:
        MissingDependency: the board has no emulator, or it is not installed.
    """
    if board.emulator and shutil.which(board.emulator[0]) is not None:
        return
    wanted = (
        f"{board.emulator[0]} is not installed; `make boards` installs it. Or run the firmware on a board"
        if board.emulator
        else "no emulator runs its firmware, a board has to"
    )
    raise MissingDependency(
        f"{board.name}: {wanted}: `edgemem compile FILE --board {board.name} -o fw` builds it; fw/README.md says how "
        "to flash and read it"
    )


def command_line(board: Board, image: Path, counted: bool = False, flash: tuple[Path, int] | None = None) -> list[str]:
    """What `command_of` gives, installed here or not; of a board that has an emulator."""
    assert board.console is not None
    uart = board.console.kind == "uart"
    link = ["-chardev", "stdio,id=host,signal=off", "-serial", "chardev:host"] if uart else ["-serial", "null"]
    if not uart:
        link += ["-semihosting-config", "enable=on,target=native"]
    screen = ["-display", "none", "-monitor", "none"]
    more = [] if flash is None else ["-device", f"loader,file={flash[0]},addr={flash[1]:#x},force-raw=on"]
    return [*board.emulator, *screen, *link, *more, *(COUNTED if counted else ()), "-kernel", str(image)]


class Session:
    """A running emulator: bytes to it, bytes from it, and never an endless wait."""

    def __init__(self, command: Sequence[str], timeout_s: float = TIMEOUT_S) -> None:
        self.timeout_s, self.said = timeout_s, b""
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.process.stdout, selectors.EVENT_READ)
        self.waiting = bytearray()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.selector.close()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was still to be written has no reader any more
                    pipe.close()

    def started(self) -> None:
        """Read the lines before the first command.

        Raises:
            CheckFailed: the self-test failed.
            StreamError: the firmware ended, faulted or was silent for too long.
        """
        while True:
            line = self.line()
            if line == "ready":
                return
            if line.startswith("FAIL"):
                raise CheckFailed(f"the firmware's self-test failed: {line} (index, expected, got){self.tail()}")
            if line.startswith(("FAULT", "stopped")):
                raise StreamError(f"the firmware stopped before it was ready{self.tail()}")

    def line(self) -> str:
        deadline = time.monotonic() + self.timeout_s
        while b"\n" not in self.waiting:
            self.more(deadline)
        text, _, rest = bytes(self.waiting).partition(b"\n")
        self.waiting = bytearray(rest)
        self.said += text + b"\n"
        return text.decode(errors="replace").rstrip("\r")

    def receive(self, count: int) -> bytes:
        deadline = time.monotonic() + self.timeout_s
        while len(self.waiting) < count:
            self.more(deadline)
        data = bytes(self.waiting[:count])
        del self.waiting[:count]
        return data

    def more(self, deadline: float) -> None:
        """Wait for bytes.

        Raises:
            StreamError: none came in time, or the emulator ended.
        """
        if not self.selector.select(max(0.0, deadline - time.monotonic())):
            raise StreamError(f"the board was silent for {self.timeout_s:g} s{self.tail()}")
        assert self.process.stdout is not None
        data = self.process.stdout.read(1 << 16)
        if not data:
            raise StreamError(f"the emulator ended with code {self.process.wait()}{self.tail()}")
        self.waiting += data

    def tail(self) -> str:
        """The end of what the board said, for an error."""
        text = (self.said + bytes(self.waiting)).decode(errors="replace").strip()[-TAIL_CHARACTERS:]
        return f"; its console says:\n{text}" if text else "; its console says nothing"

    def send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
        except BrokenPipeError as error:
            raise StreamError(f"the emulator ended{self.tail()}") from error

    def word(self) -> int:
        return int.from_bytes(self.receive(WORD_BYTES), "little")


class BoardState(StateBlock):
    """A running board that holds the state of one stream."""

    def __init__(
        self,
        command: Sequence[str],
        contract: Contract,
        scales: Mapping[str, float] | None = None,
        timeout_s: float = TIMEOUT_S,
        flash_bytes: int = 0,
    ) -> None:
        self._contract, self._scales, self.flash_bytes = contract, dict(scales or {}), flash_bytes
        self._kinds = {s.name: DTYPE if s.name in self._scales else s.dtype for s in contract.states}
        self.session = Session(command, timeout_s)
        try:
            self.session.started()
        except Exception:
            self.session.close()
            raise

    def __del__(self) -> None:
        session = getattr(self, "session", None)
        if session is not None:
            session.close()

    def get(self) -> dict[str, Array]:
        self.session.send(b"G")
        states = self._contract.states
        return as_float({s.name: self._array(s.shape, self._kinds[s.name]) for s in states}, self._scales)

    def set(self, values: Mapping[str, Array]) -> None:
        stored = as_integers(values, self._scales)
        kinds = [(stored[s.name], np.dtype(self._kinds[s.name]).newbyteorder("<")) for s in self._contract.states]
        states = (np.asarray(value, kind) for value, kind in kinds)
        self._done(b"P" + b"".join(state.tobytes() for state in states))

    def reset(self) -> None:
        self._done(b"R")

    def step(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One chunk; raises what a step in this process would raise."""
        parts = [np.asarray(inputs[p.name], np.dtype(p.dtype).newbyteorder("<")) for p in self._contract.inputs]
        self.session.send(b"S" + b"".join(part.tobytes() for part in parts))
        code = self.session.word()
        outputs = {port.name: self._array(port.shape, port.dtype) for port in self._contract.outputs}
        if code != OK:
            raise refused(code)
        return outputs

    def counted(self, steps: int, calls: int = 0) -> tuple[int, list[int]]:
        """Ticks of `steps` steps on the test vectors, and of each of the `calls` kernel calls in a build with marks."""
        self.session.send(b"C" + steps.to_bytes(WORD_BYTES, "little"))
        return self.session.word(), [self.session.word() for _ in range(calls)]

    def stack_bytes(self) -> int:
        """The deepest that the stack has been."""
        self.session.send(b"H")
        return self.session.word()

    def save(self, words: int = WHOLE) -> int:
        """Snapshot to flash, the power cut after so many words; the firmware's code."""
        self.session.send(b"W" + words.to_bytes(WORD_BYTES, "little"))
        return self.session.word()

    def load(self) -> int:
        """The newest whole snapshot in flash; the firmware's code."""
        self.session.send(b"L")
        return self.session.word()

    def flash(self) -> bytes:
        """Both banks of snapshots as they are; see `flash.py`."""
        self.session.send(b"F")
        return self.session.receive(self.flash_bytes)

    @property
    def restored(self) -> bool:
        """Whether the firmware started from a snapshot in flash."""
        return b"state from flash\n" in self.session.said.replace(b"\r", b"")

    def _done(self, command: bytes) -> None:
        self.session.send(command)
        code = self.session.word()
        if code != OK:
            raise StreamError(f"the board answers code {code} to {command[:1]!r}{self.session.tail()}")

    def _array(self, shape: tuple[int, ...], dtype: str) -> Array:
        kind = np.dtype(dtype).newbyteorder("<")
        data = self.session.receive(int(np.prod(shape)) * kind.itemsize)
        return np.frombuffer(data, kind).astype(dtype).reshape(shape)


class BoardProgram(Program):
    """Firmware on an emulated board; every stream is a board of its own."""

    def __init__(
        self,
        board: Board,
        image: Path,
        contract: Contract,
        weight_bytes: int,
        integer: Mapping[str, Any],
        snapshots: Mapping[str, Any] | None = None,
    ) -> None:
        self._snapshots = dict(snapshots or {"bank_bytes": 0, "address": 0})
        self.contract, self.weight_bytes = contract, weight_bytes
        self.integer, self._scales = bool(integer.get("step")), dict(integer.get("state_scales", {}))
        self.board, self.runtime = board, f"aot on {board.name}"
        self._image, self._command = image, command_of(board, image)

    def new_state(self) -> BoardState:
        return self.started()

    def started(self, flash: Path | None = None) -> BoardState:
        """A board just switched on; `flash` is a file with both banks of snapshots, erased where there is none."""
        place = None if flash is None else (flash, int(self._snapshots["address"]))
        command = self._command if place is None else command_of(self.board, self._image, flash=place)
        return BoardState(command, self.contract, self._scales, flash_bytes=2 * int(self._snapshots["bank_bytes"]))

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, BoardState)
        return state.step(inputs)

    def instructions(self, steps: int, calls: int = 0) -> tuple[float, list[float]]:
        """Instructions of one step, the mean over `steps` on the test vectors, and of each of its kernel calls.

        The emulated clock advances by one nanosecond an instruction, so that the same firmware gives the same count.
        """
        counting = BoardState(command_of(self.board, self._image, counted=True), self.contract)
        assert self.board.emulated_hz is not None
        each = 1e9 / self.board.emulated_hz / steps
        ticks, marks = counting.counted(steps, calls)
        return ticks * each, [mark * each for mark in marks]


def board_program(folder: Path, manifest: Mapping[str, Any], contract: Contract) -> BoardProgram:
    """The firmware in a folder that `edgemem compile --board` wrote.

    Raises:
        MissingDependency: the board has no emulator, or it is not installed.
    """
    board = Board.model_validate(manifest["board"])
    integer = manifest.get("integer", {})
    weights = int(manifest["bytes"]["weights"])
    return BoardProgram(board, folder / IMAGE, contract, weights, integer, manifest.get("snapshots"))
