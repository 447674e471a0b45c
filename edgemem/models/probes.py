"""Small models that are put to the memory probes: one per family, the cell under test between an input and a head.

    probe-rwkv4       RWKV-4 blocks (Peng et al. 2023)
    probe-lmu         Legendre memories in parallel form (Chilkuri & Eliasmith 2021), and channel mixing
    probe-gru         gated recurrent units (Cho et al. 2014) with the same channel mixing, to compare with
    probe-memformer   the encoder with memory slots, causal inside its segment (Wu et al. 2020)
    probe-folding     folding attention over a sliding window and nothing else (Li et al. 2023): a bounded memory

    y = W body(E x) + b      E an embedding of symbols, or a projection of one number a frame

All have about 16,000 parameters. `probe` says what a model is for, and so what goes in and out; checkpoints of every
probe ship, and `--set probe=delay` takes another than the default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from edgemem.cells.gru import GatedRecurrentUnit
from edgemem.cells.legendre import LMU
from edgemem.cells.memformer import MemoryEncoder
from edgemem.cells.sliding import SlidingWindow
from edgemem.errors import ConfigError
from edgemem.models import ModelSpec, at_least, divides, folding, memformer, rwkv4
from edgemem.models.lmu import check_window
from edgemem.module import Composite, Run, State, StreamingModule
from edgemem.state import Port
from edgemem.tasks.probes import PROBES
from edgemem.text import nearest


@dataclass(frozen=True)
class ProbeConfig:
    """Sizes that all have. `ffn` is the inner width of the channel mixers (0: twice `width`)."""

    probe: str = "recall"
    layers: int = 2
    width: int = 28
    ffn: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: naming the field, what it may be and the value.
        """
        if self.probe not in PROBES:
            raise ConfigError(
                f"unknown probe {self.probe!r}{nearest(self.probe, PROBES)}; there are {', '.join(PROBES)}"
            )
        at_least(self, layers=1, width=2, ffn=0)

    @property
    def inner(self) -> int:
        """Inner width of the channel mixers."""
        return self.ffn or 2 * self.width


@dataclass(frozen=True)
class LMUProbeConfig(ProbeConfig):
    """`window` is in steps, 0: the span of the probe; `channels` are memories per layer."""

    width: int = 32
    order: int = 16
    window: float = 0.0
    channels: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, order=1, channels=1)
        check_window(self, self.theta)

    @property
    def theta(self) -> float:
        """Steps that a memory spans."""
        return self.window or float(PROBES[self.probe].span)


@dataclass(frozen=True)
class MemformerProbeConfig(ProbeConfig):
    """Sizes of `probe-memformer`."""

    width: int = 24
    heads: int = 2
    slots: int = 8
    segment: int = 16  # frames in a step
    temperature: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, heads=1, slots=1, segment=2)
        divides(self, "heads", "width")
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be above 0, got {self.temperature}; 0.25 is the default")


@dataclass(frozen=True)
class FoldingProbeConfig(ProbeConfig):
    """Sizes of `probe-folding`; a layer sees `left` frames and the present one."""

    width: int = 48
    ffn: int = 192
    heads: int = 2
    fold: int = 2
    left: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, heads=1, fold=1, left=1)
        divides(self, "fold", "width")
        if self.inner % self.fold or self.width // self.fold % self.heads:
            raise ConfigError(
                f"fold must divide ffn, and heads must divide width / fold; "
                f"got fold={self.fold}, ffn={self.inner}, heads={self.heads} and width={self.width}"
            )

    @property
    def frames(self) -> int:
        """Frames that an output depends on at most: each layer adds `left`."""
        return self.layers * self.left + 1


class Mixed(Composite):
    """x <- x + cell(norm x), then x <- x + W2 relu(W1 norm x)."""

    def __init__(self, cell: StreamingModule, width: int, inner: int) -> None:
        super().__init__()
        self.cell_norm, self.cell = nn.LayerNorm(width), cell
        self.mix_norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        x = x + run("cell", self.cell_norm(x))
        y: Tensor = x + self.down(functional.relu(self.up(self.mix_norm(x))))
        return y


