"""How good is a model on a task: a model of the zoo or a file, streamed through a packaged excerpt.

evaluate("lm-rwkv4", "bytes")        the zoo's module with its shipped weights, run by torch
evaluate("lm.onnx", "bytes")         an exported, quantized or compiled file, run by its runtime
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.errors import InputError
from edgemem.onnxfile import BITS
from edgemem.tasks import Score, Tick, quiet, task

if TYPE_CHECKING:
    from edgemem.program import Program

FRAMES_PER_STEP = 16  # of the torch program; the outputs are the same at any


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
    runtime: str = "ort",
    threads: int = 1,
    limit: int | None = None,
    tick: Tick = quiet,
) -> Evaluation:
    """Judge `model`, a name from `edgemem models` or a file, by the task `name`.

    A zoo model is built with its shipped weights (random ones where none ship) and run by torch; a file is run by
    `runtime`. `limit` takes only that many items of the excerpt.

    Raises:
        UsageError: unknown task or runtime.
        ConfigError: no file and no model of that name.
        InputError: the model's inputs and outputs do not fit the task.
    """
    wanted = task(name)
    program = program_of(model, runtime, threads)
    return judged(program, str(model), name, wanted.evaluate(fitting(program, name), limit, tick))


def program_of(model: str | Path, runtime: str = "ort", threads: int = 1) -> Program:
    """A file in its runtime, or a model of the zoo in torch."""
    path = Path(model)
    if path.exists() or path.suffix or len(path.parts) > 1:
        from edgemem.program import load

        return load(path, runtime=runtime, threads=threads)
    from edgemem.export import torch_program

    program = torch_program(str(model), FRAMES_PER_STEP)
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
    states = program.contract.states
    state_bytes = sum(math.prod(state.shape) * BITS[state.dtype] // 8 for state in states)
    return Evaluation(model, program.runtime, name, score, state_bytes, program.weight_bytes)
