"""Streaming Transformer encoders with folding attention (Li et al. 2023).

    folding        features -> encoder -> rows of `width` numbers (or logits, with `vocab`)
    asr-folding    log-mels of 60 ms -> encoder -> CTC logits over words, or over characters with `vocab=29`

Both take a segment per step and give its outputs `look_ahead` frames late. `fold` is the paper's N: 1 is the ordinary
Transformer encoder, to compare with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase

import torch
from torch import Tensor, nn

from edgemem.audio import FrontEnd
from edgemem.cells.folding import FoldingEncoder
from edgemem.errors import CheckpointError, ConfigError
from edgemem.models import ModelSpec, at_least, divides
from edgemem.module import Composite, Run, State
from edgemem.state import Port
from edgemem.tasks.words import BLANK
from edgemem.tasks.words import LABELS as WORDS

PAPER = "Li et al., Folding Attention, 2023 (arXiv:2309.07988)"
SECONDS_PER_ROW = 0.06
STACK = 6
CHARACTERS = (BLANK, " ", "'", *ascii_lowercase)
LABELS = {len(labels): labels for labels in (WORDS, CHARACTERS)}  # of CTC, by their number


@dataclass(frozen=True)
class FoldingConfig:
    """Sizes of `folding`. `heads` are those of each sub-token of `width / fold` numbers."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    ffn: int = 0  # inner width of the feed-forward parts, of a whole frame (0: 4 * width)
    fold: int = 2  # N: sub-tokens of a frame
    ffn_fold: int = 0  # N of the feed-forward parts (0: fold; 1: only attention is folded)
    segment: int = 8  # frames in a step
    left: int = 16  # frames whose keys and values each layer keeps
    look_ahead: int = 4
    features: int = 40
    vocab: int = 0  # logits of each frame; 0: the encoder's rows as they are

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: naming the fields and their values.
        """
        at_least(
            self,
            layers=1,
            width=2,
            heads=1,
            ffn=0,
            fold=1,
            ffn_fold=0,
            segment=2,
            left=1,
            look_ahead=0,
            features=1,
            vocab=0,
        )
        divides(self, "fold", "width")
        divides(self, "ffn_fold" if self.ffn_fold else "fold", "ffn")
        if self.ffn_fold:
            divides(self, "ffn_fold", "width")
        if self.width // self.fold % self.heads:
            raise ConfigError(
                f"heads must divide width / fold, got heads={self.heads}, width={self.width} "
                f"and fold={self.fold}, that is {self.width // self.fold} numbers in a sub-token"
            )


@dataclass(frozen=True)
class ASRConfig(FoldingConfig):
    """Sizes of `asr-folding`: segments of 360 ms, 60 ms of look-ahead, 1.08 s of context to the left."""

    layers: int = 4
    width: int = 176
    heads: int = 2
    segment: int = 6
    left: int = 18
    look_ahead: int = 1
    features: int = 240  # per row: STACK frames of features / STACK mel bands
    vocab: int = len(WORDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, vocab=2, features=STACK)
        if self.features % STACK:
            raise ConfigError(f"features must be a multiple of {STACK}, got {self.features}")


class Folding(Composite):
    """x [batch, time, features] to rows [batch, time, width], or to logits [batch, time, vocab]."""

    unit = "segment"
    causal = False  # inside a segment

    def __init__(self, config: FoldingConfig) -> None:
        super().__init__()
        self.segment_length, self.look_ahead = config.segment, config.look_ahead
        self.embed = nn.Linear(config.features, config.width)
        self.encoder = FoldingEncoder(
            config.layers,
            config.width,
            config.heads,
            config.ffn or 4 * config.width,
            config.fold,
            config.segment,
            config.left,
            config.look_ahead,
            config.ffn_fold or None,
        )
        self.head = nn.Linear(config.width, config.vocab) if config.vocab else nn.Identity()
        self.inputs = (Port("x", (config.features,)),)
        self.outputs = (
            Port("logits", (config.vocab,), role="logits")
            if config.vocab
            else Port("y", (config.width,), role="values"),
        )

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One segment [batch, segment, features], of which the first `valid` [batch] frames are real."""
        return self.chunk(x, state, valid)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        y: Tensor = self.head(run("encoder", self.embed(x)))
        return y


class SpeechFolding(Folding):
    """`asr-folding`: `center` and `scale` [features] bring log-mels to about zero mean and unit variance.

    They are fixed, found on training audio, and part of the weights so that every runtime applies them.
    """

    seconds_per_frame = SECONDS_PER_ROW
    center: Tensor
    scale: Tensor

    def __init__(self, config: ASRConfig) -> None:
        super().__init__(config)
        self.register_buffer("center", torch.full((config.features,), -6.0))
        self.register_buffer("scale", torch.full((config.features,), 0.25))
        front_end = FrontEnd(mels=config.features // STACK, stack=STACK)
        self.inputs = (Port("features", (config.features,), frontend=front_end.to_dict()),)
        self.outputs = (Port("logits", (config.vocab,), role="logits", labels=LABELS.get(config.vocab)),)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        return super().flow((x - self.center) * self.scale, run)


def settings_of(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The sizes of `asr-folding` that a checkpoint's shapes tell: all but those of its windows.

    Raises:
        CheckpointError: a tensor that every checkpoint of it has is missing, or not of the right rank.
    """
    layer = "encoder.layers.0"
    names = ("embed.weight", "head.weight", f"{layer}.attend.query.weight", f"{layer}.attend.distance")
    for name in (*names, f"{layer}.feed.expand.weight"):
        if name not in tensors or tensors[name].dim() != 2 or not tensors[name].numel():
            raise CheckpointError(f"the checkpoint has no matrix {name}; one of asr-folding was wanted")
    embed, head, query, distance = (tensors[name] for name in names)
    inner, sub = tensors[f"{layer}.feed.expand.weight"].shape
    fold, feed_fold = embed.shape[0] // query.shape[0], embed.shape[0] // sub
    layers = {int(found[1]) for name in tensors if (found := re.match(r"encoder\.layers\.(\d+)\.", name))}
    return {
        "layers": max(layers) + 1,
        "width": embed.shape[0],
        "heads": distance.shape[0],
        "fold": fold,
        "ffn_fold": 0 if feed_fold == fold else feed_fold,
        "ffn": inner * feed_fold,
        "features": embed.shape[1],
        "vocab": head.shape[0],
    }


MODELS = (
    ModelSpec(
        name="folding",
        family="folding",
        paper=PAPER,
        summary="Streaming Transformer encoder with folded projections; fold=1 is the ordinary one",
        config=FoldingConfig,
        build=Folding,
    ),
    ModelSpec(
        name="asr-folding",
        family="folding",
        paper=PAPER,
        summary="Digits and commands in 16 kHz audio: streaming encoder with folding attention, CTC logits",
        config=ASRConfig,
        build=SpeechFolding,
        checkpoint="asr-folding.safetensors",
        settings_of=settings_of,
        forms={"asr-unfolded.safetensors": {"fold": 1, "width": 128, "heads": 4}},
    ),
)
