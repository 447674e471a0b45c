"""What a user says about a foreign file that the file does not say itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """The options of `edgemem adopt`; every name is one of the foreign file.

    `sets` holds sizes of dynamic axes by their symbol (or INPUT.AXIS), and values of inputs that never change.
    """

    sets: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)  # input -> output, '' if it is no state
    inits: Mapping[str, Path] = field(default_factory=dict)  # state -> .npy
    layouts: Mapping[str, str] = field(default_factory=dict)  # input, output or state -> a letter for each axis
    tails: Mapping[str, int] = field(default_factory=dict)  # input -> rows of its past that each step sees again
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of integer inputs, and of states
    drops: tuple[str, ...] = ()  # outputs to leave out
    chunk: int | None = None  # frames of a step, where time is a dynamic axis
    sound: int | None = None  # samples per second, where the first input takes raw samples
    seconds: float | None = None  # that one frame lasts
    streaming: bool = False  # the file takes whole sequences
    name: str | None = None  # what the model is called; the file's name, if left out

    def over(self, base: Request) -> Request:
        """This, and what `base` says where this says nothing."""
        merged: dict[str, Any] = {}
        for item in fields(self):
            ours, theirs = getattr(self, item.name), getattr(base, item.name)
            merged[item.name] = {**theirs, **ours} if isinstance(ours, Mapping) else (ours or theirs)
        return replace(self, **merged)
