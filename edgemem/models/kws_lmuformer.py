"""Keyword spotter: LMUFormer (Liu, Datta, Li & Beerel, ICLR 2024), made causal, over pairs of log-mel frames.

    x [batch, time, 80]    two stacked frames of 40 log-mels: one row per 20 ms
    embed                  `convolutions` x (causal conv k=3, norm, relu)                    tails
    block                  x <- x + LMU(norm x)                                              Legendre memory
                           x <- x + W2 relu(depthwise causal conv(W1 norm x))                tail
    head                   logits, averaged over time                                        sum, weight

One row of logits per row of input; nothing looks ahead. The paper's convolutions pad both sides and its batch
normalisation needs statistics of training; here convolutions are causal and each row is normalised by itself
(LayerNorm), so training and streaming are one form with nothing to fold. The average forgets (`forget` < 1), so
that the spotter works on a stream without an end; with `forget` = 1 it is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemem.audio import FrontEnd
from edgemem.cells.average import RunningAverage
from edgemem.cells.convolution import CausalConv1d
from edgemem.cells.legendre import LMU
from edgemem.errors import ConfigError
from edgemem.models import ModelSpec, at_least
from edgemem.models.lmu import check_window
from edgemem.module import Composite, Run
from edgemem.state import Port
from edgemem.tasks.kws import LABELS

SECONDS_PER_ROW = 0.02
STACK = 2


@dataclass(frozen=True)
class KWSConfig:
    """Sizes of `kws-lmuformer`. `expand` is the inner width of the channel mixer in units of `width`."""

    layers: int = 2
    width: int = 64
    order: int = 16
    channels: int = 8  # Legendre memories per block
    window: float = 40.0  # rows that a memory spans
    convolutions: int = 4
    kernel: int = 3
    expand: int = 2
    features: int = 80  # per row: STACK frames of features / STACK mel bands
    forget: float = 0.85  # of the averaged logits, per row

    def __post_init__(self) -> None:
        at_least(self, layers=1, width=2, order=1, channels=1, convolutions=1, kernel=1, expand=1, features=2 * STACK)
        check_window(self, self.window)
        if not 0.0 < self.forget <= 1.0:
            raise ConfigError(f"KWSConfig.forget must be in (0, 1], got {self.forget}; 1 averages the whole input")
        if self.features % STACK:
            raise ConfigError(f"KWSConfig.features must be a multiple of {STACK}, got {self.features}")


class Mixer(Composite):
    """W2 relu(conv(W1 x)): x [batch, width], the convolution depthwise over time."""

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.conv = CausalConv1d(inner, inner, kernel, groups=inner)
        self.down = nn.Linear(inner, width)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        y: Tensor = self.down(functional.relu(run("conv", self.up(x))))
        return y


class Block(Composite):
    """Memory, then channels; both on residual paths."""

    def __init__(self, config: KWSConfig) -> None:
        super().__init__()
        self.memory_norm = nn.LayerNorm(config.width)
        self.lmu = LMU(config.width, config.order, config.window, channels=config.channels)
        self.mixer_norm = nn.LayerNorm(config.width)
        self.mixer = Mixer(config.width, config.expand * config.width, config.kernel)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        x = x + run("lmu", self.memory_norm(x))
        return x + run("mixer", self.mixer_norm(x))


class KWSLMUFormer(Composite):
    """x [batch, time, features] to logits [batch, time, 12], averaged over the recent rows.

    `center` and `scale` [features] bring log-mels to about zero mean and unit variance; they are fixed, found on
    training audio, and part of the weights so that every runtime applies them.
    """

    seconds_per_frame = SECONDS_PER_ROW
    center: Tensor
    scale: Tensor

    def __init__(self, config: KWSConfig) -> None:
        super().__init__()
        sizes = [config.features, *[config.width] * config.convolutions]
        self.register_buffer("center", torch.full((config.features,), -6.0))
        self.register_buffer("scale", torch.full((config.features,), 0.25))
        self.embed = nn.ModuleList(
            CausalConv1d(sizes[index], config.width, config.kernel) for index in range(config.convolutions)
        )
        self.embed_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(config.convolutions))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, len(LABELS))
        self.average = RunningAverage(len(LABELS), config.forget)
        front_end = FrontEnd(mels=config.features // STACK, stack=STACK)
        self.inputs = (Port("features", (config.features,), frontend=front_end.to_dict()),)
        self.outputs = (Port("logits", (len(LABELS),), role="logits", labels=LABELS),)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        return run("average", self.scores(x, run))

    def scores(self, x: Tensor, run: Run) -> Tensor:
        """Logits [..., 12] of each row, before they are averaged."""
        x = (x - self.center) * self.scale
        for index, norm in enumerate(self.embed_norms):
            x = functional.relu(norm(run(f"embed.{index}", x)))
        for index in range(len(self.blocks)):
            x = run(f"blocks.{index}", x)
        y: Tensor = self.head(self.norm(x))
        return y


MODELS = (
    ModelSpec(
        name="kws-lmuformer",
        family="lmu",
        paper="Liu, Datta, Li & Beerel, LMUFormer, ICLR 2024 (arXiv:2402.04882)",
        summary="Keyword spotter on 16 kHz audio: causal LMUFormer, ten words, unknown and silence",
        config=KWSConfig,
        build=KWSLMUFormer,
        checkpoint="kws-lmuformer.safetensors",
    ),
)
