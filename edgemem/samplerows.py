"""Raw samples as the rows that a model takes: what stands in a contract where no features are computed.

row r    samples r n .. r n + n-1, float32 in [-1, 1]        n = row_samples
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, overload

import numpy as np

from edgemem.errors import ContractError, SnapshotError
from edgemem.frontend import LARGEST, FrontEnd, checked_samples

Array = np.ndarray[Any, np.dtype[Any]]
KIND = "samples"
LARGEST_ROW = 1 << 20


@dataclass(frozen=True)
class SampleRows:
    """How sound is cut; it travels in a model's contract as `inputs[0].frontend`.

    Raises:
        ContractError: a number of the wrong type, or out of its range; it is named.
    """

    sample_rate: int
    row_samples: int
    kind: str = KIND

    def __post_init__(self) -> None:
        if self.kind != KIND:
            raise ContractError(f"frontend.kind: {KIND} was wanted, {self.kind!r} came; export the model again")
        for name, largest in (("sample_rate", LARGEST["sample_rate"]), ("row_samples", LARGEST_ROW)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise ContractError(f"frontend.{name}: 1 to {largest} was wanted, {value!r} came")

    def to_dict(self) -> dict[str, object]:
        """The parameters as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> SampleRows:
        """The rows that `to_dict` described.

        Raises:
            ContractError: a key that is unknown, missing or wrong.
        """
        known = {field.name for field in fields(cls)}
        for name in sorted(set(values) ^ known, key=str):
            what = "is not a parameter of raw samples" if name in values else "is missing"
            raise ContractError(
                f"frontend.{name} {what}; wanted are {', '.join(sorted(known))}; export the model again"
            )
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every type

    @property
    def width(self) -> int:
        """Samples of one row."""
        return self.row_samples

    @property
    def seconds_per_frame(self) -> float:
        """From one row to the next, which is one frame of the model."""
        return self.row_samples / self.sample_rate

    @overload
    def frame_start_seconds(self, row: int) -> float: ...
    @overload
    def frame_start_seconds(self, row: Array) -> Array: ...
    def frame_start_seconds(self, row: int | Array) -> float | Array:
        """When the first sample of a row begins; an index, or an array of them."""
        return row * self.row_samples / self.sample_rate

    @overload
    def frame_end_seconds(self, row: int) -> float: ...
    @overload
    def frame_end_seconds(self, row: Array) -> Array: ...
    def frame_end_seconds(self, row: int | Array) -> float | Array:
        """When the last sample of a row ends, from which on the row can be known."""
        return (row + 1) * self.row_samples / self.sample_rate

    def stream(self) -> SampleRowsStream:
        """The rows of a sound that comes in pieces."""
        return SampleRowsStream(self)


class SampleRowsStream:
    """The samples that wait for a whole row. Samples after the last whole row are not used."""

    def __init__(self, frontend: SampleRows) -> None:
        self.frontend = frontend
        self.reset()

    def reset(self) -> None:
        """Back to the first sample."""
        self._tail = np.empty(0, np.float32)

    def push(self, samples: Array) -> Array:
        """Take any number of samples [time]; give the rows [rows, row_samples] that are whole with them, float32.

        Raises:
            InputError: samples that are not float mono.
        """
        sound = np.concatenate([self._tail, checked_samples(samples)])
        rows = len(sound) // self.frontend.row_samples
        whole = rows * self.frontend.row_samples
        self._tail = sound[whole:].copy()
        return sound[:whole].reshape(rows, self.frontend.row_samples)

    def snapshot(self) -> dict[str, Array]:
        """tail [< row_samples] float32: the samples that wait."""
        return {"tail": self._tail.copy()}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on where a snapshot was taken.

        Raises:
            SnapshotError: a tensor missing, unknown, or of another dtype or shape; the stream is as it was.
        """
        for name in sorted(set(state) ^ {"tail"}):
            what = "unknown" if name in state else "missing"
            raise SnapshotError(f"snapshot: frontend.{name} is {what}; wanted is tail")
        tail = state["tail"]
        if tail.dtype != np.float32 or tail.ndim != 1 or len(tail) >= self.frontend.row_samples:
            raise SnapshotError(
                f"snapshot: frontend.tail: fewer than {self.frontend.row_samples} float32 samples were wanted, "
                f"{tail.dtype}{list(tail.shape)} came; it is of another model"
            )
        self._tail = tail.copy()


AnyFrontEnd = FrontEnd | SampleRows


def front_end(facts: Mapping[str, object]) -> AnyFrontEnd:
    """What makes a model's input of sound, as its contract describes it.

    Raises:
        ContractError: a parameter that is unknown, missing or wrong; it is named.
    """
    raw = isinstance(facts, Mapping) and facts.get("kind") == KIND
    return SampleRows.from_dict(facts) if raw else FrontEnd.from_dict(facts)
