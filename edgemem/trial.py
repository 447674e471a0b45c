"""Two programs of one model on the same inputs: from the start, from warm states, from random states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgemem.compare import RELATIVE, Comparison
from edgemem.program import Array, Program

if TYPE_CHECKING:
    from edgemem.contract import Contract, InputFacts, StateFacts

FREE_RUN = 0.75  # of the steps go to one long run from the start state, where drift shows
RESTART = 16  # steps from each random state: the next one is another corner of the declared ranges
LOUDEST = 10.0  # standard deviations of noise that full scale takes: about as loud as speech
PARTIAL = 0.2  # of the steps have a short chunk


def trial(
    reference: Program,
    candidate: Program,
    steps: int,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
    relative: float = RELATIVE,
    together: bool = False,
) -> Comparison:
    """Compare outputs and states of two programs over `steps` steps, each program carrying its own state.

    Three quarters of the steps are one run from the start state; the rest starts every 16 steps from a random state
    inside the ranges that the contract declares. With `together` the candidate starts every step from the reference's
    state. What the reference gives in the one long run has to be numbers. Where a torch module and a candidate part by
    more than `relative`, the tolerances take in what rounding alone does to the module (`edgemem.rounding`); no
    candidate has a part in that.
    """
    contract = candidate.contract
    left, right = reference.new_state(), candidate.new_state()
    found, natural = Comparison(relative), True
    for index, (start, inputs) in enumerate(occasions(contract, steps, seed)):
        natural = natural and start is None
        if start is not None:
            left.set(start)
            right.set(start)
        elif together:
            right.set(left.get())
        wanted = {name: np.array(value) for name, value in reference.step(inputs, left).items()}
        came = candidate.step(inputs, right)
        real = real_rows(contract, inputs)
        for name, value in wanted.items():
            found.add(index, name, value[:, :real], came[name][:, :real])
            if natural:
                found.expect_numbers(index, name, value[:, :real])
        after = right.get()
        for name, value in left.get().items():
            found.add(index, f"{name}_out", value, after[name])
            if natural:
                found.expect_numbers(index, f"{name}_out", value)
        tick()
    if not found.holds and found.undefined is None and reference.runtime == "torch" and not together:
        from edgemem.rounding import rounding_errors

        found.allow_rounding(rounding_errors(reference, contract, steps, seed))
    return found


def occasions(contract: Contract, steps: int, seed: int) -> Iterator[tuple[dict[str, Array] | None, dict[str, Array]]]:
    """Of every step of a trial: the states that it starts from (None: those of the step before), and its inputs."""
    rng = np.random.default_rng(seed)
    free = max(1, round(steps * FREE_RUN))
    for index in range(steps):
        restart = index >= free and (index - free) % RESTART == 0
        start = {state.name: random_state(state, rng) for state in contract.states} if restart else None
        yield start, random_inputs(contract, rng)


def random_inputs(contract: Contract, rng: np.random.Generator) -> dict[str, Array]:
    """One chunk: normal features, sound, uniform tokens, now and then fewer real frames than the chunk has."""
    return {port.name: random_input(port, rng) for port in contract.inputs}


def random_input(port: InputFacts, rng: np.random.Generator) -> Array:
    if port.role == "samples":
        return random_sound(port.shape, rng).astype(port.dtype)
    if port.range is None:
        return rng.standard_normal(port.shape).astype(port.dtype)
    low, high = port.range
    if port.role == "valid":
        count = int(rng.integers(low, high + 1)) if rng.random() < PARTIAL else high
        return np.full(port.shape, count, port.dtype)
    return rng.integers(low, high + 1, size=port.shape).astype(port.dtype)


def random_sound(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Noise in [-1, 1], every row [batch, row, ...] as loud as it happens, over 20 dB."""
    loudness = 10 ** -rng.uniform(0, 1, size=(*shape[:2], *[1] * (len(shape) - 2)))
    return np.clip(loudness * rng.standard_normal(shape) / LOUDEST, -1.0, 1.0)


def random_state(state: StateFacts, rng: np.random.Generator) -> Array:
    """A legal random value of one state; counters are whole numbers."""
    low, high = state.range
    values = rng.uniform(low, high, size=state.shape)
    if state.role == "counter" or not state.dtype.startswith("float"):
        values = np.rint(values)
    return values.astype(state.dtype)


def real_rows(contract: Contract, inputs: dict[str, Array]) -> int:
    """Output rows of a step that belong to real frames, where padding can be told from them."""
    port = contract.valid_input
    if port is None or contract.latency.look_ahead:
        return contract.chunk.frames
    return int(inputs[port.name].min())


def poisoned(program: Program, steps: int, seed: int = 0) -> Iterator[tuple[str, Array, Array]]:
    """Outputs and states of a fresh stream, and of one that was filled with NaN and then reset, tensor by tensor."""
    fresh, reset = program.new_state(), program.new_state()
    reset.set({s.name: np.full(s.shape, poison(s.dtype), s.dtype) for s in program.contract.states})
    reset.reset()
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        inputs = random_inputs(program.contract, rng)
        wanted = {name: np.array(value) for name, value in program.step(inputs, fresh).items()}
        for name, value in program.step(inputs, reset).items():
            yield name, wanted[name], np.array(value)
        after = reset.get()
        for name, value in fresh.get().items():
            yield f"{name}_out", value, after[name]


def poison(dtype: str) -> float | int:
    """NaN, or for integers a value far outside any range."""
    return float("nan") if dtype.startswith("float") else int(np.iinfo(dtype).max // 2)
