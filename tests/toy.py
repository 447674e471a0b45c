"""A program in plain NumPy that needs no engine: a running sum with look-ahead, to test what streams do.

    y_t = sum of x_0..x_t, plus x_{t + ahead}      (x is 0 after the end)

It takes segments of `segment` frames, `chunk` of them per step, and emits row t when it has seen frame t + ahead.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgemem.contract import (
    Chunk,
    Contract,
    InputFacts,
    Latency,
    ModelFacts,
    OutputFacts,
    Source,
    StateFacts,
)
from edgemem.program import Array, Program, StateBlock


def contract(
    segment: int = 1, chunk: int = 1, ahead: int = 0, batch: int = 1, seconds: float | None = None, name: str = "toy"
) -> Contract:
    frames = segment * chunk
    inputs = [InputFacts(name="x", shape=(batch, frames, 2), dtype="float32", role="features")]
    if frames > 1 or ahead:
        inputs.append(InputFacts(name="valid", shape=(batch,), dtype="int64", role="valid", range=(0, frames)))
    state = {"dtype": "float32", "start": 0.0, "role": "tail", "range": (-1.0, 1.0), "quant": {"policy": "f32"}}
    states = [StateFacts(name="sum", shape=(batch, 2), **state)]
    if ahead:
        states.append(StateFacts(name="line", shape=(batch, ahead, 2), **state))
        states.append(StateFacts(name="real", shape=(batch, ahead), **state))
    return Contract(
        version=1,
        model=ModelFacts(
            family="toy", name=name, config={}, parameters=0, digest=name, tensors={}, source=Source(kind="module")
        ),
        chunk=Chunk(axis=1, size=chunk, unit="frame", frames_per_unit=segment, seconds_per_unit=seconds),
        inputs=tuple(inputs),
        outputs=(OutputFacts(name="y", shape=(batch, frames, 2), dtype="float32", role="values"),),
        states=tuple(states),
        latency=Latency(look_ahead=ahead, warm_up=ahead, unit="frame"),
        quant={},
        parity=(),
    )


class ToyState(StateBlock):
    def __init__(self, facts: Contract) -> None:
        self.values = {s.name: np.zeros(s.shape, np.float32) for s in facts.states}

    def get(self) -> dict[str, Array]:
        return {name: value.copy() for name, value in self.values.items()}

    def set(self, values: Mapping[str, Array]) -> None:
        self.values = {name: np.array(values[name]) for name in self.values}

    def reset(self) -> None:
        self.values = {name: np.zeros_like(value) for name, value in self.values.items()}


class ToyProgram(Program):
    runtime = "toy"

    def __init__(self, facts: Contract) -> None:
        self.contract = facts

    def new_state(self) -> ToyState:
        return ToyState(self.contract)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, ToyState)
        x = inputs["x"]
        frames, ahead = x.shape[1], self.contract.latency.look_ahead
        valid = inputs.get("valid", np.full(x.shape[0], frames))
        real = (np.arange(frames) < valid[:, None]).astype(np.float32)
        line = np.concatenate([state.values.get("line", x[:, :0]), np.where(real[..., None] > 0, x, 0)], axis=1)
        mask = np.concatenate([state.values.get("real", real[:, :0]), real], axis=1)
        center = line[:, :frames] * mask[:, :frames, None]
        sums = state.values["sum"][:, None] + np.cumsum(center, axis=1, dtype=np.float32)
        state.values["sum"] = sums[:, -1]
        if ahead:
            state.values["line"], state.values["real"] = line[:, frames:], mask[:, frames:]
        return {"y": sums + (line[:, ahead:] if ahead else line)}


def expected(x: Array, ahead: int) -> Array:
    """The whole sequence at once: x [time, 2]."""
    shifted = np.concatenate([x[ahead:], np.zeros((min(ahead, len(x)), 2), np.float32)])
    return np.cumsum(x, axis=0, dtype=np.float32) + shifted
