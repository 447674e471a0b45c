"""Instructions of a step before anything is built: what its kernels do (`work.py`) times what that costs on the core.

    instructions = start + sum over kernel calls of sum over terms of count x price

Prices are fitted to counts of emulated boards, one table per core, with and without an FPU; `costs.json` holds them
with the models that they were fitted to and the largest error of a step of a model that was left out of the fit.
`python -m bench.boards` counts and fits. An instruction of these cores takes one cycle or more: a time by the clock
is the least that a step takes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from edgemem.boards import Board

FILE = "costs.json"
START = "start"  # of a step: checks, and the driver's calls
OTHER = "other"  # stands for an integer kernel that no table knows
# Cores that run the same instructions as one that has an emulator here.
LIKE = {"cortex-m0plus": "cortex-m0", "cortex-m33": "cortex-m4"}


@dataclass(frozen=True)
class Prediction:
    """Of one step; `error` is the share by which the count of a step may differ, as it was found when prices were."""

    instructions: float
    error: float
    fitted_on: str
    clock_hz: int
    seconds: float  # at one instruction a cycle, the least
    load: float | None  # of the core, where a step stands for a time


def key_of(board: Board, integer: bool) -> str:
    """The table of a board: its core, whether floats are integer programs there, and the kind of kernels."""
    core = LIKE.get(board.core, board.core)
    soft = board.float_abi == "soft" or board.abi == "ilp32"
    return f"{core}{' soft' if soft else ''} {'integer' if integer else 'float'}"


def tables() -> dict[str, Any]:
    """All prices, by key."""
    text = resources.files("edgemem.runtimes.firmware").joinpath(FILE).read_text()
    found: dict[str, Any] = json.loads(text)["cores"]
    return found


def instructions(work: Sequence[Mapping[str, float]], prices: Mapping[str, float]) -> float:
    """Of one step."""
    return prices.get(START, 0.0) + sum(count * price(term, prices) for call in work for term, count in call.items())


def price(term: str, prices: Mapping[str, float]) -> float:
    """Of one term; an integer kernel that was not there when prices were fitted costs what the dearest of them does."""
    if term in prices:
        return prices[term]
    kind, dot, what = term.partition(".")
    return 0.0 if kind in prices else prices.get(f"{OTHER}{dot}{what}", 0.0)


def predicted(
    board: Board, integer: bool, work: Sequence[Mapping[str, float]], seconds_per_step: float | None
) -> Prediction | None:
    """Of a step on a board; None where no emulated board has its core."""
    key = key_of(board, integer)
    table = tables().get(key)
    if table is None or board.clock_hz is None:
        return None
    count = instructions(work, table["prices"])
    seconds = count / board.clock_hz
    load = seconds / seconds_per_step if seconds_per_step else None
    return Prediction(round(count), table["error"], table["board"], board.clock_hz, seconds, load)


def facts(prediction: Prediction | None) -> dict[str, Any] | None:
    """For the manifest."""
    return None if prediction is None else asdict(prediction)
