"""Memformer models (Wu et al. 2020): an encoder, an encoder-decoder and a byte language model.

All take a segment per step and remember one memory bank [slots, width] (`encoder.memory`).

    memformer          features or tokens -> encoder, bidirectional inside its segment -> features or logits
    memformer-seq2seq  source -> encoder -> decoder over target -> logits
    lm-memformer       bytes -> encoder, causal inside its segment -> logits of the next byte
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemem.cells.memformer import DecoderLayer, MemoryEncoder
from edgemem.cells.padding import cleared, real_frames
from edgemem.errors import ConfigError
from edgemem.models import ModelSpec, at_least, divides
from edgemem.models.language import BYTES, embedding, token_port
from edgemem.module import Frames, State, StreamingModule, each, extent, part, prefixed
from edgemem.state import Port

PAPER = "Wu et al., Memformer: A Memory-Augmented Transformer for Sequence Modeling, 2020 (arXiv:2010.06891)"


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of `lm-memformer`. `ffn` is the inner width of the feed-forward parts (0: 4 * width)."""

    layers: int = 3
    width: int = 192
    heads: int = 6
    slots: int = 32
    segment: int = 128  # tokens in a step
    vocab: int = BYTES
    ffn: int = 0
    temperature: float = 0.25  # of the slots' attention when they are written; lower is sharper

    def __post_init__(self) -> None:
        at_least(self, vocab=2)
        check_sizes(self)


@dataclass(frozen=True)
class Seq2SeqConfig(LanguageConfig):
    """Sizes of `memformer-seq2seq`; `layers` counts those of the encoder and, again, those of the decoder."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    slots: int = 16
    segment: int = 32


@dataclass(frozen=True)
class EncoderConfig(LanguageConfig):
    """Sizes of `memformer`: with `vocab` 0, `features` numbers a frame in and `width` out; else tokens and logits."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    slots: int = 16
    segment: int = 32
    vocab: int = 0
    features: int = 40

    def __post_init__(self) -> None:
        at_least(self, vocab=2 if self.vocab else 0, features=1)
        check_sizes(self)


def check_sizes(config: LanguageConfig) -> None:
    """Refuse what no Memformer can have.

    Raises:
        ConfigError: naming the field, the bound and the value.
    """
    at_least(config, layers=1, width=2, heads=1, slots=1, segment=2, ffn=0)
    divides(config, "heads", "width")
    if config.temperature <= 0:
        raise ConfigError(f"temperature must be above 0, got {config.temperature}; 0.25 is the default")


def encoder_of(config: LanguageConfig, looks_back: bool) -> MemoryEncoder:
    """The encoder with its memory, of a configuration's sizes."""
    inner = config.ffn or 4 * config.width
    return MemoryEncoder(
        config.layers, config.width, config.heads, config.slots, config.segment, inner, config.temperature, looks_back
    )


class SegmentModel(StreamingModule):
    """A model that takes a segment per step; the whole sequence is its segments in turn, the last one cut short.

    Gradients reach back through the memory to the first segment and to the learned start.
    """

    unit = "segment"
    causal = False  # an output may depend on later frames of its own segment

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        raise NotImplementedError(f"{type(self).__name__} declares no step")

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [batch, time, ...] of the whole sequence, from the start state; any time."""
        batch, time = extent(x)
        state, rows = self.start(batch), []
        for start in range(0, time, self.segment_length):
            y, state = self.step(frames(x, start, self.segment_length), state)
            rows.append(y)
        return torch.cat(rows, dim=1)


def frames(x: Frames, start: int, count: int) -> Frames:
    """`count` frames of x from `start` on, fewer where x ends."""
    return each(x, lambda u: u[:, start : start + count])


class Memformer(SegmentModel):
    """`memformer` and `lm-memformer`: x [batch, length, features] or tokens [batch, length] int64, a segment a step."""

    def __init__(self, config: LanguageConfig, features: int = 0, looks_back: bool = False) -> None:
        """`features` numbers a frame come in where `config.vocab` is 0."""
        super().__init__()
        self.causal, self.segment_length = looks_back, config.segment
        self.embed: nn.Module
        if config.vocab:
            self.embed = embedding(config.vocab, config.width)
            self.inputs = (token_port("tokens", config.vocab),)
            self.outputs = (Port("logits", (config.vocab,), role="logits"),)
        else:
            self.embed = nn.Linear(features, config.width, bias=False)
            self.inputs = (Port("x", (features,)),)
            self.outputs = (Port("y", (config.width,)),)
        self.encoder = encoder_of(config, looks_back)
        self.head = nn.Linear(config.width, config.vocab) if config.vocab else nn.Identity()

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment; rows after the first `valid` [batch] are padding, their outputs mean nothing."""
        if x.is_floating_point():  # a NaN in the padding would reach the gradient of the embedding
            x = cleared(x, valid)
        y, memory = self.encoder.step(self.embed(x), part(state, "encoder"), valid)
        return self.head(y), prefixed("encoder", memory)


class MemformerSeq2Seq(SegmentModel):
    """`memformer-seq2seq`: x is {"source", "target"}, tokens [batch, length] int64 each; logits for each target row.

    The target is what the decoder has been given so far (its own outputs, one later, when it generates). `valid`
    counts the real rows of source and target alike.
    """

    def __init__(self, config: Seq2SeqConfig) -> None:
        super().__init__()
        self.segment_length = config.segment
        self.inputs = (token_port("source", config.vocab), token_port("target", config.vocab))
        self.outputs = (Port("logits", (config.vocab,), role="logits"),)
        self.embed = embedding(config.vocab, config.width)
        self.encoder = encoder_of(config, looks_back=False)
        self.target_embed = embedding(config.vocab, config.width)
        self.target_positions = nn.Parameter(torch.randn(config.segment, config.width) / math.sqrt(config.width))
        inner = config.ffn or 4 * config.width
        self.decoder = nn.ModuleList(DecoderLayer(config.width, config.heads, inner) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab)

    def step(  # type: ignore[override]  # two inputs by name
        self, x: dict[str, Tensor], state: State, valid: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One segment of both; rows after the first `valid` [batch] are padding, their outputs mean nothing."""
        encoded, memory = self.encoder.step(self.embed(x["source"]), part(state, "encoder"), valid)
        mask = None if valid is None else real_frames(encoded, valid)[:, None, None, :]
        y = self.target_embed(x["target"]) + self.target_positions[: encoded.shape[1]]
        for layer in self.decoder:
            y = layer(y, encoded, mask)
        return self.head(self.norm(y)), prefixed("encoder", memory)


def encoder_model(config: EncoderConfig) -> Memformer:
    """`memformer`."""
    return Memformer(config, features=config.features)


def language_model(config: LanguageConfig) -> Memformer:
    """`lm-memformer`."""
    return Memformer(config, looks_back=True)


MODELS = (
    ModelSpec(
        name="memformer",
        family="memformer",
        paper=PAPER,
        summary="Memory-augmented encoder, bidirectional inside its segment; features or tokens in",
        config=EncoderConfig,
        build=encoder_model,
    ),
    ModelSpec(
        name="memformer-seq2seq",
        family="memformer",
        paper=PAPER,
        summary="Memory-augmented encoder with a decoder over target tokens, segment by segment",
        config=Seq2SeqConfig,
        build=MemformerSeq2Seq,
    ),
    ModelSpec(
        name="lm-memformer",
        family="memformer",
        paper=PAPER,
        summary="Byte language model with an external memory, causal inside its segment",
        config=LanguageConfig,
        build=language_model,
        checkpoint="lm-memformer.safetensors",
    ),
)
