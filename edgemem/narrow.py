"""States that are stored narrower than they are computed: how a file keeps them, and the float32 view of them.

    quant["policy"]      stored as                                      read as
    f32                  float32                                        itself
    f16                  float16                                        itself
    i16, i8              int16 or int8, scale [channels] by name        stored * scale, along the last axis
    i8+feedback          int8, and the state NAME.error int8            as i8; the error steers the next rounding
    i8+dither            int8, and the state NAME.phase float32         as i8; the phase makes rounding unbiased
    vq                   codes uint8 [..., groups], book [groups, codes, dim] by name     the entries, one after another

`Widened` shows such a program to its float32 parent: the same states, shapes and types.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgemem.contract import Contract, StateFacts
from edgemem.modelfile import ModelFile, start_values
from edgemem.program import Array, Program, StateBlock


def helper(state: StateFacts) -> bool:
    """Whether a state only serves the rounding of another one."""
    return "of" in state.quant


def widened(state: StateFacts, value: Array, constants: Mapping[str, Array]) -> Array:
    """A stored state as float32."""
    if "scale" in state.quant:
        scale = constants[str(state.quant["scale"])].astype(np.float32)
        return np.asarray(value.astype(np.float32) * scale, np.float32)
    if "book" in state.quant:
        book = constants[str(state.quant["book"])].astype(np.float32)  # [groups, codes, dim]
        entries = book[np.arange(len(book)), value]  # [..., groups, dim]
        return np.asarray(entries.reshape(*value.shape[:-1], -1))
    return value.astype(np.float32) if state.dtype.startswith("float") else value


def narrowed(state: StateFacts, value: Array, constants: Mapping[str, Array]) -> Array:
    """A float32 state as it is stored, to the nearest."""
    if "scale" in state.quant:
        scale = constants[str(state.quant["scale"])].astype(np.float32)
        bounds = np.iinfo(state.dtype)
        return np.clip(np.rint(value / scale), bounds.min, bounds.max).astype(state.dtype)
    if "book" in state.quant:
        book = constants[str(state.quant["book"])].astype(np.float32)
        parts = value.reshape(*value.shape[:-1], len(book), -1)
        cost = (book**2).sum(axis=-1) - 2.0 * np.einsum("...gd,gkd->...gk", parts, book)
        return np.asarray(cost.argmin(axis=-1).astype(state.dtype))
    return value.astype(state.dtype)


class WidenedState(StateBlock):
    """The state of a narrow program as its parent has it."""

    def __init__(self, owner: Widened) -> None:
        self.owner, self.inner = owner, owner.program.new_state()

    def get(self) -> dict[str, Array]:
        values = self.inner.get()
        return {s.name: widened(s, values[s.name], self.owner.constants) for s in self.owner.shown}

    def set(self, values: Mapping[str, Array]) -> None:
        narrow = {s.name: narrowed(s, values[s.name], self.owner.constants) for s in self.owner.shown}
        self.inner.set({name: start.copy() for name, start in self.owner.starts.items()} | narrow)

    def reset(self) -> None:
        self.inner.reset()


class Widened(Program):
    """A program with narrow states, seen as its float32 parent."""

    def __init__(self, model: ModelFile, program: Program, parent: Contract) -> None:
        self.runtime, self.program, self.contract = program.runtime, program, parent
        self.weight_bytes = program.weight_bytes
        self.shown = tuple(state for state in model.contract.states if not helper(state))
        named = {str(s.quant[key]) for s in self.shown for key in ("scale", "book") if key in s.quant}
        self.constants = {name: model.onnx.initializers[name].numpy() for name in named}
        self.starts = start_values(model)

    def new_state(self) -> WidenedState:
        return WidenedState(self)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, WidenedState)
        return self.program.step(inputs, state.inner)


def as_parent(model: ModelFile, program: Program, parent: Program) -> Program:
    """A program of a quantized file with the states of its parent, wrapped where they differ."""
    ours = [(s.name, s.shape, s.dtype) for s in model.contract.states]
    theirs = [(s.name, s.shape, s.dtype) for s in parent.contract.states]
    return program if ours == theirs else Widened(model, program, parent.contract)
