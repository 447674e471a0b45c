"""One stream through a program: steps, re-blocked pushes, exact time, snapshots.

    stream = edgemem.load("m.onnx").stream()
    y      = stream.step(x)          one chunk in, one chunk out
    rows   = stream.push(frames)     any number of frames: whole chunks run, the rest waits
    rows   = stream.flush()          the end: waiting frames and look-ahead come out

`step` takes and gives one array, or a dict by name where the model has several inputs or outputs. A batch axis of
1 may be left out, and the time axis of a model that takes one frame per step too; the output leaves out the
same axes. Whatever is refused changes nothing in the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgemem import snapshot as snapshots
from edgemem.errors import ContractError, InputError, SnapshotError, StreamError, UsageError
from edgemem.inputs import Array, Inputs, Values
from edgemem.snapshot import Position

if TYPE_CHECKING:
    from edgemem.frontend import FrontEndStream
    from edgemem.program import Program
    from edgemem.samplerows import SampleRowsStream


@dataclass(frozen=True)
class Rows:
    """Outputs of consecutive frames, each row with the span of input time that it belongs to.

    `values` is [rows, *shape] (or a dict of such by output name; [batch, rows, *shape] for batches). `t_start` and
    `t_end` [rows] are seconds from the start of the stream where the model's frames have a duration, else frame
    indices. They do not depend on how the input was cut.
    """

    values: Values
    first: int
    t_start: Array
    t_end: Array

    def __len__(self) -> int:
        return len(self.t_start)


class Shortcut(NamedTuple):
    """What a whole chunk needs where a program has a `Bound` step; `views` of the output by shape of the input."""

    dtype: np.dtype[Any]
    input: Array
    run: Callable[[], int]
    views: dict[tuple[int, ...], Array]


class Stream:
    """The state of one stream and its place in time. Use one stream from one thread at a time."""

    def __init__(self, program: Program, nan: str = "error") -> None:
        if nan not in ("error", "allow"):
            raise UsageError(f"nan must be 'error' or 'allow', got {nan!r}")
        self.program = program
        self.contract = contract = program.contract
        self._nan = nan
        self._inputs = Inputs(contract, finite_only=nan == "error")
        self._output = contract.outputs[0].name if len(contract.outputs) == 1 else None
        self._frames = contract.chunk.frames
        self._full: Array = np.full((contract.batch,), self._frames, np.int64)
        self._ahead = contract.latency.look_ahead
        self._state = program.new_state()
        self._frontend = self._new_frontend()
        self._ended = False
        self._pending, self._position = self._inputs.no_frames(), Position()
        self._short = self._shortcut()

    def _shortcut(self) -> Shortcut | None:
        """The way of most steps, where the program has one."""
        bound = self.program.bound(self._state, self._nan == "error")
        if bound is None or self._ahead or self._inputs.valid is not None:
            return None
        port, output = self._inputs.ports[0], bound.output
        views = {
            port.shape[axes:]: output.reshape(output.shape[axes:])
            for axes in range(3)
            if {*port.shape[:axes], *output.shape[:axes]} <= {1}
        }
        return Shortcut(np.dtype(port.dtype), bound.input, bound.run, views)

    def _new_frontend(self) -> FrontEndStream | SampleRowsStream | None:
        """What makes the input of audio, where the contract says how; of one stream, not of a batch."""
        facts = self._inputs.ports[0].frontend
        if facts is None or self.contract.batch > 1:
            return None
        from edgemem.samplerows import front_end

        frontend, port = front_end(facts), self._inputs.ports[0]
        if (frontend.width,) != port.shape[2:]:
            raise ContractError(
                f"contract field inputs.{port.name}.frontend: it makes rows of {frontend.width}, "
                f"the input takes {list(port.shape[2:])}; export the model again"
            )
        return frontend.stream()

    @property
    def has_frontend(self) -> bool:
        """Whether the model's input is made of audio by a front end in its contract."""
        return self._frontend is not None

    @property
    def sample_rate(self) -> int:
        """Samples per second that `push_samples` takes."""
        return self._audio.frontend.sample_rate

    @property
    def _audio(self) -> FrontEndStream | SampleRowsStream:
        if self._frontend is None:
            raise InputError(f"{self.contract.model.name} has no audio front end here; push its features instead")
        return self._frontend

    @property
    def position(self) -> int:
        """Real frames that the state has seen since the start."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Frames that were pushed and wait for a whole chunk."""
        block = next(iter(self._pending.values()))
        return int(block.shape[1])

    # `_idle` says that `step` may take its short way. Only these two setters change what it depends on.

    @property
    def _position(self) -> Position:
        return Position(self._taken, self._rows, self._ended)

    @_position.setter
    def _position(self, position: Position) -> None:
        self._taken, self._rows, self._ended = position
        self._idle = not (self._ended or self.waiting)

    @property
    def _pending(self) -> dict[str, Array]:
        return self._blocks

    @_pending.setter
    def _pending(self, blocks: dict[str, Array]) -> None:
        self._blocks = blocks
        self._idle = not (self._ended or self.waiting)

    # --- one chunk ---------------------------------------------------------------------------------------------

    def step(self, x: Values, valid: int | Array | None = None) -> Values:
        """Advance by one chunk of `contract.chunk.frames` frames and return its output rows.

        x is [batch, frames, *features] in the port's shape, floats for float ports and integers of any width for
        integer ports. `valid` counts the real frames at the front of a chunk whose rest is padding. Models with
        look-ahead give `look_ahead` rows that precede the stream first; `push` leaves those out.

        Raises:
            InputError: wrong shape, type or range, or NaN under the `error` policy.
            StreamError: the stream has been flushed to its end, or frames wait in it from a `push`.
        """
        short = self._short
        if short is not None and type(x) is np.ndarray and x.dtype is short.dtype and valid is None:
            view = short.views.get(x.shape)
            if view is not None and self._idle:
                short.input[...] = x
                if short.run() == 0:
                    self._taken += self._frames
                    self._rows += self._frames
                    return view.copy()
        return self._checked_step(x, valid)

    def _checked_step(self, x: Values, valid: int | Array | None) -> Values:
        """`step` on the long way, which says what it refuses."""
        inputs, omitted = self._inputs.chunk(x)
        counts, real = self._full, self._frames
        if valid is not None:
            counts = self._inputs.counts(valid)
            real = int(counts.max())
        self._check_open("step")
        if self.waiting:
            raise StreamError(
                f"{self.waiting} frames of a push wait for a whole chunk; push() on, or flush() them first"
            )
        outputs = self._advance(inputs, counts, real)
        if self._output is not None:
            array = outputs[self._output]
            return array.reshape(array.shape[omitted:]).copy()
        return {name: array.reshape(array.shape[omitted:]).copy() for name, array in outputs.items()}

    def _check_open(self, call: str) -> None:
        if self._position.ended:
            raise StreamError(f"the stream was flushed to its end; call reset() before the next {call}")

    def _advance(self, inputs: dict[str, Array], counts: Array, real: int) -> Mapping[str, Array]:
        """Run one checked chunk with `counts` [batch] real frames, `real` at most.

        The outputs belong to the program, which overwrites them with the next step.
        """
        taken, rows, _ = self._position
        if self._ahead and real and rows > taken:
            raise StreamError("frames cannot follow a short chunk of a model with look-ahead; call reset() first")
        if self._inputs.valid is not None:
            inputs[self._inputs.valid.name] = counts
        elif real < self._frames:
            raise StreamError(
                f"{self.contract.model.name} takes whole chunks of {self._frames} frames only, {real} are left; "
                "push the missing ones, or export with a chunk of 1"
            )
        outputs = self.program.step(inputs, self._state)
        self._position = Position(taken + real, rows + self._frames)
        return outputs

    # --- any number of frames ----------------------------------------------------------------------------------

    def push(self, x: Values) -> Rows:
        """Take any number of frames [time, *features] (or [batch, time, *features]); run every whole chunk.

        The frames that do not fill a chunk wait for the next push, for `flush`, or in a snapshot.

        Raises:
            InputError: wrong shape, type or range, or NaN under the `error` policy.
            StreamError: the stream has been flushed to its end.
        """
        blocks = self._inputs.frames(x)
        self._check_open("push")
        first = self._position.given(self._ahead)
        self._pending = {n: np.concatenate([self._pending[n], block], axis=1) for n, block in blocks.items()}
        return self._gathered(first, self._whole_chunks())

    def push_samples(self, samples: Array) -> Rows:
        """Take any number of audio samples (float mono at the front end's rate) through the model's front end.

        Raises:
            InputError: the samples are not finite float mono, or the model has no audio front end.
            StreamError: the stream has been flushed to its end.
        """
        from edgemem.frontend import checked_samples

        sound = checked_samples(samples)
        if self._nan == "error" and not np.isfinite(sound).all():
            raise InputError("samples: finite numbers were wanted, NaN or infinity came; clean the input")
        self._check_open("push")
        return self.push(self._audio.push(sound))

    def flush(self) -> Rows:
        """End the stream: run the frames that wait, give the rows that waited for look-ahead.

        Models that take frames may go on afterwards, with the state as the real frames left it; models of segments
        or with look-ahead have ended and want `reset`.
        """
        cut_short = self.waiting % self._frames > 0 and self.contract.chunk.frames_per_unit > 1
        rows = self._last_rows()
        self._position = self._position._replace(ended=self._position.ended or self._ahead > 0 or cut_short)
        return rows

    def peek(self) -> Rows:
        """What `flush` would give; nothing changes."""
        state, position, pending = self._state.get(), self._position, self._pending
        try:
            return self._last_rows()
        finally:
            self._state.set(state)
            self._position, self._pending = position, pending

    def run(self, pieces: Iterable[Values]) -> Iterator[Rows]:
        """Push every piece, then flush; gives the rows of each as they come."""
        for piece in pieces:
            yield self.push(piece)
        yield self.flush()

    def _whole_chunks(self) -> list[dict[str, Array]]:
        """Run every whole chunk of the frames that wait; the real output rows of each step."""
        whole = self.waiting - self.waiting % self._frames
        steps = []
        for at in range(0, whole, self._frames):
            chunk = {name: block[:, at : at + self._frames] for name, block in self._pending.items()}
            steps.append(self._real_rows(chunk, self._frames))
        self._pending = {name: block[:, whole:].copy() for name, block in self._pending.items()}
        return steps

    def _last_rows(self) -> Rows:
        """Run all frames that wait, the last chunk filled up with zeros, then such chunks until all rows are out."""
        first = self._position.given(self._ahead)
        steps = self._whole_chunks()
        left, rest = self.waiting, self._pending
        self._pending = self._inputs.no_frames()
        while left or self._position.given(self._ahead) < self._position.taken:
            chunk = self._inputs.zeros()
            for name, block in rest.items():
                chunk[name][:, :left] = block[:, :left]
            steps.append(self._real_rows(chunk, left))
            left = 0
        return self._gathered(first, steps)

    def _real_rows(self, chunk: dict[str, Array], real: int) -> dict[str, Array]:
        """Run one chunk whose first `real` frames are real; copies of the output rows that are of real frames."""
        given, rows = self._position.given(self._ahead), self._position.rows
        outputs = self._advance(chunk, np.full_like(self._full, real), real)
        first = max(0, given + self._ahead - rows)  # past the warm-up
        stop = first + self._position.given(self._ahead) - given
        return {name: array[:, first:stop].copy() for name, array in outputs.items()}

    def _gathered(self, first: int, steps: list[dict[str, Array]]) -> Rows:
        """Rows of several steps as one, the first of them of frame `first`, with their time stamps."""
        values = {}
        for port in self.contract.outputs:
            empty = np.empty((self.contract.batch, 0, *port.shape[2:]), port.dtype)
            joined = np.concatenate([empty, *(rows[port.name] for rows in steps)], axis=1)
            values[port.name] = joined[0] if self.contract.batch == 1 else joined
        start, end = self._spans(np.arange(first, self._position.given(self._ahead)))
        return Rows(values[self._output] if self._output is not None else values, first, start, end)

    def _spans(self, index: Array) -> tuple[Array, Array]:
        """Start and end of frames, in seconds where a frame has a duration."""
        if self._frontend is not None:
            frontend = self._frontend.frontend
            return frontend.frame_start_seconds(index), frontend.frame_end_seconds(index)
        seconds = self.contract.seconds_per_frame
        return (index, index + 1) if seconds is None else (index * seconds, (index + 1) * seconds)

    # --- the state as a whole ----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Back to the start: a run after it is bit-identical to one in a fresh process."""
        self._state.reset()
        if self._frontend is not None:
            self._frontend.reset()
        self._position, self._pending = Position(), self._inputs.no_frames()

    @property
    def state(self) -> dict[str, Array]:
        """A copy of every state by name, each [batch, *shape]."""
        return self._state.get()

    def set_state(self, values: Mapping[str, Array]) -> None:
        """Overwrite every state; position and waiting frames stay as they are.

        Raises:
            InputError: a state is missing, unknown, or of another shape or dtype.
        """
        self._state.set(self._checked_state(values, InputError))

    def snapshot(self, path: str | Path | None = None) -> bytes:
        """The stream as the bytes of a small file, written to `path` if one is given."""
        tensors = {f"state.{name}": array for name, array in self._state.get().items()}
        tensors.update({f"pending.{name}": block for name, block in self._pending.items()})
        if self._frontend is not None:
            tensors.update({f"frontend.{name}": array for name, array in self._frontend.snapshot().items()})
        data = snapshots.encode(tensors, self._position, self.contract)
        if path is not None:
            from edgemem.files import atomic_write

            with atomic_write(Path(path)) as file:
                file.write(data)
        return data

    def restore(self, source: bytes | bytearray | memoryview | str | Path) -> None:
        """Go on where a snapshot was taken: by any stream of the same model, at any chunk, in any runtime.

        Raises:
            SnapshotError: truncated, altered, or of another model; the stream is as it was.
        """
        if not isinstance(source, str | Path):
            self._restore(bytes(source))
            return
        data = self._read(Path(source))
        try:
            self._restore(data)
        except SnapshotError as error:
            raise SnapshotError(f"snapshot {source}: {str(error).removeprefix('snapshot: ')}") from error

    def _restore(self, data: bytes) -> None:
        found = snapshots.decode(data, self.contract)
        state = self._checked_state(found.group("state"), SnapshotError)
        pending = self._checked_pending(found.group("pending"))
        if self._frontend is not None:
            self._frontend.restore(found.group("frontend"))
        self._state.set(state)
        self._pending, self._position = pending, found.position

    def _checked_pending(self, blocks: Mapping[str, Array]) -> dict[str, Array]:
        """The frames that wait in a snapshot, as the model's inputs would take them."""
        try:
            return Inputs(self.contract, finite_only=False).frames(blocks)
        except InputError as error:
            raise SnapshotError(f"snapshot: its waiting frames do not fit: {error}; it was altered") from error

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise SnapshotError(
                f"snapshot {path} cannot be read ({error.strerror}); give the file that was saved"
            ) from error

    def fork(self) -> Stream:
        """An independent copy of this stream, weights shared."""
        twin = Stream(self.program, nan=self._nan)
        twin.restore(self.snapshot())
        return twin

    def _checked_state(self, values: Mapping[str, Array], error: type[Exception]) -> dict[str, Array]:
        """Exactly the declared states at their declared shapes and dtypes."""
        wanted = {state.name: state for state in self.contract.states}
        if set(values) != set(wanted):
            odd = sorted(set(values) ^ set(wanted))[0]
            what = "unknown" if odd in values else "missing"
            raise error(f"state {odd} is {what}; give exactly the states of the model, {', '.join(sorted(wanted))}")
        for name, state in wanted.items():
            array = values[name]
            if array.shape != tuple(state.shape) or str(array.dtype) != state.dtype:
                raise error(
                    f"state {name}: {state.dtype}{list(state.shape)} was wanted, {array.dtype}{list(array.shape)} "
                    "came; give it as `Stream.state` has it"
                )
        return {name: values[name] for name in wanted}
