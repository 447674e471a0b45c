"""Keyword spotter: gated recurrent units over pairs of log-mel frames; the usual small spotter, to compare with.

    x [batch, time, 80]    two stacked frames of 40 log-mels: one row per 20 ms
    layers                 GRU, one after another                    hidden
    head                   logits, averaged over the recent rows     sum, weight

Zhang, Suda, Lai & Chandra, "Hello Edge: Keyword Spotting on Microcontrollers", 2017, has it among its models. Input
and head are those of `kws-lmuformer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgemem.cells.gru import GatedRecurrentUnit
from edgemem.models import ModelSpec, at_least
from edgemem.models.kws import Spotter, SpotterConfig
from edgemem.module import Run
from edgemem.tasks.kws import LABELS


@dataclass(frozen=True)
class KWSGRUConfig(SpotterConfig):
    """Sizes of `kws-gru`."""

    layers: int = 2
    width: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, layers=1, width=1)


class KWSGRU(Spotter):
    """x [batch, time, features] to logits [batch, time, 12]."""

    def __init__(self, config: KWSGRUConfig) -> None:
        super().__init__(config)
        sizes = [config.features, *[config.width] * config.layers]
        self.layers = nn.ModuleList(GatedRecurrentUnit(sizes[i], config.width) for i in range(config.layers))
        self.head = nn.Linear(config.width, len(LABELS))

    def scores(self, x: Tensor, run: Run) -> Tensor:
        for index in range(len(self.layers)):
            x = run(f"layers.{index}", x)
        y: Tensor = self.head(x)
        return y


MODELS = (
    ModelSpec(
        name="kws-gru",
        family="gru",
        paper="Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014 (arXiv:1406.1078)",
        summary="Keyword spotter on 16 kHz audio: two gated recurrent layers, ten words, unknown and silence",
        config=KWSGRUConfig,
        build=KWSGRU,
        checkpoint="kws-gru.safetensors",
    ),
)