class Stack(Composite):
    """Blocks one after another, and a norm."""

    def __init__(self, blocks: list[StreamingModule], width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        for index in range(len(self.blocks)):
            x = run(f"blocks.{index}", x)
        y: Tensor = self.norm(x)
        return y


class ProbeModel(Composite):
    """Symbols [batch, time] or numbers [batch, time, 1] to [batch, time, outputs]."""

    def __init__(self, config: ProbeConfig, body: StreamingModule) -> None:
        super().__init__()
        wanted = PROBES[config.probe]
        self.segment_length, self.causal = body.segment_length, getattr(body, "causal", True)
        self.unit = "segment" if body.segment_length > 1 else "token" if wanted.vocab else "frame"
        self.embed: nn.Module
        if wanted.vocab:
            self.embed = nn.Embedding(wanted.vocab, config.width)
            self.inputs = (Port("symbols", (), "int64", "tokens", low=0, high=wanted.vocab - 1),)
        else:
            self.embed = nn.Linear(1, config.width)
            self.inputs = (Port("x", (1,)),)
        self.body = body
        self.head = nn.Linear(config.width, wanted.outputs)
        self.outputs = (
            Port("logits", (wanted.outputs,), role="logits")
            if wanted.labels
            else Port("y", (wanted.outputs,), role="values"),
        )

    def step(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One frame, or a segment of which the first `valid` [batch] frames are real."""
        return self.chunk(x, state, valid) if self.segment_length > 1 else super().step(x, state)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        y: Tensor = self.head(run("body", self.embed(x)))
        return y


def rwkv4_probe(config: ProbeConfig) -> ProbeModel:
    """`probe-rwkv4`."""
    sizes = rwkv4.RWKV4Config(layers=config.layers, width=config.width, ffn=config.inner)
    blocks: list[StreamingModule] = [rwkv4.Block(sizes, index) for index in range(config.layers)]
    return ProbeModel(config, Stack(blocks, config.width))


def lmu_probe(config: LMUProbeConfig) -> ProbeModel:
    """`probe-lmu`."""
    return mixed_probe(config, lambda: LMU(config.width, config.order, config.theta, channels=config.channels))


def gru_probe(config: ProbeConfig) -> ProbeModel:
    """`probe-gru`."""
    return mixed_probe(config, lambda: GatedRecurrentUnit(config.width, config.width))


def mixed_probe(config: ProbeConfig, cell: Callable[[], StreamingModule]) -> ProbeModel:
    """Cells between channel mixers."""
    blocks: list[StreamingModule] = [Mixed(cell(), config.width, config.inner) for _ in range(config.layers)]
    return ProbeModel(config, Stack(blocks, config.width))


def memformer_probe(config: MemformerProbeConfig) -> ProbeModel:
    """`probe-memformer`."""
    body = MemoryEncoder(
        config.layers,
        config.width,
        config.heads,
        config.slots,
        config.segment,
        config.inner,
        config.temperature,
        looks_back=True,
        relative=False,
    )
    return ProbeModel(config, body)


def folding_probe(config: FoldingProbeConfig) -> ProbeModel:
    """`probe-folding`."""
    body = SlidingWindow(config.layers, config.width, config.heads, config.inner, config.fold, config.left)
    return ProbeModel(config, body)


def shipped(name: str) -> dict[str, dict[str, object]]:
    """Packaged checkpoints of a model by file name, each with the settings that it was trained at."""
    return {f"{name}-{probe}.safetensors": {"probe": probe} for probe in PROBES}


def spec(
    name: str, family: str, paper: str, summary: str, config: type, build: Callable[[Any], ProbeModel]
) -> ModelSpec:
    """A model with a checkpoint for every probe."""
    return ModelSpec(name, family, paper, summary, config, build, forms=shipped(name))


MODELS = (
    spec("probe-rwkv4", "rwkv4", rwkv4.PAPER, "Memory probe: RWKV-4 blocks", ProbeConfig, rwkv4_probe),
    spec(
        "probe-lmu",
        "lmu",
        "Chilkuri & Eliasmith, Parallelizing Legendre Memory Unit Training, ICML 2021 (arXiv:2102.11417)",
        "Memory probe: Legendre memories in parallel form",
        LMUProbeConfig,
        lmu_probe,
    ),
    spec(
        "probe-gru",
        "gru",
        "Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014 (arXiv:1406.1078)",
        "Memory probe: gated recurrent units, to compare with",
        ProbeConfig,
        gru_probe,
    ),
    spec(
        "probe-memformer",
        "memformer",
        memformer.PAPER,
        "Memory probe: encoder with memory slots, causal inside its segment",
        MemformerProbeConfig,
        memformer_probe,
    ),
    spec(
        "probe-folding",
        "folding",
        folding.PAPER,
        "Memory probe: folding attention over a sliding window, a bounded memory",
        FoldingProbeConfig,
        folding_probe,
    ),
)
