"""Probes of memory: small generated tasks, each of which asks one question of what a model remembers.

    probe            asks for                                                   score         chance
    recall           the value that was told with a key, 2, 4 or 8 pairs        accuracy      1/8
    copy             8 symbols in their order, from 32 or 64 frames             accuracy      1/8
    delay            one symbol, 64 .. 16,384 frames ago                        accuracy      1/8
    mackey-glass     a chaotic signal, 15 frames ahead                          1 - NRMSE     0
    narma            a nonlinear moving average of the last 10 inputs           1 - NRMSE     0
    digits           the digit whose 64 pixels went by                          accuracy      1/10
    digits-permuted  the same, the pixels in one fixed shuffled order           accuracy      1/10

A probe is judged at one or several levels (pairs, spread, distance), its score is their mean; all scores run from 0 or
chance to 1. The value of the task is the score of the probe that a model was trained for (`probe` in its
configuration), or, for a name of the zoo with checkpoints for several probes, the mean of theirs.

`bounded` says what a model can reach at best that sees only the last `window` frames: it knows the answers that lie
inside and guesses the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import UsageError
from edgemem.tasks import Score, Tick, digits, quiet, series
from edgemem.tasks.episodes import UNASKED, Array, Episodes, copy, delay, recall
from edgemem.text import nearest

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.program import Program

TEST_SEED, VALID_SEED = 1_000_001, 1_000_002  # training draws from seeds below these
DISTANCES = (64, 256, 1024, 4096, 16_384)

Answer = Callable[[Array], Array]  # x [episodes, time, ...] -> outputs [episodes, time, outputs], each from the start


@dataclass(frozen=True)
class Level:
    """One difficulty: `make(count, seed)` gives `count` episodes, of which a full evaluation takes `episodes`."""

    make: Callable[[int, int], Episodes]
    episodes: int


@dataclass(frozen=True)
class Probe:
    """What goes in (`vocab` symbols, or one number a frame where 0) and comes out (`outputs` labels or numbers)."""

    name: str
    outputs: int
    chance: float
    span: int  # frames that a memory has to reach back, in training
    levels: Mapping[str, Level] = field(repr=False)
    vocab: int = 0

    @property
    def labels(self) -> bool:
        """Whether answers are labels, judged by accuracy; else numbers, judged by NRMSE."""
        return self.outputs > 1


def recall_level(pairs: int) -> Level:
    return Level(partial(recall, pairs=pairs), 64)


def copy_level(spread: int) -> Level:
    return Level(partial(copy, spread=spread), 64)


def delay_level(distance: int) -> Level:
    return Level(partial(delay, distance=distance), 32 if distance <= 4096 else 16)


def digits_level(permuted: bool) -> Level:
    """The packaged images in their order; the seed changes nothing."""

    def make(count: int, seed: int) -> Episodes:
        return digits.episodes(*digits.held_out(), permuted).head(count)

    return Level(make, 360)


PROBES = {
    probe.name: probe
    for probe in (
        Probe("recall", 8, 1 / 8, 48, {f"{n} pairs": recall_level(n) for n in (2, 4, 8)}, vocab=25),
        Probe("copy", 8, 1 / 8, 72, {f"{n} frames": copy_level(n) for n in (32, 64)}, vocab=10),
        Probe("delay", 8, 1 / 8, 128, {f"{n} frames": delay_level(n) for n in DISTANCES}, vocab=17),
        Probe("mackey-glass", 1, 0.0, 48, {"15 ahead": Level(series.mackey_glass_episodes, 16)}),
        Probe("narma", 1, 0.0, 12, {"order 10": Level(series.narma_episodes, 16)}),
        Probe("digits", 10, 1 / 10, 64, {"in order": digits_level(permuted=False)}),
        Probe("digits-permuted", 10, 1 / 10, 64, {"permuted": digits_level(permuted=True)}),
    )
}


def probe(name: str) -> Probe:
    """The probe called `name`.

    Raises:
        UsageError: there is none; the nearest name is suggested.
    """
    if name not in PROBES:
        raise UsageError(f"unknown probe {name!r}{nearest(name, PROBES)}; there are {', '.join(PROBES)}")
    return PROBES[name]


def score(wanted: Probe, y: Array, episodes: Episodes) -> float:
    """Accuracy, or 1 - NRMSE (never below 0), of outputs y [episodes, time, outputs]."""
    if not wanted.labels:
        return max(0.0, 1.0 - series.nrmse(y, episodes.targets))
    here = episodes.targets != UNASKED
    return float(np.mean(y[here].argmax(axis=-1) == episodes.targets[here]))


def bounded(wanted: Probe, episodes: Episodes, window: int) -> float | None:
    """The expected score of a model that knows all of the last `window` frames and nothing before.

    None where no single frame holds the answer, so that nothing can be said.
    """
    distance = episodes.distance[episodes.distance > 0]
    if not distance.size:
        return None
    inside = float(np.mean(distance < window))
    return inside + (1.0 - inside) * wanted.chance


def judged(
    wanted: Probe,
    answer: Answer,
    limit: int | None = None,
    tick: Tick = quiet,
    at_once: int = 64,
    longest: int | None = None,
) -> dict[str, Any]:
    """Scores of every level of a probe, and their mean, on the test episodes (the first `limit` of each level).

    `answer` gets up to `at_once` episodes at a time. Levels of more than `longest` frames are left out.

    Raises:
        UsageError: no level is left.
    """
    episodes = {name: level.make(limited(level, limit), TEST_SEED) for name, level in wanted.levels.items()}
    episodes = {name: e for name, e in episodes.items() if longest is None or e.x.shape[1] <= longest}
    if not episodes:
        raise UsageError(f"{wanted.name} has no level of {longest} frames or fewer; allow longer ones")
    total, done, found = sum(e.targets.size for e in episodes.values()), 0, {}
    for name, here in episodes.items():
        outputs = []
        for first in range(0, len(here), at_once):
            piece = here.x[first : first + at_once]
            outputs.append(answer(piece))
            done += piece.shape[0] * piece.shape[1]
            tick(done / total)
        found[name] = score(wanted, np.concatenate(outputs), here)
    return {"probe": wanted.name, "score": fmean(found.values()), "chance": wanted.chance, "levels": found}


def limited(level: Level, limit: int | None) -> int:
    """Episodes of a level that are judged."""
    return level.episodes if limit is None else min(limit, level.episodes)


def streamed(program: Program) -> Answer:
    """Answers of a program, each episode pushed through a stream from its start."""
    stream = program.stream()

    def answer(x: Array) -> Array:
        outputs = []
        for episode in x:
            stream.reset()
            outputs.append(np.concatenate([stream.push(episode).values, stream.flush().values]))
        return np.stack(outputs)

    return answer


def refusal(contract: Contract) -> str | None:
    """What a probe wants and the model of this contract has not."""
    name = contract.model.config.get("probe")
    if name not in PROBES:
        return f"a model trained for one of the probes {', '.join(PROBES)} was wanted (its setting `probe` says which)"
    wanted, source, output = PROBES[str(name)], contract.inputs[0], contract.outputs[0]
    inputs = ("int64", ()) if wanted.vocab else ("float32", (1,))
    if (source.dtype, tuple(source.shape[2:])) != inputs or tuple(output.shape[2:]) != (wanted.outputs,):
        return (
            f"{name} wants {inputs[0]}{list(inputs[1])} in and {wanted.outputs} numbers out per frame, it has "
            f"{source.dtype}{list(source.shape[2:])} and {list(output.shape[2:])}"
        )
    if wanted.vocab and source.range != (0, wanted.vocab - 1):
        return f"{name} wants symbols from 0 to {wanted.vocab - 1}, it takes those of the range {source.range}"
    return None


def evaluate(program: Program, limit: int | None = None, tick: Tick = quiet) -> Score:
    """The score of the probe that the program was trained for; `limit` takes that many episodes of every level."""
    wanted = probe(str(program.contract.model.config["probe"]))
    found = judged(wanted, streamed(program), limit, tick, at_once=1)
    return Score("mean_score", found["score"], found)
