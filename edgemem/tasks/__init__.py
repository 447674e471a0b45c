"""Tasks: what a model is judged by. Each is one file of this folder, found by its name in `TASKS`.

A task file has two functions:

    evaluate(program, limit=None, tick=...) -> Score    streams the task's packaged excerpt through a program
    refusal(contract) -> str | None                     what the task wants and the model has not, if anything

`evaluate` sees a `Program` and its streams and nothing else, so the same number judges a torch module, an exported
file, a quantized and a compiled one. `limit` takes only that many items of the excerpt, `tick(share)` hears of the
progress.
A name joins by one line in `TASKS`; a model fits or is refused with a sentence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgemem.errors import UsageError
from edgemem.text import nearest

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.program import Program

TASKS = (
    "bytes",  # language modelling: bits per byte of held-out Python source
    "kws",  # keyword spotting: accuracy on clean held-out voices
    "probes",  # memory probes: mean score over those that the model was trained for
    "words",  # connected words: token error rate on clean held-out voices
)

Tick = Callable[[float], None]


@dataclass(frozen=True)
class Score:
    """What a task found: `value` in the unit that `metric` names, and JSON-able `details`."""

    metric: str
    value: float
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def larger_is_better(self) -> bool:
        return not self.metric.endswith(("_per_byte", "_rate"))

    def worse_than(self, other: Score) -> float:
        """By what share of `other`'s value this one is worse; 0 where it is as good."""
        change = (self.value - other.value) / max(abs(other.value), 1e-12)
        return max(0.0, -change if self.larger_is_better else change)


class Task(Protocol):
    """The functions of a task file."""

    def evaluate(self, program: Program, limit: int | None = None, tick: Tick = ...) -> Score: ...
    def refusal(self, contract: Contract) -> str | None: ...


def task(name: str) -> Task:
    """The task called `name`.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    return cast(Task, importlib.import_module(f"edgemem.tasks.{name}"))


def speech_refusal(contract: Contract, labels: Sequence[str], wanted: str) -> str | None:
    """What a task on speech wants and the model of this contract has not: audio in, logits of just `labels` out."""
    source, output = contract.inputs[0], contract.outputs[0]
    if source.frontend is None:
        return f"{wanted}, it takes {source.name} {source.dtype}{list(source.shape[2:])} without an audio front end"
    if output.labels is None or set(output.labels) != set(labels):
        return f"{wanted}, its labels are {', '.join(output.labels or ('none',))[:80]}"
    return None


def quiet(share: float) -> None:
    """A `tick` that tells nobody."""
