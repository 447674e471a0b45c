"""How far two runs are apart: per tensor, over many steps.

tolerance  = max(FLOOR, relative * max |reference|)   of one tensor over the whole run
             where rounding alone takes the reference further from exact values (`edgemem.rounding`), MARGIN times as
             far, at most MOST * max |reference|
holds      if max |value - reference| <= tolerance for every tensor; the worst tensor speaks for the run
           and if the reference gave numbers: two that are NaN at the same place agree on nothing
drift      slope of the error over the steps, by least squares, per 1000 steps
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
RELATIVE = 1e-5  # float32 keeps 1e-7 per operation; sums of some hundred terms lose one or two digits of it
FLOOR = 1e-6
MARGIN = 4.0  # two programs round apart: what one did in a few runs, another does a little beyond
MOST = 1e-3  # of a tensor's largest reference value: beyond it no run tells rounding from a fault
NO_VALUE = 1e20  # from here on a number stands for infinity (the exponent of an empty sum): it is no scale for errors
HUGE = float(np.finfo(np.float32).max)  # stands for a difference that is not a number


@dataclass
class Tensor:
    """What is known of one tensor so far."""

    relative: float = RELATIVE
    max_abs_error: float = 0.0
    max_reference: float = 0.0
    rounding: float = 0.0  # how far rounding alone takes the reference from exact values, where that was measured
    values: int = 0  # all that were compared, but stand-ins for infinity
    error_squares: float = 0.0
    reference_squares: float = 0.0
    steps: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def tolerance(self) -> float:
        rounded = min(MARGIN * self.rounding, MOST * self.max_reference)
        return max(FLOOR, self.relative * self.max_reference, rounded)

    @property
    def rms_error(self) -> float:
        """Over all steps."""
        return float(np.sqrt(self.error_squares / max(self.values, 1)))

    @property
    def rms_reference(self) -> float:
        return float(np.sqrt(self.reference_squares / max(self.values, 1)))

    @property
    def rms_ratio(self) -> float:
        """The error beside the reference, both RMS; nothing is to be told of a reference of zeros."""
        return self.rms_error / self.rms_reference if self.reference_squares else min(self.rms_error, 1.0)

    @property
    def excess(self) -> float:
        """Largest error in units of what is allowed."""
        return self.max_abs_error / self.tolerance

    @property
    def first_beyond(self) -> int | None:
        """The first step whose error is not allowed."""
        return next((s for s, e in zip(self.steps, self.errors, strict=True) if e > self.tolerance), None)


class Comparison:
    """Errors of many tensors over many steps; `relative` is what is allowed of a tensor's largest reference value."""

    def __init__(self, relative: float = RELATIVE) -> None:
        self.relative = relative
        self.tensors: dict[str, Tensor] = {}
        self.undefined: str | None = None  # what the reference gave first that is no number, and at which step

    def add(self, step: int, name: str, reference: Array, value: Array) -> None:
        """Compare one tensor of one step; NaN on both sides at the same place is equal."""
        if reference.size == 0:
            return
        tensor = self.tensors.setdefault(name, Tensor(self.relative))
        wanted, came = reference.astype(np.float64), value.astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.abs(came - wanted)
        difference[(wanted == came) | (np.isnan(wanted) & np.isnan(came))] = 0.0
        difference = np.nan_to_num(difference, nan=HUGE, posinf=HUGE)
        error, usual = float(difference.max()), np.abs(wanted) < NO_VALUE
        finite = np.abs(wanted[usual])
        tensor.values += finite.size
        tensor.error_squares += float((difference[usual] ** 2).sum())
        tensor.reference_squares += float((finite**2).sum())
        tensor.max_abs_error = max(tensor.max_abs_error, error)
        tensor.max_reference = max(tensor.max_reference, float(finite.max()) if finite.size else 0.0)
        tensor.steps.append(step)
        tensor.errors.append(error)

    def expect_numbers(self, step: int, name: str, reference: Array) -> None:
        """Note NaN or +infinity of the reference. -infinity may be, as a mask: it is the exponent of 0."""
        if self.undefined is not None or reference.dtype.kind != "f":
            return
        for kind, found in (("NaN", np.isnan(reference)), ("infinity", np.isposinf(reference))):
            if bool(found.any()):
                self.undefined = f"{kind} in {name} at step {step}"
                return

    def allow_rounding(self, errors: Mapping[str, float]) -> None:
        """Take what rounding does to each tensor of the reference, absolute, into the tolerances."""
        for name, error in errors.items():
            if name in self.tensors:
                self.tensors[name].rounding = error

    @property
    def worst(self) -> tuple[str, Tensor]:
        """The tensor with the largest error in units of what is allowed."""
        return max(self.tensors.items(), key=lambda item: item[1].excess, default=("nothing", Tensor()))

    @property
    def holds(self) -> bool:
        """Whether every tensor is close enough, and the reference gave numbers to be close to."""
        return self.undefined is None and self.worst[1].excess <= 1.0

    @property
    def max_abs_error(self) -> float:
        return self.worst[1].max_abs_error

    @property
    def max_rel_error(self) -> float:
        """Of the worst tensor, relative to its largest reference value."""
        tensor = self.worst[1]
        return tensor.max_abs_error / tensor.max_reference if tensor.max_reference else tensor.max_abs_error

    @property
    def tolerance(self) -> float:
        return self.worst[1].tolerance

    @property
    def drift_per_1000_steps(self) -> float:
        """Growth of the worst tensor's error; 0 with fewer than three steps."""
        tensor = self.worst[1]
        if len(set(tensor.steps)) < 3:
            return 0.0
        return float(np.polyfit(np.array(tensor.steps) / 1000.0, tensor.errors, 1)[0])

    @property
    def first_divergence(self) -> str | None:
        """The tensor and step where the runs first parted beyond what is allowed; None where they did not."""
        beyond = [(t.first_beyond, name) for name, t in self.tensors.items() if t.first_beyond is not None]
        return "{1} at step {0}".format(*min(beyond, key=lambda pair: pair[0] or 0)) if beyond else None
