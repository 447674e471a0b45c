"""What a model declares about itself: the tensors it remembers, reads and writes. No dependencies.

graph input  NAME_in   [batch, *shape]      graph output  NAME_out  [batch, *shape]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StateRole = Literal["recurrent", "cache", "tail", "counter"]
PortRole = Literal["features", "tokens", "samples", "valid", "logits", "values"]
DTYPES = frozenset(
    {"bool", *(f"float{n}" for n in (16, 32, 64)), *(f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64))}
)


@dataclass(frozen=True)
class StateTensor:
    """One remembered tensor: the graph reads `<name>_in` and writes `<name>_out`.

    `start` is the value of every element before the first step, or the name of an attribute of the
    declaring module that holds the start value as a tensor of `shape` (a learned start). `low` and `high`
    bound the random states that verification starts from: any state inside them must be a legal one.
    `wide` marks a state that quantization leaves in float32 (log domain, unbounded sums).
    """

    name: str
    shape: tuple[int, ...]  # of one stream, without the batch axis
    dtype: str = "float32"
    start: float | str = 0.0
    role: StateRole = "recurrent"
    low: float = -1.0
    high: float = 1.0
    wide: bool = False


@dataclass(frozen=True)
class Port:
    """One input or output of a model, per frame: `shape` leaves out the batch and time axes.

    `[batch, time, *shape]` is what `forward` sees. Integer ports carry the valid range `low..high`
    (both included). `frontend` holds the parameters of the feature extraction an input expects
    (`edgemem.audio.FrontEnd.to_dict`), `encoding` how text becomes tokens (`bytes`), `labels` the names
    of an output's classes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    role: PortRole = "features"
    low: int | None = None
    high: int | None = None
    frontend: dict[str, object] | None = None
    encoding: str | None = None
    labels: tuple[str, ...] | None = None
