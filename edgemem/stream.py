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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgemem import snapshot as snapshots
from edgemem.errors import InputError, SnapshotError, StreamError, UsageError

if TYPE_CHECKING:
    from edgemem.audio import FrontEndStream
    from edgemem.program import Program

Array = np.ndarray[Any, np.dtype[Any]]
Values = Any  # an array, or a dict of arrays by name
Kind = TypeVar("Kind")


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


class Stream:
    """The state of one stream and its place in time. Use one stream from one thread at a time."""

    def __init__(self, program: Program, nan: str = "error") -> None:
        if nan not in ("error", "allow"):
            raise UsageError(f"nan must be 'error' or 'allow', got {nan!r}")
        self.program = program
        self.contract = contract = program.contract
        self.finite_only = nan == "error"
        self._state = program.new_state()
        self._valid = next((port for port in contract.inputs if port.role == "valid"), None)
        self._ports = tuple(port for port in contract.inputs if port.role != "valid")
        self._single = self._ports[0] if len(self._ports) == 1 else None
        self._output = contract.outputs[0].name if len(contract.outputs) == 1 else None
        self._batch, self._frames = self._ports[0].shape[:2]
        self._full: Array = np.full((self._batch,), self._frames, np.int64)
        self._ahead = contract.latency.look_ahead
        self._frontend = self._new_frontend()
        self._forget_position()

    def _new_frontend(self) -> FrontEndStream | None:
        facts = self._ports[0].frontend
        if facts is None:
            return None
        from edgemem.audio import FrontEnd

        return FrontEnd.from_dict(facts).stream()

    def _forget_position(self) -> None:
        self._taken = 0  # real frames that steps have consumed
        self._given = 0  # real output rows that left
        self._rows = 0  # output rows that steps have made, warm-up included
        self._ended = False
        self._pending = {port.name: np.empty((self._batch, 0, *port.shape[2:]), port.dtype) for port in self._ports}

    @property
    def has_frontend(self) -> bool:
        """Whether the model's input is made of audio by a front end in its contract."""
        return self._frontend is not None

    @property
    def sample_rate(self) -> int:
        """Samples per second that `push_samples` takes."""
        if self._frontend is None:
            raise InputError(f"{self.contract.model.name} has no audio front end; push its features instead")
        return self._frontend.frontend.sample_rate

    # --- one chunk ---------------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Real frames that the state has seen since the start."""
        return self._taken

    def step(self, x: Values, valid: int | Array | None = None) -> Values:
        """Advance by one chunk of `contract.chunk.frames` frames and return its output rows.

        x is [batch, frames, *features] in the port's shape, floats for float ports and integers of any width for
        integer ports. `valid` counts the real frames at the front of a chunk whose rest is padding. Models with
        look-ahead give `look_ahead` rows that precede the stream first; `push` leaves those out.

        Raises:
            InputError: wrong shape, type or range, or NaN under the `error` policy.
            StreamError: the stream has been flushed to its end; `reset` starts it again.
        """
        inputs, omitted = self._checked(x)
        if self._ended:
            raise StreamError("the stream was flushed to its end; call reset() before the next step")
        if self._valid is not None:
            inputs[self._valid.name] = self._full if valid is None else self._checked_valid(valid)
        elif valid is not None:
            raise InputError("this model takes one frame per step and no valid count; leave `valid` out")
        outputs = self.program.step(inputs, self._state)
        self._taken += self._frames if valid is None else int(np.max(valid))
        self._rows += self._frames
        if self._output is not None:
            return outputs[self._output].reshape(outputs[self._output].shape[omitted:]).copy()
        return {name: array.reshape(array.shape[omitted:]).copy() for name, array in outputs.items()}

    def _checked(self, x: Values) -> tuple[dict[str, Array], int]:
        """The inputs by name at their exact shapes, and how many leading axes of 1 the caller left out."""
        if self._single is not None:
            array = x[self._single.name] if isinstance(x, dict) and set(x) == {self._single.name} else x
            array, omitted = self._checked_port(self._single, array)
            return {self._single.name: array}, omitted
        wanted = [port.name for port in self._ports]
        if not isinstance(x, Mapping) or set(x) != set(wanted):
            came = sorted(x) if isinstance(x, Mapping) else type(x).__name__
            raise InputError(f"step needs a dict with the inputs {wanted}, got {came}")
        checked = {port.name: self._checked_port(port, x[port.name]) for port in self._ports}
        return {name: array for name, (array, _) in checked.items()}, min(o for _, o in checked.values())

    def _checked_port(self, port: Any, x: Any) -> tuple[Array, int]:
        array = x if type(x) is np.ndarray else np.asarray(x)
        omitted = len(port.shape) - array.ndim
        if omitted and (omitted not in (1, 2) or any(axis != 1 for axis in port.shape[:omitted])):
            omitted = 0
        if array.shape != port.shape[omitted:]:
            raise InputError(
                f"input {port.name}: shape {list(port.shape)} [batch, frames, *features] was wanted, "
                f"{list(array.shape)} came; use push() for any number of frames"
            )
        self._check_values(port, array)
        return array.reshape(port.shape), omitted

    def _check_values(self, port: Any, array: Array) -> None:
        """Refuse a wrong kind of number, an integer out of range, or NaN."""
        if port.dtype.startswith("float"):
            if array.dtype.kind != "f":
                raise InputError(f"input {port.name}: {port.dtype} was wanted, {array.dtype} came; convert it first")
            if self.finite_only and not np.isfinite(array).all():
                raise InputError(
                    f"input {port.name}: finite numbers were wanted, NaN or infinity came at frame {self._taken}; "
                    "clean the input, or open the stream with nan='allow'"
                )
            return
        if array.dtype.kind not in "iu":
            raise InputError(f"input {port.name}: integers were wanted, {array.dtype} came; convert it first")
        low, high = port.range
        if array.size and (array.min() < low or array.max() > high):
            worst = int(array.min()) if array.min() < low else int(array.max())
            raise InputError(f"input {port.name}: values from {low} to {high} were wanted, {worst} came")

    def _checked_valid(self, valid: int | Array) -> Array:
        assert self._valid is not None
        counts = np.asarray(valid)
        if counts.dtype.kind not in "iu" or counts.shape not in ((), self._valid.shape):
            raise InputError(f"valid: one count per stream, {list(self._valid.shape)}, was wanted, {valid!r} came")
        if counts.min() < 0 or counts.max() > self._frames:
            raise InputError(f"valid: 0 to {self._frames} frames were wanted, {valid!r} came")
        return np.broadcast_to(counts, self._valid.shape)

    # --- any number of frames ----------------------------------------------------------------------------------

    def push(self, x: Values) -> Rows:
        """Take any number of frames [time, *features] (or [batch, time, *features]); run every whole chunk.

        The frames that do not fill a chunk wait for the next push, for `flush`, or in a snapshot.

        Raises:
            InputError: wrong shape, type or range, or NaN under the `error` policy.
            StreamError: the stream has been flushed to its end.
        """
        blocks = self._checked_blocks(x)
        if self._ended:
            raise StreamError("the stream was flushed to its end; call reset() before the next push")
        waiting = {name: np.concatenate([self._pending[name], block], axis=1) for name, block in blocks.items()}
        total = next(iter(waiting.values())).shape[1]
        whole = total - total % self._frames
        outputs = [
            self._advance({name: block[:, at : at + self._frames] for name, block in waiting.items()}, self._frames)
            for at in range(0, whole, self._frames)
        ]
        self._pending = {name: block[:, whole:].copy() for name, block in waiting.items()}
        return self._gathered(outputs)

    def push_samples(self, samples: Array) -> Rows:
        """Take any number of audio samples (float32 mono at the front end's rate) through the model's front end.

        Raises:
            InputError: the samples are not finite float mono, or the model has no audio front end.
        """
        if self._frontend is None:
            raise InputError(f"{self.contract.model.name} has no audio front end; push its features instead")
        if self._ended:
            raise StreamError("the stream was flushed to its end; call reset() before the next push")
        sound = np.asarray(samples)
        if sound.ndim != 1 or sound.dtype.kind != "f":
            raise InputError(
                f"samples: float mono [time] was wanted, {sound.dtype}{list(sound.shape)} came; "
                "average the channels and divide 16-bit samples by 32768"
            )
        if self.finite_only and not np.isfinite(sound).all():
            raise InputError("samples: finite numbers were wanted, NaN or infinity came; clean the input")
        return self.push(self._frontend.push(sound))

    def flush(self) -> Rows:
        """End the stream: run the frames that wait, give the rows that waited for look-ahead.

        Models that take frames may go on afterwards, with the state as the real frames left it; models of segments
        or with look-ahead have ended and want `reset`.
        """
        outputs = []
        waiting = next(iter(self._pending.values())).shape[1]
        if waiting:
            outputs.append(self._advance_padded(self._pending, waiting))
            self._pending = {name: block[:, :0] for name, block in self._pending.items()}
        while self._given + sum(count for _, count in outputs) < self._taken:
            outputs.append(self._advance_padded({}, 0))
        rows = self._gathered(outputs)
        self._ended = self._ahead > 0 or (waiting > 0 and self.contract.chunk.frames_per_unit > 1)
        return rows

    def peek(self) -> Rows:
        """The output rows of the frames that wait for a whole chunk, as if the stream ended here; nothing changes."""
        before, position = self._state.get(), (self._taken, self._given, self._rows)
        waiting = next(iter(self._pending.values())).shape[1]
        rows = self._gathered([self._advance_padded(self._pending, waiting)] if waiting else [])
        self._state.set(before)
        self._taken, self._given, self._rows = position
        return rows

    def run(self, pieces: Iterable[Values]) -> Iterator[Rows]:
        """Push every piece, then flush; gives the rows of each as they come."""
        for piece in pieces:
            yield self.push(piece)
        yield self.flush()

    def _checked_blocks(self, x: Values) -> dict[str, Array]:
        given = x if isinstance(x, Mapping) else {self._ports[0].name: x}
        if set(given) != {port.name for port in self._ports}:
            raise InputError(f"push needs the inputs {[port.name for port in self._ports]}, got {sorted(given)}")
        blocks = {}
        for port in self._ports:
            block = np.asarray(given[port.name])
            if block.ndim == len(port.shape) - 1 and self._batch == 1:
                block = block[None]
            wanted = (self._batch, *port.shape[2:])
            if block.ndim != len(port.shape) or (block.shape[0], *block.shape[2:]) != wanted:
                raise InputError(
                    f"input {port.name}: [batch {self._batch}, time, *{list(port.shape[2:])}] was wanted, "
                    f"{list(block.shape)} came"
                )
            if block.size == 0:
                block = block.astype(port.dtype)  # an empty list has no kind of its own
            self._check_values(port, block)
            blocks[port.name] = block.astype(port.dtype)
        if len({block.shape[1] for block in blocks.values()}) > 1:
            raise InputError(
                f"push needs as many frames of every input, got { {n: b.shape[1] for n, b in blocks.items()} }"
            )
        return blocks

    def _advance(self, chunk: Mapping[str, Array], real: int) -> tuple[dict[str, Array], int]:
        """Run one checked chunk of which `real` frames are real; its real output rows, and how many."""
        inputs = dict(chunk)
        if self._valid is not None:
            inputs[self._valid.name] = np.full(self._valid.shape, real, self._valid.dtype)
        outputs = self.program.step(inputs, self._state)
        self._taken += real
        skip, stop = self._real_rows(real)
        self._rows += self._frames
        return {name: array[:, skip:stop].copy() for name, array in outputs.items()}, stop - skip

    def _real_rows(self, real: int) -> tuple[int, int]:
        """Which rows of the step just made are outputs of real frames: after warm-up, before the padding's."""
        if not self._ahead:
            return 0, real
        skip = min(self._frames, max(0, self._ahead - self._rows))
        return skip, max(skip, min(self._frames, self._taken + self._ahead - self._rows))

    def _advance_padded(self, blocks: Mapping[str, Array], real: int) -> tuple[dict[str, Array], int]:
        """Run one chunk with `real` frames at its front and zeros behind them."""
        chunk = {port.name: np.zeros(port.shape, port.dtype) for port in self._ports}
        for name, block in blocks.items():
            chunk[name][:, :real] = block
        return self._advance(chunk, real)

    def _gathered(self, outputs: list[tuple[dict[str, Array], int]]) -> Rows:
        """Rows of several steps as one, with their time stamps."""
        count = sum(rows for _, rows in outputs)
        first, self._given = self._given, self._given + count
        values = {}
        for port in self.contract.outputs:
            empty = np.empty((self._batch, 0, *port.shape[2:]), port.dtype)
            joined = np.concatenate([empty, *(rows[port.name] for rows, _ in outputs)], axis=1)
            values[port.name] = joined[0] if self._batch == 1 else joined
        index = np.arange(first, first + count)
        start, end = self._spans(index)
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
        self._forget_position()

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
        position = {"taken": self._taken, "given": self._given, "rows": self._rows, "ended": int(self._ended)}
        data = snapshots.encode(tensors, position, self.contract)
        if path is not None:
            from edgemem.files import atomic_write

            with atomic_write(Path(path)) as file:
                file.write(data)
        return data

    def restore(self, source: bytes | str | Path) -> None:
        """Go on where a snapshot was taken: by any stream of the same model, at any chunk, in any runtime.

        Raises:
            SnapshotError: truncated, altered, or of another model; the stream is as it was.
        """
        data = source if isinstance(source, bytes) else self._read(Path(source))
        found = snapshots.decode(data, self.contract)
        state = self._checked_state(found.group("state"), SnapshotError)
        pending = found.group("pending")
        for port in self._ports:
            block = pending.get(port.name)
            if (
                block is None
                or block.dtype != port.dtype
                or (block.shape[0], *block.shape[2:]) != (self._batch, *port.shape[2:])
            ):
                raise SnapshotError(f"snapshot: its waiting frames do not fit input {port.name}; it was altered")
        if self._frontend is not None:
            self._frontend.restore(found.group("frontend"))
        self._state.set(state)
        self._pending = {port.name: pending[port.name] for port in self._ports}
        position = found.position
        self._taken, self._given, self._rows = position["taken"], position["given"], position["rows"]
        self._ended = bool(position["ended"])

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
        twin = Stream(self.program, nan="error" if self.finite_only else "allow")
        twin.restore(self.snapshot())
        return twin

    def _checked_state(self, values: Mapping[str, Array], error: type[Exception]) -> dict[str, Array]:
        """Exactly the declared states at their declared shapes and dtypes."""
        wanted = {state.name: state for state in self.contract.states}
        if set(values) != set(wanted):
            odd = sorted(set(values) ^ set(wanted))[0]
            raise error(f"state {odd} is {'unknown' if odd in values else 'missing'}; the model has {sorted(wanted)}")
        for name, state in wanted.items():
            array = values[name]
            if array.shape != tuple(state.shape) or str(array.dtype) != state.dtype:
                raise error(
                    f"state {name}: {state.dtype}{list(state.shape)} was wanted, {array.dtype}{list(array.shape)} came"
                )
        return {name: values[name] for name in wanted}
