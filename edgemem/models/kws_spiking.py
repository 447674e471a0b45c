"""Keyword spotter: the spiking LMUFormer (Liu, Datta, Li & Beerel, ICLR 2024), made causal, for chips that add spikes.

    x [batch, time, 80]    two stacked frames of 40 log-mels: one row per 20 ms
    embed                  `convolutions` x spikes(causal conv k=3)                             tails, potentials
    block                  x <- x + spikes(Wh [m; x]),  m = LegendreMemory(spikes(Wu x))        memory, potentials
                           x <- x + spikes(W2 spikes(depthwise causal conv(spikes(W1 x))))      tail, potentials
    head                   logits, averaged over the recent rows                                sum, weight

`spikes` are leaky integrate-and-fire neurons, each remembering its potential. Between them run zeros and ones, added
up on the residual paths, so that a product with weights is a sum of those that a spike selects; only the log-mels, the
Legendre memory and the average are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgemem.cells.convolution import CausalConv1d
from edgemem.cells.legendre import LegendreMemory
from edgemem.cells.spiking import LeakyIntegrateAndFire
from edgemem.errors import ConfigError
from edgemem.models import ModelSpec
from edgemem.models.kws import Spotter
from edgemem.models.kws_lmuformer import KWSConfig
from edgemem.module import Composite, Run
from edgemem.tasks.kws import LABELS


@dataclass(frozen=True)
class KWSSpikingConfig(KWSConfig):
    """Sizes of `kws-spiking-lmuformer`: those of `kws-lmuformer`, and how fast neurons forget."""

    decay: float = 0.5  # of potentials, per row

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.decay < 1.0:
            raise ConfigError(f"decay must be in [0, 1), got {self.decay}; 0 forgets at once")


class SpikingLMU(Composite):
    """Spikes x [batch, width] to spikes(Wh [m; x]), where m remembers spikes(Wu x) [batch, channels]."""

    def __init__(self, config: KWSSpikingConfig) -> None:
        super().__init__()
        self.encode = nn.Linear(config.width, config.channels)
        self.encode_neurons = LeakyIntegrateAndFire(config.channels, config.decay)
        self.memory = LegendreMemory(config.order, config.window, config.channels)
        self.mix = nn.Linear(config.channels * config.order + config.width, config.width)
        self.mix_neurons = LeakyIntegrateAndFire(config.width, config.decay)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        memory = run("memory", run("encode_neurons", self.encode(x)))
        return run("mix_neurons", self.mix(torch.cat([memory, x], dim=-1)))


class SpikingMixer(Composite):
    """Spikes x [batch, width] to spikes(W2 spikes(conv(spikes(W1 x)))), the convolution depthwise over time."""

    def __init__(self, config: KWSSpikingConfig) -> None:
        super().__init__()
        inner = config.expand * config.width
        self.up = nn.Linear(config.width, inner)
        self.up_neurons = LeakyIntegrateAndFire(inner, config.decay)
        self.conv = CausalConv1d(inner, inner, config.kernel, groups=inner)
        self.conv_neurons = LeakyIntegrateAndFire(inner, config.decay)
        self.down = nn.Linear(inner, config.width)
        self.down_neurons = LeakyIntegrateAndFire(config.width, config.decay)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        for part in ("up", "conv", "down"):
            layer = getattr(self, part)
            x = run(f"{part}_neurons", run(part, x) if part == "conv" else layer(x))
        return x


class SpikingBlock(Composite):
    """Memory, then channels; both on residual paths that count spikes."""

    def __init__(self, config: KWSSpikingConfig) -> None:
        super().__init__()
        self.lmu = SpikingLMU(config)
        self.mixer = SpikingMixer(config)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        x = x + run("lmu", x)
        return x + run("mixer", x)


class KWSSpikingLMUFormer(Spotter):
    """x [batch, time, features] to logits [batch, time, 12], averaged over the recent rows."""

    def __init__(self, config: KWSSpikingConfig) -> None:
        super().__init__(config)
        sizes = [config.features, *[config.width] * config.convolutions]
        self.embed = nn.ModuleList(
            CausalConv1d(sizes[index], config.width, config.kernel) for index in range(config.convolutions)
        )
        self.embed_neurons = nn.ModuleList(
            LeakyIntegrateAndFire(config.width, config.decay) for _ in range(config.convolutions)
        )
        self.blocks = nn.ModuleList(SpikingBlock(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, len(LABELS))

    def scores(self, x: Tensor, run: Run) -> Tensor:
        for index in range(len(self.embed)):
            x = run(f"embed_neurons.{index}", run(f"embed.{index}", x))
        for index in range(len(self.blocks)):
            x = run(f"blocks.{index}", x)
        y: Tensor = self.head(x)
        return y


MODELS = (
    ModelSpec(
        name="kws-spiking-lmuformer",
        family="lmu",
        paper="Liu, Datta, Li & Beerel, LMUFormer, ICLR 2024 (arXiv:2402.04882)",
        summary="Keyword spotter on 16 kHz audio: spiking LMUFormer, ten words, unknown and silence",
        config=KWSSpikingConfig,
        build=KWSSpikingLMUFormer,
        checkpoint="kws-spiking-lmuformer.safetensors",
    ),
)
