"""Many streams in the rows of one program: each comes, steps when it has a chunk, and goes.

    program = edgemem.load("r16.onnx")             exported with --batch 16
    streams = Streams(program)
    a, b = streams.open(), streams.open(snapshot)  a place each; a snapshot of one stream goes on in any place
    rows = streams.step({a: x, b: y})              one step of all; streams that are left out stay as they are
    saved = streams.snapshot(a)                    as `Stream.snapshot` of the model at a batch of 1 would be
    streams.close(a)

What a stream gives does not depend on its neighbours: every row of a step is computed by itself, and with
`nan="allow"` a stream of NaN spoils nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem import snapshot as snapshots
from edgemem.errors import InputError, SnapshotError, StreamError, UsageError
from edgemem.inputs import Inputs
from edgemem.program import Array, Program
from edgemem.snapshot import Position

if TYPE_CHECKING:
    from edgemem.contract import Contract

Values = Array | Mapping[str, Array]


@dataclass(frozen=True)
class Place:
    """One open stream: its row, and how many streams had been opened before it."""

    row: int
    serial: int


def of_one(contract: Contract) -> Contract:
    """The contract of a batch of 1 of the same model."""

    def alone(facts: Any) -> Any:
        return facts.model_copy(update={"shape": (1, *facts.shape[1:])})

    groups = {
        name: tuple(alone(facts) for facts in getattr(contract, name)) for name in ("inputs", "outputs", "states")
    }
    return contract.model_copy(update=groups)


class Streams:
    """As many streams as the program's batch has rows. Use from one thread at a time.

    Raises:
        UsageError: a model with look-ahead, whose streams end one by one.
    """

    def __init__(self, program: Program, nan: str = "error") -> None:
        if nan not in ("error", "allow"):
            raise UsageError(f"nan must be 'error' or 'allow', got {nan!r}")
        contract = program.contract
        if contract.latency.look_ahead:
            raise UsageError(
                f"{contract.model.name} looks {contract.latency.look_ahead} frames ahead, so its streams end one by "
                "one: use a Stream of a batch of 1 for each"
            )
        self.program, self.contract = program, contract
        self._one = of_one(contract)
        self._inputs, self._whole = Inputs(self._one, nan == "error"), Inputs(contract, finite_only=False)
        self._state = program.new_state()
        self._start = {name: array[:1].copy() for name, array in self._state.get().items()}
        self._positions: dict[Place, Position] = {}
        self._opened = 0

    def __len__(self) -> int:
        """Streams that are open."""
        return len(self._positions)

    @property
    def free(self) -> int:
        """Streams that may still be opened."""
        return self.contract.batch - len(self)

    def open(self, snapshot: bytes | None = None) -> Place:
        """A new stream at the model's start, or where a snapshot of one stream was taken.

        Raises:
            StreamError: all places are taken.
            SnapshotError: truncated, altered, of another model, or taken amid a chunk.
        """
        taken = {place.row for place in self._positions}
        row = next((row for row in range(self.contract.batch) if row not in taken), None)
        if row is None:
            raise StreamError(
                f"all {self.contract.batch} places are taken; close a stream, or export with a larger --batch"
            )
        values, position = self._start, Position()
        if snapshot is not None:
            values, position = self._decoded(snapshot)
        place = Place(row, self._opened)
        self._state.set_rows([row], values)
        self._opened += 1
        self._positions[place] = position
        return place

    def _decoded(self, data: bytes) -> tuple[dict[str, Array], Position]:
        """State [1, *shape] and position of a snapshot."""
        found = snapshots.decode(data, self._one)
        values = found.group("state")
        if any(block.shape[1] for block in found.group("pending").values()) or found.position.ended:
            raise SnapshotError("snapshot: its stream has ended, or frames wait in it; go on with a Stream")
        for state in self._one.states:
            array = values.get(state.name)
            if array is None or array.shape != state.shape or str(array.dtype) != state.dtype:
                raise SnapshotError(
                    f"snapshot: state {state.name} is not {state.dtype}{list(state.shape)}; it was altered"
                )
        return values, found.position

    def close(self, place: Place) -> None:
        """Let a stream go; its place is free."""
        self._check(place)
        del self._positions[place]

    def reset(self, place: Place) -> None:
        """One stream back to the model's start; the others stay as they are."""
        self._check(place)
        self._state.set_rows([place.row], self._start)
        self._positions[place] = Position()

    def snapshot(self, place: Place) -> bytes:
        """One stream as the bytes of a small file; a `Stream` at a batch of 1 goes on from it, in any runtime."""
        position = self._check(place)
        tensors = {f"state.{name}": array for name, array in self._state.rows([place.row]).items()}
        tensors.update({f"pending.{name}": block for name, block in self._inputs.no_frames().items()})
        return snapshots.encode(tensors, position, self._one)

    def step(self, chunks: Mapping[Place, Values]) -> dict[Place, Values]:
        """Advance the streams that have a chunk [frames, *features]; gives the rows of each, as copies.

        Raises:
            InputError: a chunk of wrong shape, type or range, or NaN under the `error` policy; nothing has changed.
            StreamError: a stream that is closed.
        """
        inputs = self._filled()
        for place, chunk in chunks.items():
            self._check(place)
            try:
                checked, _ = self._inputs.chunk(chunk)
            except InputError as error:
                raise InputError(f"stream in place {place.row}: {error}") from error
            for name, array in checked.items():
                inputs[name][place.row] = array[0]
        rows = [place.row for place in chunks]
        if self._whole.valid is not None:
            counts = np.zeros(self.contract.batch, np.int64)
            counts[rows] = self.contract.chunk.frames
            inputs[self._whole.valid.name] = counts
        idle = [place.row for place in self._positions if place not in chunks]
        put_back = self._state.keep(idle) if idle else None
        outputs = self.program.step(inputs, self._state)
        if put_back is not None:
            put_back()
        frames = self.contract.chunk.frames
        for place in chunks:
            before = self._positions[place]
            self._positions[place] = before._replace(taken=before.taken + frames, rows=before.rows + frames)
        return {place: self._of(outputs, place.row) for place in chunks}

    def _filled(self) -> dict[str, Array]:
        """One chunk of every input that every row may have."""
        inputs = self._whole.zeros()
        for port in self._whole.ports:
            if port.range is not None:
                inputs[port.name].fill(port.range[0])
        return inputs

    def _of(self, outputs: Mapping[str, Array], row: int) -> Values:
        """The rows of one stream."""
        values = {port.name: outputs[port.name][row].copy() for port in self.contract.outputs}
        return next(iter(values.values())) if len(values) == 1 else values

    def _check(self, place: Place) -> Position:
        if place not in self._positions:
            raise StreamError(f"the stream in place {place.row} was closed; open() another one")
        return self._positions[place]
