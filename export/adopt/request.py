"""What a user says about a foreign file that the file does not say itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

OPTIONS = {
    "sets": "--set", "states": "--state", "inits": "--init", "layouts": "--layout", "tails": "--tail",
    "ranges": "--range", "drops": "--drop", "chunk": "--chunk", "sound": "--sound", "seconds": "--seconds",
    "streaming": "--streaming", "name": "--name",
}  # fmt: skip
NAMED = ("sets", "states", "inits", "layouts", "tails", "ranges")
RECIPE = "the recipe known for this file"


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
    recipes: bool = True  # whether what is known of a recognised file counts
    recipe: Request | None = None  # what of this a recipe said, and not the user

    def over(self, base: Request) -> Request:
        """This, and what the recipe `base` says where this says nothing."""
        mine, theirs = vars(self), vars(base)
        left = {name: {k: v for k, v in theirs[name].items() if k not in mine[name]} for name in NAMED}
        alone = {name: theirs[name] for name in OPTIONS if name not in NAMED and not mine[name]}
        merged = {name: {**left[name], **mine[name]} for name in NAMED}
        added: dict[str, Any] = {**left, **alone}
        changed: dict[str, Any] = {**merged, **alone}
        return replace(self, **changed, recipe=replace(Request(), **added))

    def because(self, option: str, *names: str) -> str:
        """Why something is as one of the options says: the option as a user gives it, or the recipe."""
        said: Any = getattr(self.recipe, option) if self.recipe else None
        known = bool(said) and (not names or any(name in said for name in names))
        return RECIPE if known else OPTIONS[option]
