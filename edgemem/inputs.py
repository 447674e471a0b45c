"""What a stream takes: arrays held against the inputs of the contract, before anything runs.

chunk    one step's input, at its exact shape; leading axes of 1 may be left out
frames   any number of frames, with or without a batch axis of 1
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import InputError

if TYPE_CHECKING:
    from edgemem.contract import Contract, InputFacts

Array = np.ndarray[Any, np.dtype[Any]]
Values = Any  # an array, or a dict of arrays by name


class Inputs:
    """The inputs of one model that hold data, and the one that counts real frames, where there is one."""

    def __init__(self, contract: Contract, finite_only: bool) -> None:
        self.ports = tuple(port for port in contract.inputs if port.role != "valid")
        self.names = tuple(port.name for port in self.ports)
        self.valid = contract.valid_input
        self.batch, self.frames_per_step = self.ports[0].shape[:2]
        self.finite_only = finite_only
        self._dtypes = {port.name: np.dtype(port.dtype) for port in self.ports}  # its name is slow to compare with

    def chunk(self, x: Values) -> tuple[dict[str, Array], int]:
        """One chunk by name, each at its exact shape, and how many leading axes of 1 the caller left out.

        Raises:
            InputError: wrong names, shape, type or range, or NaN where it is not allowed.
        """
        checked, omitted = {}, 2
        for port, value in zip(self.ports, self._by_port(x), strict=True):
            array = as_array(port, value)
            left_out = len(port.shape) - array.ndim
            if left_out and (left_out not in (1, 2) or any(axis != 1 for axis in port.shape[:left_out])):
                left_out = 0
            if array.shape != port.shape[left_out:]:
                raise InputError(
                    f"input {port.name}: shape {list(port.shape)} [batch, frames, *features] was wanted, "
                    f"{list(array.shape)} came; use push() for any number of frames"
                )
            checked[port.name] = self._checked_values(port, array).reshape(port.shape)
            omitted = min(omitted, left_out)
        return checked, omitted

    def frames(self, x: Values) -> dict[str, Array]:
        """Frames [batch, time, *features] by name, as many of every input, in the contract's dtypes.

        Raises:
            InputError: wrong names, shape, type or range, or NaN where it is not allowed.
        """
        blocks = {}
        for port, value in zip(self.ports, self._by_port(x), strict=True):
            block = as_array(port, value)
            if block.ndim == len(port.shape) - 1 and self.batch == 1:
                block = block[None]
            wanted = (self.batch, *port.shape[2:])
            if block.ndim != len(port.shape) or (block.shape[0], *block.shape[2:]) != wanted:
                features = "".join(f", {size}" for size in port.shape[2:])
                batch = "" if self.batch == 1 else f"batch {self.batch}, "
                raise InputError(
                    f"input {port.name}: [{batch}time{features}] was wanted, {list(block.shape)} came; bring it "
                    f"to that shape{regrouped(port.shape[2:], block.shape)}"
                )
            blocks[port.name] = self._checked_values(port, block)
        times = {name: block.shape[1] for name, block in blocks.items()}
        if len(set(times.values())) > 1:
            raise InputError(f"as many frames of every input were wanted, {times} came")
        return blocks

    def no_frames(self) -> dict[str, Array]:
        """Nothing of every input."""
        return {port.name: np.empty((self.batch, 0, *port.shape[2:]), port.dtype) for port in self.ports}

    def zeros(self) -> dict[str, Array]:
        """One chunk of zeros."""
        return {port.name: np.zeros(port.shape, port.dtype) for port in self.ports}

    def counts(self, valid: int | Array) -> Array:
        """Counts of real frames, one per stream; one number is meant for all.

        Raises:
            InputError: the model takes none, or they are not whole numbers within the chunk.
        """
        if self.valid is None:
            raise InputError("this model takes one frame per step and no valid count; leave `valid` out")
        counts = np.asarray(valid)
        if counts.dtype.kind not in "iu" or counts.shape not in ((), self.valid.shape):
            raise InputError(f"valid: one count per stream, {list(self.valid.shape)}, was wanted, {valid!r} came")
        if counts.min() < 0 or counts.max() > self.frames_per_step:
            raise InputError(f"valid: 0 to {self.frames_per_step} frames were wanted, {valid!r} came")
        return np.broadcast_to(counts, self.valid.shape)

    def _by_port(self, x: Values) -> list[Any]:
        """The value of each port, in the contract's order."""
        if type(x) is np.ndarray and len(self.ports) == 1:  # most steps: the check of a Mapping is slow
            return [x]
        if isinstance(x, Mapping):
            if set(x) != set(self.names):
                raise InputError(f"inputs {list(self.names)} were wanted, {sorted(map(str, x))} came")
            return [x[name] for name in self.names]
        if len(self.ports) > 1:
            raise InputError(f"a dict with the inputs {list(self.names)} was wanted, {type(x).__name__} came")
        return [x]

    def _checked_values(self, port: InputFacts, array: Array) -> Array:
        """The array in the port's dtype; refuses a wrong kind of number, an integer out of range, or NaN."""
        if not array.size:  # an empty list has no kind of its own
            return array.astype(port.dtype)
        dtype = self._dtypes[port.name]
        if dtype.kind == "f":
            if array.dtype.kind != "f":
                raise InputError(f"input {port.name}: {port.dtype} was wanted, {kind_of(array)} came; convert it first")
            if array.dtype != dtype:
                with np.errstate(over="ignore"):  # too large becomes infinity
                    array = array.astype(dtype)
            if self.finite_only and not finite(array):
                raise InputError(
                    f"input {port.name}: finite numbers were wanted, NaN or infinity came"
                    f"{at_frame(port, ~np.isfinite(array))}; clean the input"
                )
            return array
        if array.dtype.kind not in "iu":
            raise InputError(f"input {port.name}: integers were wanted, {kind_of(array)} came; convert it first")
        assert port.range is not None
        low, high = port.range
        least, most = (array.item(),) * 2 if array.size == 1 else (array.min(), array.max())
        if least < low or most > high:
            worst = int(least if least < low else most)
            raise InputError(
                f"input {port.name}: values from {low} to {high} were wanted, {worst} came"
                f"{at_frame(port, array == worst)}; give what this model was made for"
            )
        return array.astype(dtype, copy=False)


