"""How far rounding alone takes a torch module from its exact values, over the steps of a trial.

    exact   the module in float64, carrying its own state
    runs    the module in float32, RUNS times; in each, inputs and states of every step are moved by up to one unit in
            their last place, as a sum in another order would move them

Some steps make errors larger for a while: the normalisation of a vector that nearly vanishes, sharp attention between
slots that are nearly alike. There, two programs without a fault part by more than 1e-5, and torch is as far from the
exact values as the other one.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np

from edgemem.compare import Comparison
from edgemem.program import Array, Program, StateBlock
from edgemem.reference import TorchProgram
from edgemem.trial import occasions, real_rows

if TYPE_CHECKING:
    from edgemem.contract import Contract

RUNS = 4
LAST_PLACE = float(np.finfo(np.float32).eps)


def rounding_errors(reference: Program, contract: Contract, steps: int, seed: int = 0) -> dict[str, float]:
    """The largest |float32 - float64| of every output and `NAME_out`, in the occasions of the trial of this seed.

    `reference` is a torch program (`edgemem.reference`). Empty for a module that cannot run in float64, since parts of
    it are float32 by name.
    """
    assert isinstance(reference, TorchProgram)
    exact = TorchProgram(copy.deepcopy(reference.module).double(), reference.contract)
    truth, runs = exact.new_state(), [reference.new_state() for _ in range(RUNS)]
    rng, found = np.random.default_rng(seed), Comparison()
    for index, (start, inputs) in enumerate(occasions(contract, steps, seed)):
        if start is not None:
            for state in (truth, *runs):
                state.set(start)
        try:
            wanted = exact.step(inputs, truth)
        except RuntimeError:  # torch's word for tensors of two types
            return {}
        real, after = real_rows(contract, inputs), truth.get()
        for state in runs:
            for name, value in moved_step(reference, inputs, state, rng).items():
                found.add(index, name, wanted[name][:, :real], value[:, :real])
            for name, value in state.get().items():
                found.add(index, f"{name}_out", after[name], value)
    return {name: tensor.max_abs_error for name, tensor in found.tensors.items()}


def moved_step(
    program: Program, inputs: dict[str, Array], state: StateBlock, rng: np.random.Generator
) -> dict[str, Array]:
    """One step from inputs and states that are moved."""
    state.set({name: moved(value, rng) for name, value in state.get().items()})
    return program.step({name: moved(value, rng) for name, value in inputs.items()}, state)


def moved(value: Array, rng: np.random.Generator) -> Array:
    """Floats by up to one unit in their last place, to either side; integers as they are."""
    if value.dtype.kind != "f":
        return value
    return (value * (1 + LAST_PLACE * rng.uniform(-1, 1, value.shape))).astype(value.dtype)
