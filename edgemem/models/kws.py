"""What all keyword spotters share: log-mel rows in, logits of the labels out, averaged over the recent rows.

    x [batch, time, 80]    two stacked frames of 40 log-mels: one row per 20 ms
    scores                 the spotter's own: logits of each row
    average                of the logits, forgetting                       sum, weight

One row of logits per row of input; nothing looks ahead. The average forgets (`forget` < 1), so that a spotter works on
a stream without an end; with `forget` = 1 it is the mean of all rows, for clips.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgemem.audio import FrontEnd
from edgemem.cells.average import RunningAverage
from edgemem.errors import ConfigError
from edgemem.models import at_least
from edgemem.module import Composite, Run
from edgemem.state import Port
from edgemem.tasks.kws import LABELS

SECONDS_PER_ROW = 0.02
STACK = 2


@dataclass(frozen=True)
class SpotterConfig:
    """What every spotter's configuration has."""

    features: int = 80  # per row: STACK frames of features / STACK mel bands
    forget: float = 0.85  # of the averaged logits, per row

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the field that cannot be."""
        at_least(self, features=2 * STACK)
        if not 0.0 < self.forget <= 1.0:
            raise ConfigError(f"forget must be in (0, 1], got {self.forget}; 1 averages the whole input")
        if self.features % STACK:
            raise ConfigError(f"features must be a multiple of {STACK}, got {self.features}")


class Spotter(Composite):
    """x [batch, time, features] to logits [batch, time, 12], averaged over the recent rows.

    `center` and `scale` [features] bring log-mels to about zero mean and unit variance; they are fixed, found on
    training audio, and part of the weights so that every runtime applies them.
    """

    seconds_per_frame = SECONDS_PER_ROW
    center: Tensor
    scale: Tensor

    def __init__(self, config: SpotterConfig) -> None:
        super().__init__()
        self.register_buffer("center", torch.full((config.features,), -6.0))
        self.register_buffer("scale", torch.full((config.features,), 0.25))
        self.average = RunningAverage(len(LABELS), config.forget)
        front_end = FrontEnd(mels=config.features // STACK, stack=STACK)
        self.inputs = (Port("features", (config.features,), frontend=front_end.to_dict()),)
        self.outputs = (Port("logits", (len(LABELS),), role="logits", labels=LABELS),)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        return run("average", self.scores((x - self.center) * self.scale, run))

    def scores(self, x: Tensor, run: Run) -> Tensor:
        """Logits [..., 12] of each normalised row, before they are averaged."""
        raise NotImplementedError(f"{type(self).__name__} declares no scores")
