"""What `edgemem verify --board` says of a microcontroller beyond the comparison that every program gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgemem.program import Program
from edgemem.runtimes.firmware.emulator import COUNTED_STEPS, BoardProgram
from edgemem.trial import random_inputs


@dataclass(frozen=True)
class Proof:
    """`byte_equal`: outputs and states of a free run are the bytes that this machine gives."""

    byte_equal: bool
    first_difference: str | None
    instructions_per_step: float


def proof(
    program: BoardProgram, host: Program, steps: int, seed: int = 0, tick: Callable[[], None] = lambda: None
) -> Proof:
    """Run firmware from the start state beside a program of this machine; count its instructions."""
    first = first_difference(program, host, steps, seed, tick)
    count, _ = program.instructions(COUNTED_STEPS)
    return Proof(first is None, first, round(count, 1))


def first_difference(
    program: Program, host: Program, steps: int, seed: int, tick: Callable[[], None] = lambda: None
) -> str | None:
    """The first tensor and step in which two programs, each with its own state, differ in any byte."""
    rng, here, there = np.random.default_rng(seed), host.new_state(), program.new_state()
    found: str | None = None
    for index in range(steps):
        tick()
        if found is not None:
            continue
        inputs = random_inputs(program.contract, rng)
        wanted = {name: np.array(value) for name, value in host.step(inputs, here).items()}
        came = dict(program.step(inputs, there))
        wanted |= {f"{name}_out": value for name, value in here.get().items()}
        came |= {f"{name}_out": value for name, value in there.get().items()}
        names = (name for name, value in wanted.items() if value.tobytes() != came[name].tobytes())
        found = next((f"{name} at step {index}" for name in names), None)
    return found
