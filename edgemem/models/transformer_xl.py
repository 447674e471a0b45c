"""A byte-level Transformer-XL (Dai et al. 2019): the segment-memory baseline.

bytes -> embedding -> layers over [memory; segment], causal inside the segment -> logits of the next byte
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgemem.cells.transformer_xl import SegmentMemory
from edgemem.models import ModelSpec, at_least, divides
from edgemem.models.language import BYTES, embedding, token_port
from edgemem.models.memformer import SegmentModel
from edgemem.module import State, part, prefixed
from edgemem.state import Port

PAPER = (
    "Dai et al., Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context, ACL 2019 (arXiv:1901.02860)"
)


@dataclass(frozen=True)
class TransformerXLConfig:
    """Sizes of `lm-transformer-xl`. `memory`: rows of every layer that a segment finds cached."""

    layers: int = 4
    width: int = 192
    heads: int = 6
    memory: int = 128
    segment: int = 128  # tokens in a step
    vocab: int = BYTES
    ffn: int = 0  # inner width of the feed-forward parts (0: 4 * width)

    def __post_init__(self) -> None:
        at_least(self, layers=1, width=2, heads=1, memory=1, segment=2, vocab=2, ffn=0)
        divides(self, "heads", "width")


class TransformerXL(SegmentModel):
    """Tokens [batch, length], a segment per step, to logits [batch, length, vocab]."""

    causal = True

    def __init__(self, config: TransformerXLConfig) -> None:
        super().__init__()
        self.segment_length = config.segment
        self.inputs = (token_port("tokens", config.vocab),)
        self.outputs = (Port("logits", (config.vocab,), role="logits"),)
        self.embed = embedding(config.vocab, config.width)
        inner = config.ffn or 4 * config.width
        self.encoder = SegmentMemory(config.layers, config.width, config.heads, config.memory, config.segment, inner)
        self.head = nn.Linear(config.width, config.vocab)

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment; rows after the first `valid` [batch] are padding, their outputs mean nothing."""
        y, after = self.encoder.step(self.embed(x), part(state, "encoder"), valid)
        return self.head(y), prefixed("encoder", after)


MODELS = (
    ModelSpec(
        name="lm-transformer-xl",
        family="transformer-xl",
        paper=PAPER,
        summary="Byte language model that also attends the cached rows of the segment before",
        config=TransformerXLConfig,
        build=TransformerXL,
        checkpoint="lm-transformer-xl.safetensors",
        unweighted=("memory",),
    ),
)
