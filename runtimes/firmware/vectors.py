"""Test vectors: seeded inputs of a few steps from the start state, and the outputs that the host computes for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgemem.compare import FLOOR, RELATIVE
from edgemem.program import Array, Program
from edgemem.trial import random_inputs

STEPS = 4
MOST_BYTES = 8192  # of flash for all vectors, if one step fits
SEED = 20
EIGHT_BITS = 2.0**-6  # two steps of int8


@dataclass(frozen=True)
class Vectors:
    """Inputs and outputs by step, in the contract's order; `tolerances` per output, 0 where bytes must be equal."""

    inputs: tuple[tuple[Array, ...], ...]
    outputs: tuple[tuple[Array, ...], ...]
    tolerances: tuple[float, ...]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for step in (*self.inputs, *self.outputs) for a in step)


def vectors(program: Program, exact: bool = False, rounded: bool = False) -> Vectors:
    """Vectors of a program; `exact` asks for equal bytes of floats, `rounded` allows for int8 that round elsewhere."""
    contract, rng, state = program.contract, np.random.default_rng(SEED), program.new_state()
    inputs, outputs = [], []
    for _ in range(STEPS):
        chunk = random_inputs(contract, rng)
        for port in contract.inputs:
            if port.role == "valid" and port.range is not None:
                chunk[port.name] = np.full(port.shape, port.range[1], port.dtype)  # padding has no wanted output
        result = program.step(chunk, state)
        inputs.append(tuple(chunk[port.name] for port in contract.inputs))
        outputs.append(tuple(np.array(result[port.name]) for port in contract.outputs))
    one = sum(a.nbytes for a in (*inputs[0], *outputs[0]))
    count = max(1, min(STEPS, MOST_BYTES // one))
    return Vectors(
        tuple(inputs[:count]),
        tuple(outputs[:count]),
        tolerances(outputs[:count], exact, EIGHT_BITS if rounded else RELATIVE),
    )


def tolerances(outputs: list[tuple[Array, ...]], exact: bool, relative: float) -> tuple[float, ...]:
    """What is allowed of each output, over these steps."""
    result = []
    for values in zip(*outputs, strict=True):
        largest = max(float(np.abs(value).max()) for value in values)
        floats = values[0].dtype == np.float32
        result.append(0.0 if exact or not floats else max(FLOOR, relative * largest))
    return tuple(result)
