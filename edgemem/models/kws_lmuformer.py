"""Keyword spotter: LMUFormer (Liu, Datta, Li & Beerel, ICLR 2024), made causal, over pairs of log-mel frames.

    x [batch, time, 80]    two stacked frames of 40 log-mels: one row per 20 ms
    embed                  `convolutions` x (causal conv k=3, norm, relu)                    tails
    block                  x <- x + LMU(norm x)                                              Legendre memory
                           x <- x + W2 relu(depthwise causal conv(W1 norm x))                tail
    head                   logits, averaged over time                                        sum, weight

Input and average are those of all spotters (`edgemem.models.kws`). The paper's convolutions pad both sides and its
batch normalisation needs statistics of training; here convolutions are causal and each row is normalised by itself
(LayerNorm), so training and streaming are one form with nothing to fold. With `forget` = 1 the average is the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from edgemem.cells.convolution import CausalConv1d
from edgemem.cells.legendre import LMU
from edgemem.models import ModelSpec, at_least
from edgemem.models.kws import Spotter, SpotterConfig
from edgemem.models.lmu import check_window
from edgemem.module import Composite, Run
from edgemem.tasks.kws import LABELS


@dataclass(frozen=True)
class KWSConfig(SpotterConfig):
    """Sizes of `kws-lmuformer`. `expand` is the inner width of the channel mixer in units of `width`."""

    layers: int = 2
    width: int = 64
    order: int = 16
    channels: int = 8  # Legendre memories per block
    window: float = 40.0  # rows that a memory spans
    convolutions: int = 4
    kernel: int = 3
    expand: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, layers=1, width=2, order=1, channels=1, convolutions=1, kernel=1, expand=1)
        check_window(self, self.window)


@dataclass(frozen=True)
class TinyKWSConfig(KWSConfig):
    """Sizes of `kws-tiny`: for a core of a few megahertz without an FPU, and 16 KiB of RAM."""

    width: int = 24
    order: int = 8
    channels: int = 4
    convolutions: int = 2


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


class KWSLMUFormer(Spotter):
    """x [batch, time, features] to logits [batch, time, 12], averaged over the recent rows."""

    def __init__(self, config: KWSConfig) -> None:
        super().__init__(config)
        sizes = [config.features, *[config.width] * config.convolutions]
        self.embed = nn.ModuleList(
            CausalConv1d(sizes[index], config.width, config.kernel) for index in range(config.convolutions)
        )
        self.embed_norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in range(config.convolutions))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, len(LABELS))

    def scores(self, x: Tensor, run: Run) -> Tensor:
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
    ModelSpec(
        name="kws-tiny",
        family="lmu",
        paper="Liu, Datta, Li & Beerel, LMUFormer, ICLR 2024 (arXiv:2402.04882)",
        summary="The same in a seventh of the size, for a Cortex-M0 with 16 KiB of RAM",
        config=TinyKWSConfig,
        build=KWSLMUFormer,
        checkpoint="kws-tiny.safetensors",
    ),
)
