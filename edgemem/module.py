"""Streaming modules: one set of weights, run frame by frame, chunk by chunk, or whole.

    step    y_t, state = step(x_t, state)            x_t [batch, *features]
    chunk   y, state   = chunk(x, state, valid)      x   [batch, time, *features], from any state
    forward y          = forward(x)                  x   [batch, time, *features], from the start state

A cell declares its `StateTensor`s in `state` and writes `step`; `chunk` and `forward` follow from it, unless
the cell has a faster parallel form. A `Composite` writes its data flow once and gets all three. State is an
argument and a result, never an attribute: a `dict[str, Tensor]` under dotted names (`blocks.3.att.wkv_num`).

`valid` [batch] int64 is the number of real frames at the front of a chunk: the rest is padding that must not
advance the state. Segment models (`segment_length > 1`) take a segment [batch, segment_length, *features] per step,
as `step(segment, state, valid)`, and `valid` counts frames there too. A model with `look_ahead` frames
emits the output of frame t when it has seen frame t + look_ahead: its first `look_ahead` output rows
precede the stream and are dropped, and steps with `valid` = 0 push the last ones out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.errors import ConfigError
from edgemem.state import Port, StateTensor

State = dict[str, Tensor]
Frames = Any  # a Tensor, or a dict of them by input name for a model with several inputs
Run = Callable[[str, Tensor], Tensor]


class StreamingModule(nn.Module):
    """Base of the zoo's cells and models; a user's `nn.Module` with `state` and `step` works without it."""

    state: tuple[StateTensor, ...] = ()
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    unit: str = "frame"  # frame, token, sample or segment: what `chunk` counts
    segment_length: int = 1  # frames a step takes
    look_ahead: int = 0  # frames between an output and the last input it depends on
    seconds_per_frame: float | None = None

    def start(self, batch: int = 1) -> State:
        """State before the first step, by dotted name, each [batch, *shape]."""
        return start_state(self, batch)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one frame: x [batch, *features] (one segment for segment models)."""
        raise NotImplementedError(f"{type(self).__name__} declares no step")

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Advance by the frames of x [batch, time, *features], of which the first `valid` are real."""
        return unrolled(self, x, state, valid)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of the whole sequence x [batch, time, *features], from the start state."""
        return whole_sequence(self, x)


class Composite(StreamingModule):
    """A module made of streaming parts and of layers that act on the last axis alone.

    `flow(x, run)` is written once; `run("blocks.0.att", x)` passes x through a streaming part in the form
    that is being asked for, its state threaded by name. `valid` is the parts' concern: the layers between act on
    each frame alone.
    """

    def flow(self, x: Tensor, run: Run) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} declares no flow")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._thread(x, state, lambda part, u, s: part.step(u, s))

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        return self._thread(x, state, lambda part, u, s: chunk(part, u, s, valid))

    def forward(self, x: Tensor) -> Tensor:
        return self.flow(x, lambda name, u: self.get_submodule(name)(u))

    def _thread(
        self, x: Tensor, state: State, advance: Callable[[Any, Tensor, State], tuple[Tensor, State]]
    ) -> tuple[Tensor, State]:
        after: State = {}

        def run(name: str, u: Tensor) -> Tensor:
            y, part_state = advance(self.get_submodule(name), u, part(state, name))
            after.update(prefixed(name, part_state))
            return y

        y = self.flow(x, run)
        return y, {name: after[name] for name in state}  # the declared order


def part(state: Mapping[str, Tensor], name: str) -> State:
    """The states of the part `name`, under the names that the part itself uses."""
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def prefixed(name: str, state: Mapping[str, Tensor]) -> State:
    """The inverse of `part`."""
    return {f"{name}.{key}": value for key, value in state.items()}


def declared_states(module: nn.Module) -> dict[str, StateTensor]:
    """All states of a module and its parts, by dotted name, in the order of the module tree.

    Raises:
        ConfigError: two states share a name, or `state` holds something else.
    """
    found: dict[str, StateTensor] = {}
    for path, child in module.named_modules():
        for tensor in getattr(child, "state", ()):
            if not isinstance(tensor, StateTensor):
                raise ConfigError(
                    f"{path or type(module).__name__}.state: a StateTensor was wanted, {type(tensor).__name__} came; "
                    "declare each state as StateTensor(name, shape)"
                )
            name = f"{path}.{tensor.name}" if path else tensor.name
            if name in found:
                raise ConfigError(f"state {name} is declared twice; give each state of a module its own name")
            found[name] = tensor
    return found


def state_bytes(module: nn.Module) -> int:
    """Bytes of all states of one stream, as the module declares them."""
    states = declared_states(module).values()
    return sum(math.prod(state.shape) * getattr(torch, state.dtype).itemsize for state in states)


