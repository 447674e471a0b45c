"""A compiled folder as a program: the shared library through ctypes, every pointer bound once per stream."""

from __future__ import annotations

import ctypes
import hashlib
import json
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem import contract as contracts
from edgemem.errors import InputError, ModelFileError, StreamError, UsageError
from edgemem.program import Array, Bound, Program, StateBlock

if TYPE_CHECKING:
    from edgemem.contract import Contract

MANIFEST = "manifest.json"
FORMAT = 1
ALIGNMENT = 64  # bytes, of a program for this machine
MOST_THREADS = 16
OK, NULL, SIZE, MISALIGNED, STATE, RANGE, NUMBER, WEIGHTS, TILES = range(9)
HASHED_BYTES = 16 << 20  # a library beyond this is trusted to its weights' own checksum
Address = ctypes.c_void_p


class Library:
    """The functions of one compiled model."""

    def __init__(self, path: Path, name: str) -> None:
        try:
            self.handle = ctypes.CDLL(str(path))
            self.reset = self.handle[f"{name}_reset"]
            self.step = self.handle[f"{name}_step_bound"]
            self.place = self.handle[f"{name}_state"]
            self.check = self.handle[f"{name}_check"]
        except (OSError, AttributeError) as error:
            raise ModelFileError(
                f"{path} cannot be loaded on this machine ({error}); a program for another board runs with --board"
            ) from error
        self.name = name
        self.reset.argtypes = [Address, ctypes.c_size_t]
        self.place.argtypes, self.place.restype = [Address, ctypes.c_size_t, ctypes.c_size_t], Address


class Team:
    """The threads that share the steps of one stream, from the first step until the stream is gone."""

    def __init__(self, library: Library, bound: Address, threads: int) -> None:
        call = {
            name: library.handle[f"{library.name}_team_{name}"] for name in ("bytes", "start", "step", "idle", "stop")
        }
        call["bytes"].restype = ctypes.c_size_t
        room = aligned_zeros((int(call["bytes"]()),), "uint8")
        self.step, self.idle, self.argument = call["step"], call["idle"], Address(room.ctypes.data)
        if call["start"](self.argument, bound, threads) != OK:
            raise UsageError(f"a step runs on 1 to {MOST_THREADS} threads, {threads} came, or the system has no more")
        weakref.finalize(self, stopped, call["stop"], self.argument, room)


def stopped(stop: Any, team: Address, room: Array) -> None:
    """End a team's threads, and only then let its memory go."""
    stop(team)
    del room


class AotState(StateBlock):
    """State block, arena, inputs and outputs of one stream, and the struct that points to all of them."""

    def __init__(
        self, library: Library, contract: Contract, state_bytes: int, arena_bytes: int, threads: int = 1
    ) -> None:
        self._library, self._contract = library, contract
        self._block, self._arena = aligned_zeros((state_bytes,), "uint8"), aligned_zeros((arena_bytes,), "uint8")
        self.inputs = {port.name: aligned_zeros(port.shape, port.dtype) for port in contract.inputs}
        self.outputs = {port.name: aligned_zeros(port.shape, port.dtype) for port in contract.outputs}
        self._in, self._out = addresses(self.inputs), addresses(self.outputs)
        state, arena = self._block.ctypes.data, self._arena.ctypes.data
        ports = (self._in.ctypes.data, self._out.ctypes.data)
        self._bound = np.array([*ports, state, state_bytes, arena, arena_bytes, 0], np.uintp)
        self.argument, self.function = Address(self._bound.ctypes.data), library.step
        self.team = Team(library, self.argument, threads) if threads > 1 else None
        if self.team is not None:
            self.argument, self.function = self.team.argument, self.team.step
        self.reset()

    def refuse_nan(self, finite_only: bool) -> None:
        """Whether the step itself refuses NaN and infinity."""
        self._bound[-1] = finite_only

    def get(self) -> dict[str, Array]:
        return {name: view.copy() for name, view in self._views().items()}

    def set(self, values: Mapping[str, Array]) -> None:
        for name, view in self._views().items():
            np.copyto(view, values[name], casting="no")

    def rows(self, rows: Sequence[int]) -> dict[str, Array]:
        return {name: view[list(rows)] for name, view in self._views().items()}

    def set_rows(self, rows: Sequence[int], values: Mapping[str, Array]) -> None:
        for name, view in self._views().items():
            view[list(rows)] = values[name]

    def reset(self) -> None:
        code = self._library.reset(self._block.ctypes.data, self._block.nbytes)
        if code == TILES:
            raise refused(code)
        if code != OK:
            raise StreamError("the compiled program refuses its state block; compile the model again")

    def _views(self) -> dict[str, Array]:
        """Every state where it lies now; states that take turns move with every step."""
        base = self._block.ctypes.data
        views = {}
        for index, state in enumerate(self._contract.states):
            offset = self._library.place(base, self._block.nbytes, index) - base
            size = int(np.prod(state.shape)) * np.dtype(state.dtype).itemsize
            views[state.name] = self._block[offset : offset + size].view(state.dtype).reshape(state.shape)
        return views


