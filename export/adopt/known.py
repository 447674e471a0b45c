"""Models that many people have, and what their own wrappers know that their files do not say.

An entry is recognised by the names, dtypes and shapes of the file's inputs and outputs (None is any size, or none).
What the user says goes before what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from edgemem.export.adopt.request import Request

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Known:
    """A model by its inputs and outputs, and how its makers run it."""

    title: str
    source: str
    inputs: Mapping[str, tuple[str, Shape]]
    outputs: tuple[str, ...]
    request: Request = field(default_factory=Request)


# Its wrapper cuts sound of 16 kHz into 512 samples, and puts the last 64 of the samples before in front of them.
SILERO_SOURCE = "silero-vad, src/silero_vad/utils_vad.py, OnnxWrapper"
SILERO = Request(
    sets={"input.0": "1", "input.1": "576", "state.1": "1", "sr": "16000"},
    layouts={"input": "BF", "output": "BF", "state": "FBF"},
    tails={"input": 64},
    ranges={"state": (-1.0, 1.0)},
    sound=16_000,
    name="silero-vad",
)
SILERO_INPUTS: dict[str, tuple[str, Shape]] = {"input": ("FLOAT", (None, None)), "state": ("FLOAT", (2, None, 128))}
RATE: dict[str, tuple[str, Shape]] = {"sr": ("INT64", ())}
TITLE = "Silero VAD at 16 kHz"
MODELS = (
    Known(TITLE, SILERO_SOURCE, SILERO_INPUTS | RATE, ("output", "stateN"), SILERO),
    Known(TITLE, SILERO_SOURCE, SILERO_INPUTS, ("output", "stateN"), SILERO),
)


def recognised(graph: ir.Graph, said: Mapping[str, str]) -> tuple[Known, Request] | None:
    """The entry that a graph fits, if there is one, and what of it neither the graph nor the user (`said`) says."""
    inputs = {value.name or "": value for value in graph.inputs}
    outputs = tuple(value.name for value in graph.outputs)
    for known in MODELS:
        if set(known.inputs) != set(inputs) or known.outputs != outputs:
            continue
        if all(fits(inputs[name], *known.inputs[name]) for name in inputs):
            sets = {k: v for k, v in known.request.sets.items() if k in inputs or is_open(inputs, k, said)}
            return known, replace(known.request, sets=sets)
    return None


def fits(value: ir.Value, dtype: str, shape: Shape) -> bool:
    """Whether an input is of a dtype and shape."""
    sizes = list(value.shape or ())
    wanted = zip(sizes, shape, strict=False)
    return (
        value.dtype is not None
        and value.dtype.name == dtype
        and len(sizes) == len(shape)
        and all(b is None or a == b for a, b in wanted)
    )


def is_open(inputs: Mapping[str, ir.Value], key: str, said: Mapping[str, str]) -> bool:
    """Whether INPUT.AXIS names an axis without a size, and the user has given none to its symbol."""
    name, _, axis = key.rpartition(".")
    if name not in inputs:
        return False
    size = (inputs[name].shape or ())[int(axis)]
    return isinstance(size, ir.SymbolicDim) and str(size.value) not in said
