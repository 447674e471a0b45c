"""How good is a model on a task: a model of the zoo or a file, streamed through a packaged excerpt.

evaluate("lm-rwkv4", "bytes")        the zoo's module with its shipped weights, run by torch
evaluate("lm.onnx", "bytes")         an exported, quantized or compiled file, run by its runtime
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from edgemem.errors import InputError
from edgemem.tasks import Score, Tick, quiet, task

if TYPE_CHECKING:
    from edgemem.program import Program

FRAMES_PER_STEP = 64  # of the torch program; the outputs are the same at any


@dataclass(frozen=True)
class Evaluation:
    """A score and what it was reached with; `state_bytes` are of one stream."""

    model: str
    runtime: str
    task: str
    score: Score
    state_bytes: int
    weight_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The shape that scripts rely on."""
        return {
            "task": self.task,
            "metric": self.score.metric,
            "value": self.score.value,
            "state_bytes": self.state_bytes,
            "weight_bytes": self.weight_bytes,
            "model": self.model,
            "runtime": self.runtime,
            "details": self.score.details,
        }


def evaluate(
    model: str | Path,
    name: str,
    runtime: str | None = None,
    threads: int = 1,
    limit: int | None = None,
    tick: Tick = quiet,
) -> Evaluation:
    """Judge `model`, a name from `edgemem models` or a file, by the task `name`.

    A zoo model is built with its shipped weights (random ones where none ship) and run by torch; a file is run by
    `runtime`, by default `ort`, or `aot` for a compiled folder. `limit` takes only that many items of the excerpt.
    Where a zoo model ships in several forms and none is its default, each is judged: the value is their mean, the state
    that of the largest, and the weights those of all.

    Raises:
        UsageError: unknown task or runtime.
        ConfigError: no file and no model of that name.
        InputError: the model's inputs and outputs do not fit the task.
    """
    wanted, forms, found = task(name), forms_of(model), []
    for done, form in enumerate(forms):
        program = fitting(program_of(model, runtime, threads, form), name)
        score = wanted.evaluate(program, limit, part_of(tick, done, len(forms)))
        found.append(judged(program, str(model), name, score))
    return found[0] if len(found) == 1 else together(found)


def part_of(tick: Tick, done: int, count: int) -> Tick:
    """A tick for one of `count` parts, after `done` others."""
    return lambda share: tick((done + share) / count)


def forms_of(model: str | Path) -> Sequence[Mapping[str, object]]:
    """The settings of the forms to judge: those that ship of a model that has no checkpoint of its default form."""
    from edgemem.models import specs

    found = None if is_file(model) else specs().get(str(model))
    return ({},) if found is None or found.checkpoint else tuple(found.forms.values()) or ({},)


def together(found: Sequence[Evaluation]) -> Evaluation:
    """The evaluations of a model's forms as one."""
    score = Score(
        found[0].score.metric,
        fmean(one.score.value for one in found),
        {"forms": [{"value": one.score.value, **one.score.details} for one in found]},
    )
    largest, total = max(one.state_bytes for one in found), sum(one.weight_bytes for one in found)
    return replace(found[0], score=score, state_bytes=largest, weight_bytes=total)


def is_file(model: str | Path) -> bool:
    """Whether `model` names a file, not a model of the zoo."""
    path = Path(model)
    return path.exists() or bool(path.suffix) or len(path.parts) > 1


def program_of(
    model: str | Path, runtime: str | None = None, threads: int = 1, settings: Mapping[str, object] | None = None
) -> Program:
    """A file in its runtime, or a model of the zoo at its `settings` in torch."""
    if is_file(model):
        from edgemem.program import load

        return load(model, runtime=runtime, threads=threads)
    from edgemem.export import torch_program

    program = torch_program(str(model), FRAMES_PER_STEP, settings)
    import torch

    torch.set_num_threads(threads)
    return program


def fitting(program: Program, name: str) -> Program:
    """The program, where its contract fits the task.

    Raises:
        InputError: saying what the task wants and what the model has.
    """
    contract = program.contract
    reason = task(name).refusal(contract)
    if reason is None and contract.batch != 1:
        reason = f"one stream per step is wanted, the file was exported for {contract.batch}"
    if reason is not None:
        raise InputError(f"task {name}: {contract.model.name} does not fit: {reason}")
    return program


def judged(program: Program, model: str, name: str, score: Score) -> Evaluation:
    """The score with the sizes of the program that reached it."""
    return Evaluation(model, program.runtime, name, score, program.contract.state_bytes, program.weight_bytes)
