"""Keyword spotter: a small audio-spectrogram Transformer that streams; what attention costs, to compare with.

    x [batch, time, 80]    two stacked frames of 40 log-mels: one patch per 20 ms, all bands in it
    embed                  linear
    encoder                `layers` x (attention to `left` rows and this segment, feed-forward)    keys, values
    head                   logits, averaged over the recent rows                                   sum, weight

Gong, Chung & Glass, "AST: Audio Spectrogram Transformer", 2021, reads whole clips in patches of 16 bands by 16 frames;
patches of whole rows are those of Berg, O'Connor & Cruz, "Keyword Transformer", 2021. Here attention is to the last
second alone and places are known by distance, so that a stream needs no end; a segment of rows makes a step. The
encoder is that of `folding`, with a fold of 1: the ordinary one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgemem.cells.folding import FoldingEncoder
from edgemem.models import ModelSpec, at_least, divides
from edgemem.models.kws import Spotter, SpotterConfig
from edgemem.module import Run, State
from edgemem.tasks.kws import LABELS


@dataclass(frozen=True)
class KWSTransformerConfig(SpotterConfig):
    """Sizes of `kws-transformer`."""

    layers: int = 3
    width: int = 64
    heads: int = 4
    ffn: int = 256  # inner width of the feed-forward parts
    segment: int = 8  # rows in a step
    left: int = 40  # rows whose keys and values each layer keeps

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, layers=1, width=2, heads=1, ffn=1, segment=2, left=1)
        divides(self, "heads", "width")


class KWSTransformer(Spotter):
    """x [batch, time, features] to logits [batch, time, 12], a segment of rows per step."""

    unit = "segment"
    causal = False  # inside a segment

    def __init__(self, config: KWSTransformerConfig) -> None:
        super().__init__(config)
        self.segment_length = config.segment
        self.embed = nn.Linear(config.features, config.width)
        self.encoder = FoldingEncoder(
            config.layers,
            config.width,
            config.heads,
            config.ffn,
            fold=1,
            segment=config.segment,
            left=config.left,
            right=0,
        )
        self.head = nn.Linear(config.width, len(LABELS))

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment [batch, segment, features], of which the first `valid` [batch] rows are real."""
        return self.chunk(x, state, valid)

    def scores(self, x: Tensor, run: Run) -> Tensor:
        y: Tensor = self.head(run("encoder", self.embed(x)))
        return y


MODELS = (
    ModelSpec(
        name="kws-transformer",
        family="folding",
        paper="Gong, Chung & Glass, AST, Interspeech 2021 (arXiv:2104.01778)",
        summary="Keyword spotter on 16 kHz audio: streaming audio-spectrogram Transformer over the last second",
        config=KWSTransformerConfig,
        build=KWSTransformer,
        checkpoint="kws-transformer.safetensors",
    ),
)
