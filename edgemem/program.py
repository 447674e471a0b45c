"""What every runtime gives: a program with shared weights, and the state of one stream.

    program = runtime.prepare(path)          weights, read once, shared by all streams and threads
    state   = program.new_state()            the tensors of one stream, at their start values
    outputs = program.step(inputs, state)    one chunk; the state is advanced

A runtime is one module of `runtimes/` with a function `prepare(path, **options) -> Program`. Programs trust their
inputs: `Stream` is what checks shapes, types and ranges before a step.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgemem.errors import UsageError

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.stream import Stream

Array = np.ndarray[Any, np.dtype[Any]]
RUNTIMES = {
    "ort": "edgemem.runtimes.ort",
    "aot": "edgemem.runtimes.aot",
    "opencl": "edgemem.runtimes.opencl",
    "tvm": "edgemem.runtimes.vm",
}


class StateBlock(ABC):
    """The state of one stream inside a runtime."""

    @abstractmethod
    def get(self) -> dict[str, Array]:
        """A copy of every state by name, each [batch, *shape]."""

    @abstractmethod
    def set(self, values: Mapping[str, Array]) -> None:
        """Overwrite every state; `values` has exactly the declared names, shapes and dtypes."""

    @abstractmethod
    def reset(self) -> None:
        """Overwrite every state with its start value."""

    def rows(self, rows: Sequence[int]) -> dict[str, Array]:
        """A copy of some streams of a batch: every state by name, each [len(rows), *shape]."""
        return {name: array[list(rows)] for name, array in self.get().items()}

    def set_rows(self, rows: Sequence[int], values: Mapping[str, Array]) -> None:
        """Overwrite some streams of a batch with `values` [len(rows), *shape], or [1, *shape] for all of them."""
        whole = self.get()
        for name, array in whole.items():
            array[list(rows)] = values[name]
        self.set(whole)

    def keep(self, rows: Sequence[int]) -> Callable[[], None]:
        """Hold some streams of a batch as they are now; what it gives puts them back after a step of all."""
        kept = self.rows(rows)
        return lambda: self.set_rows(rows, kept)


def spans(rows: Iterable[int]) -> list[tuple[int, int]]:
    """Rows as stretches (first, count) of neighbours, in order: {5, 1, 2} gives [(1, 2), (5, 1)]."""
    found: list[tuple[int, int]] = []
    for row in sorted(set(rows)):
        first, count = found[-1] if found else (row, 0)
        if found and first + count == row:
            found[-1] = (first, count + 1)
        else:
            found.append((row, 1))
    return found


class Bound(NamedTuple):
    """A step of one state with all that it needs in place: fill `input`, `run()`, read `output`.

    `run` itself refuses integers out of range, and NaN where it is not allowed: it gives another number than 0 then,
    and nothing has changed.
    """

    input: Array
    output: Array
    run: Callable[[], int]


class Program(ABC):
    """A model ready to run: its contract, and steps from any state. Safe to share between threads."""

    runtime: str
    contract: Contract
    integer = False  # whether a step runs in integers and rounds where onnxruntime, in float, does not
    weight_bytes: int  # of the weights as they are stored, shared by all streams
    origin: Path | None = None  # the file or folder that it was loaded from

    @abstractmethod
    def new_state(self) -> StateBlock:
        """The state of a new stream, at its start values."""

    @abstractmethod
    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        """Advance `state` by one chunk.

        `inputs` has every contract input at its exact shape; the outputs are arrays that the next step of the same
        state may overwrite.
        """

    def bound(self, state: StateBlock, finite_only: bool) -> Bound | None:
        """The shortest way from an array to an array, of a model with one input and one output, if there is one."""
        return None

    def stream(self, nan: str = "error") -> Stream:
        """A new stream of this program; `nan` says what a NaN or infinite input does (`error` or `allow`)."""
        from edgemem.stream import Stream

        return Stream(self, nan=nan)


def load(path: str | Path, runtime: str | None = None, **options: Any) -> Program:
    """Load a model file (or compiled folder) into a runtime: by default `ort` for a file, a folder's own for a folder.

    Options go to the runtime's `prepare`; all runtimes know `threads`.

    Raises:
        ModelFileError, ContractError: the file is not a model with a valid contract.
        UsageError: no such runtime, or a folder that was compiled for another board than `board`.
        MissingDependency: the runtime's engine is not installed.
    """
    if Path(path).is_dir() and options.get("board") is not None:
        check_board(Path(path), str(options["board"]))
    runtime = runtime or (folder_runtime(Path(path)) if Path(path).is_dir() else "ort")
    if runtime not in RUNTIMES:
        raise UsageError(f"unknown runtime {runtime!r}; there are {', '.join(RUNTIMES)}")
    program: Program = importlib.import_module(RUNTIMES[runtime]).prepare(Path(path), **options)
    program.origin = Path(path)
    return program


def folder_runtime(folder: Path) -> str:
    """The runtime that a folder was compiled for, as its manifest says: `aot` if it says none."""
    return str(manifest(folder).get("runtime", "aot"))


def manifest(folder: Path) -> dict[str, Any]:
    """What a compiled folder says of itself; nothing where it cannot be read: its loader says what is wrong."""
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def check_board(folder: Path, wanted: str) -> None:
    """Refuse a compiled folder of another board than the one that is asked for.

    Raises:
        UsageError: with both.
    """
    board = manifest(folder).get("board")
    built = board.get("name") if isinstance(board, dict) else None
    name = Path(wanted).stem if wanted.endswith(".toml") else wanted
    if built not in (None, name):
        raise UsageError(
            f"{folder} was compiled for the board {built}, --board {name} came; leave --board out, or compile the "
            f"model file again with --board {name}"
        )
