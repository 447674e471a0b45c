"""Models that many people have, and what their own wrappers know that their files do not say.

An entry is recognised by the names, dtypes and shapes of the file's inputs and outputs (None is a dynamic axis).
What the user says goes before what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
MODELS = (
    Known(
        "Silero VAD at 16 kHz",
        SILERO_SOURCE,
        {
            "input": ("FLOAT", (None, None)),
            "state": ("FLOAT", (2, None, 128)),
            "sr": ("INT64", ()),
        },
        ("output", "stateN"),
        SILERO,
    ),
)


def recognised(graph: ir.Graph) -> Known | None:
    """The entry that a graph fits, if there is one."""
    inputs = {
        value.name: (
            value.dtype.name if value.dtype else "",
            tuple(s if isinstance(s, int) else None for s in value.shape or ()),
        )
        for value in graph.inputs
    }
    outputs = tuple(value.name for value in graph.outputs)
    return next((known for known in MODELS if dict(known.inputs) == inputs and known.outputs == outputs), None)