def start_state(module: nn.Module, batch: int = 1) -> State:
    """State before the first step: each [batch, *shape], floats in the dtype of the module's parameters."""
    floating = floating_dtype(module)
    state: State = {}
    for name, tensor in declared_states(module).items():
        dtype = floating if tensor.dtype.startswith("float") else getattr(torch, tensor.dtype)
        state[name] = start_value(module, name, tensor).to(dtype).expand(batch, *tensor.shape).clone()
    return state


def start_value(module: nn.Module, name: str, tensor: StateTensor) -> Tensor:
    """The start value of one state, of the state's shape; `name` is its dotted name."""
    if not isinstance(tensor.start, str):
        return torch.full(tensor.shape, tensor.start, dtype=torch.float64)
    owner = module.get_submodule(name.rpartition(".")[0])
    start: Tensor = getattr(owner, tensor.start).reshape(tensor.shape)
    return start


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of the module's first floating-point parameter or buffer; float32 if it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def segment_length(module: nn.Module) -> int:
    """Frames that one `step` of the module takes."""
    return int(getattr(module, "segment_length", 1))


def chunk(module: nn.Module, x: Frames, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
    """`module.chunk` where it has one, its `step` unrolled where not."""
    form: Callable[..., tuple[Tensor, State]] | None = getattr(module, "chunk", None)
    return unrolled(module, x, state, valid) if form is None else form(x, state, valid)


def each(x: Frames, change: Callable[[Tensor], Tensor]) -> Frames:
    """`change` applied to x, or to every tensor of a model with several inputs."""
    return {name: change(u) for name, u in x.items()} if isinstance(x, dict) else change(x)


def extent(x: Frames) -> tuple[int, int]:
    """Batch and time of x."""
    first = next(iter(x.values())) if isinstance(x, dict) else x
    return first.shape[0], first.shape[1]


def unrolled(module: nn.Module, x: Frames, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
    """The chunk form of any module: its steps one after another, padding frames leaving the state alone.

    Segment models get `valid` cut to each segment and mask inside it themselves.
    """
    length, rows = segment_length(module), []
    step: Callable[..., tuple[Tensor, State]] = module.step  # type: ignore[assignment]
    for start in range(0, extent(x)[1], length):
        if length > 1:
            here = None if valid is None else (valid - start).clamp(0, length)
            y, state = step(span(x, start, length), state, here)
            rows.append(y)
            continue
        y, after = step(frame(x, start), state)
        state = after if valid is None else {k: kept(valid > start, v, state[k]) for k, v in after.items()}
        rows.append(y[:, None])
    return torch.cat(rows, dim=1), state


def kept(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in the rows of the batch where `mask` [batch] holds, `old` elsewhere."""
    return torch.where(mask.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def whole_sequence(module: nn.Module, x: Frames) -> Tensor:
    """Outputs of x [batch, time, *features] from the start state, by the chunk form."""
    return scan(module, x)[0]


def scan(
    module: nn.Module, x: Frames, state: State | None = None, sizes: Iterable[int] | None = None
) -> tuple[Tensor, State]:
    """Stream x [batch, time, *features] through the chunk form, cut into `sizes` frames (the last one repeats).

    Gives the outputs of all frames, look-ahead flushed at the end, and the state after them. Sizes of
    segment models are whole segments. An incomplete last chunk is padded with NaN (zeros for integers),
    so that a leak of the padding shows, and masked by `valid`.
    """
    (batch, time), length, ahead = extent(x), segment_length(module), int(getattr(module, "look_ahead", 0))
    state = start_state(module, batch) if state is None else state
    cuts = iter(sizes) if sizes is not None else iter(())
    size, rows, read = next(cuts, -(-max(time, 1) // length) * length), [], 0
    while read < time + ahead:
        real = max(0, min(size, time - read))
        piece = span(x, read, size)
        valid = None if real == size else torch.full((batch,), real, dtype=torch.int64)
        y, state = chunk(module, piece, state, valid)
        rows.append(y)
        read += size
        size = next(cuts, size)
    return torch.cat(rows, dim=1)[:, ahead : ahead + time], state


def frame(x: Frames, index: int) -> Frames:
    """Frame `index` of x [batch, time, *features]: [batch, *features]."""
    return each(x, lambda u: u[:, index])


def span(x: Frames, start: int, time: int) -> Frames:
    """`time` frames of x from `start` on, padded where x ends."""
    return each(x, lambda u: padded(u[:, start : start + time], time))


def padded(x: Tensor, time: int) -> Tensor:
    """x [batch, n, *features] made `time` long with NaN, or with zeros if it is of integers."""
    if x.shape[1] == time:
        return x
    filler = float("nan") if x.is_floating_point() else 0
    return torch.cat([x, x.new_full((x.shape[0], time - x.shape[1], *x.shape[2:]), filler)], dim=1)