def kind_of(array: Array) -> str:
    """What an array holds, in words for messages."""
    return "text" if array.dtype.kind in "US" else str(array.dtype)


def at_frame(port: InputFacts, odd: Array) -> str:
    """' at frame N', the first of an array [..., time, *features] that is odd anywhere; nothing without a time axis."""
    axis = odd.ndim - (len(port.shape) - 2) - 1
    if axis < 0:
        return ""
    by_time = np.moveaxis(odd, axis, 0).reshape(odd.shape[axis], -1).any(axis=1)
    return f" at frame {int(by_time.argmax())}"


def regrouped(features: tuple[int, ...], came: tuple[int, ...]) -> str:
    """What brings rows [.., time, *feature] to the shape of frames that take several of them, where they come so."""
    rows = features[0] if features else 0
    if rows < 2 or came[1:] != features[1:] or came[0] % rows:
        return ""
    return f", where {rows} rows are one frame: x.reshape({', '.join(map(str, (-1, *features)))})"


def finite(array: Array) -> bool:
    """Whether no element is NaN or infinite: one sum of squares, and only where that overflows every element."""
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def as_array(port: InputFacts, x: Any) -> Array:
    """x as an array.

    Raises:
        InputError: nested lists of different lengths.
    """
    if type(x) is np.ndarray:
        return x
    try:
        return np.asarray(x)
    except ValueError as error:
        raise InputError(
            f"input {port.name}: an array of numbers was wanted, {type(x).__name__} came ({error})"
        ) from error