class AotProgram(Program):
    """A compiled model; its weights are the library's read-only section, shared by streams and processes."""

    runtime = "aot"

    def __init__(self, library: Library, contract: Contract, sizes: Mapping[str, int], threads: int = 1) -> None:
        self.contract, self._library, self._threads = contract, library, threads
        self.weight_bytes = int(sizes["weights"])
        self._state_bytes, self._arena_bytes = int(sizes["state"]), int(sizes["arena"])

    def new_state(self) -> AotState:
        return AotState(self._library, self.contract, self._state_bytes, self._arena_bytes, self._threads)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, AotState)
        held = state.inputs
        for name, array in inputs.items():
            held[name][...] = array
        code = state.function(state.argument)
        if code != OK:
            raise refused(code)
        return state.outputs

    def bound(self, state: StateBlock, finite_only: bool) -> Bound | None:
        assert isinstance(state, AotState)
        if len(state.inputs) > 1 or len(state.outputs) > 1:
            return None
        state.refuse_nan(finite_only)
        (held,), (given,) = state.inputs.values(), state.outputs.values()
        return Bound(held, given, partial(state.function, state.argument))

    def bare_step(self) -> tuple[Any, Any]:
        """The compiled function and the bound argument of a new stream, for callers in C."""
        state = self.new_state()
        self._held = state  # the argument points into it
        return state.function, state.argument

    def pool(self) -> tuple[Any, Any] | None:
        """A function for callers in C that wakes a stream's threads as a step does and computes nothing."""
        if self._threads == 1:
            return None
        self._idle = self.new_state()
        assert self._idle.team is not None
        return self._idle.team.idle, self._idle.argument


def refused(code: int) -> Exception:
    """The exception for a step's error code."""
    if code == RANGE:
        return InputError("the compiled program refuses an integer input outside its range; see the contract's inputs")
    if code == TILES:
        return ModelFileError(
            "the compiled program uses the core's matrix unit (AMX), and the system does not let this process use it; "
            "compile the model again on this machine"
        )
    return StreamError(f"the compiled program refuses the step (code {code}); open a new stream")


def aligned_zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros that start at a multiple of 64 bytes, as the compiled code wants them."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape)) * kind.itemsize
    room = np.zeros(count + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first : first + count].view(kind).reshape(shape)


def addresses(arrays: Mapping[str, Array]) -> Array:
    """A C struct of pointers, one for each array."""
    return np.array([array.ctypes.data for array in arrays.values()], np.uintp)


def load_folder(folder: Path, threads: int = 1) -> Program:
    """The program in a folder that `edgemem compile` wrote; one of another board runs under its emulator.

    Raises:
        UsageError: more threads than a step can have.
        ModelFileError: the manifest or the library is missing, damaged, or for another machine.
        ContractError: the contract in the manifest is damaged.
    """
    check_threads(threads)
    manifest = read_manifest(folder)
    if manifest.get("runtime", "aot") != "aot":
        raise ModelFileError(
            f"{folder} holds a program of the {manifest['runtime']} runtime, not of aot; name that one"
        )
    contract = contracts.decode(json.dumps(manifest["contract"]))
    if manifest["board"].get("kind") == "bare":
        from edgemem.runtimes.firmware.build import IMAGE
        from edgemem.runtimes.firmware.emulator import board_program

        check_file(folder / IMAGE, manifest)
        return board_program(folder, manifest, contract)
    if manifest["board"].get("core") != "native":
        if threads > 1:
            raise UsageError(f"{folder} runs under an emulator, on one thread; leave --threads {threads} out")
        from edgemem.runtimes.aot.remote import PROGRAM, remote_program

        check_file(folder / PROGRAM, manifest)
        return remote_program(folder, manifest, contract)
    name = manifest["name"]
    path = folder / f"{name}.so"
    check_file(path, manifest)
    library = Library(path, name)
    if library.check() != OK:
        raise ModelFileError(f"{path}: its weights differ from those that were compiled; compile the model again")
    return AotProgram(library, contract, manifest["bytes"], threads)


def check_threads(threads: int) -> None:
    """Refuse what no team can have.

    Raises:
        UsageError: fewer than 1, or more than a team has places for.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"a step runs on 1 to {MOST_THREADS} threads, {threads} came")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a compiled folder, its outline checked.

    Raises:
        ModelFileError: missing, not JSON, of a newer format, or without what loading needs.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise ModelFileError(f"{folder} is no compiled folder, it has no {MANIFEST}; `edgemem compile` writes one")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} is not a readable manifest ({error}); `edgemem compile` writes one") from error
    wanted = {"format": int, "name": str, "contract": dict, "board": dict, "bytes": dict, "files": dict}
    for key, kind in wanted.items():
        if not isinstance(manifest, dict) or not isinstance(manifest.get(key), kind):
            raise ModelFileError(f"{path}: field {key} is missing or not {kind.__name__}; compile the model again")
    if manifest["format"] > FORMAT:
        raise ModelFileError(f"{path}: format {manifest['format']} is newer than {FORMAT}; upgrade edgemem")
    if not manifest["name"].isidentifier():
        raise ModelFileError(f"{path}: name {manifest['name']!r} is not an identifier; compile the model again")
    return manifest


def check_file(path: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a file that is not the one of the manifest.

    Raises:
        ModelFileError: it cannot be read, or its digest is another.
    """
    try:
        size = path.stat().st_size
        found = hashlib.sha256(path.read_bytes()).hexdigest() if size <= HASHED_BYTES else None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); compile the model again") from error
    if found is not None and found != manifest["files"].get(path.name):
        raise ModelFileError(f"{path} is not the file of its manifest; compile the model again")
