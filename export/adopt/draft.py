"""A foreign model on its way through adoption, and what was decided of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgemem.export.adopt.axes import Axes
from edgemem.export.adopt.detect import Found
from edgemem.export.adopt.flow import Carried
from edgemem.export.adopt.request import OPTIONS, Request
from edgemem.export.adopt.streaming import Streamed

DOUBTFUL = "doubtful"  # how sure something is that was said against what the file says


@dataclass(frozen=True)
class Decision:
    """One thing that adoption took for granted: about what, which, how sure, and why."""

    what: str
    value: str
    certainty: str
    reason: str


@dataclass
class Draft:
    """A foreign model on its way: what is known of it so far."""

    path: Path
    model: ir.Model
    request: Request
    decisions: list[Decision] = field(default_factory=list)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # symbols of axes, by input or output
    outputs: list[str] = field(default_factory=list)  # foreign names, in order
    constants: dict[str, Any] = field(default_factory=dict)
    streamed: Streamed | None = None  # of a file of whole sequences

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def say(self, what: str, value: str, certainty: str, reason: str) -> None:
        self.decisions.append(Decision(what, value, certainty, reason))

    def because(self, option: str, name: str, found: Axes | Found) -> str:
        """The reason of a finding; where an option was it, whether a user or a recipe has given it."""
        return self.request.because(option, name) if found.reason == OPTIONS[option] else found.reason

    @property
    def carried(self) -> tuple[Carried, ...]:
        """The states that streaming added."""
        return () if self.streamed is None else self.streamed.carried

    def results(self) -> dict[str, ir.Value]:
        """The graph's results by their foreign names."""
        return dict(zip(self.outputs, self.graph.outputs, strict=True))

    def entries(self) -> dict[str, ir.Value]:
        return {value.name or "": value for value in self.graph.inputs}
