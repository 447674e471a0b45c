"""Instructions and cycles of a step before anything is built: what its kernels do (`work.py`) times what that costs.

    instructions = start + sum over kernel calls of sum over terms of count x price
    cycles       = instructions x [least, most] of an instruction of such a step, and waits for flash in the most

Prices are fitted to counts of emulated boards, one table per core, with and without an FPU; `costs.json` holds them
with the models that they were fitted to and the largest error of a step of a model that was left out of the fit, and
of one with a kernel that the fit had not seen (`python -m bench.boards` counts and fits). `cycles.json` holds what an
instruction takes by the vendors' tables of timings (`python -m bench.cycles`). No emulator counts cycles, so these are
bounds and no measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from edgemem.boards import Board

FILE, CYCLES = "costs.json", "cycles.json"
START = "start"  # of a step: checks, and the driver's calls
OTHER = "other"  # stands for an integer kernel that no table knows
# Cores that run the same instructions as one that has an emulator here.
LIKE = {"cortex-m0plus": "cortex-m0", "cortex-m33": "cortex-m4"}


@dataclass(frozen=True)
class Time:
    """Of a step at one clock, the least and the most; `load` of the core, where a step stands for a time."""

    clock_hz: int
    seconds: tuple[float, float]
    load: tuple[float, float] | None
    keeps_up: bool | None  # with real time; None where that is not sure, or there is no such time


@dataclass(frozen=True)
class Prediction:
    """Of one step; `error` is the share by which the count of a step may differ, as it was found when prices were."""

    instructions: float
    error: float
    fitted_on: str
    cycles: tuple[float, float] | None  # None: nothing is published of the core
    cycles_source: str | None
    times: tuple[Time, ...]  # at the clock of the board, and at that which the firmware starts with if it is another


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
    """Of one term; an integer kernel that was not there when prices were fitted costs what most of them do."""
    if term in prices:
        return prices[term]
    kind, dot, what = term.partition(".")
    return 0.0 if kind in prices else prices.get(f"{OTHER}{dot}{what}", 0.0)


def unknown(work: Sequence[Mapping[str, float]], prices: Mapping[str, float]) -> bool:
    """Whether a step has a kernel that no price is known of."""
    return any(term.partition(".")[0] not in prices for call in work for term in call)


def error_of(work: Sequence[Mapping[str, float]], entry: Mapping[str, Any]) -> float:
    """The share by which the count of such a step may differ."""
    return float(entry["error_of_unknown_kernels" if unknown(work, entry["prices"]) else "error"])


def predicted(
    board: Board, integer: bool, work: Sequence[Mapping[str, float]], seconds_per_step: float | None
) -> Prediction | None:
    """Of a step on a board; None where no emulated board has its core."""
    key = key_of(board, integer)
    table = tables().get(key)
    if table is None or board.clock_hz is None:
        return None
    count, error = instructions(work, table["prices"]), error_of(work, table)
    kind = timings().get(f"{board.core} {'integer' if integer else 'float'}")
    if kind is None:
        return Prediction(round(count), error, table["board"], None, None, ())
    least, most = kind["low"] * count / (1 + error), kind["high"] * count / (1 - error)
    clocks = dict.fromkeys((board.clock_hz, board.start_clock_hz or board.clock_hz))
    waits = count / (1 - error) * waits_for_flash(board, kind["bytes"])
    times = tuple(time_of(hz, least, most + (waits if hz == board.clock_hz else 0), seconds_per_step) for hz in clocks)
    return Prediction(round(count), error, table["board"], (round(least), round(most)), kind["source"], times)


def timings() -> dict[str, Any]:
    """Cycles of an instruction, by core and kind of kernels."""
    text = resources.files("edgemem.runtimes.firmware").joinpath(CYCLES).read_text()
    found: dict[str, Any] = json.loads(text)["cores"]
    return found


def waits_for_flash(board: Board, nbytes: float) -> float:
    """Cycles that an instruction of `nbytes` waits at most: where no line of flash is there before it is asked for."""
    if board.flash_wait_states is None or board.flash_line_bytes is None:
        return 0.0
    return board.flash_wait_states * nbytes / board.flash_line_bytes


def time_of(clock_hz: int, least: float, most: float, seconds_per_step: float | None) -> Time:
    """The time of so many cycles, and whether it is less than the time that a step stands for."""
    seconds = (least / clock_hz, most / clock_hz)
    if not seconds_per_step:
        return Time(clock_hz, seconds, None, None)
    load = (seconds[0] / seconds_per_step, seconds[1] / seconds_per_step)
    return Time(clock_hz, seconds, load, True if load[1] <= 1 else False if load[0] > 1 else None)


def facts(prediction: Prediction | None) -> dict[str, Any] | None:
    """For the manifest."""
    return None if prediction is None else asdict(prediction)
