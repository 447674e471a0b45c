"""RWKV-4 language models (Peng et al. 2023), in the layout of the public checkpoints.

    x = ln0(emb[token])                                    blocks.0.ln0
    x = x + att(ln1 x)      x = x + ffn(ln2 x)             blocks.N.att, blocks.N.ffn
    logits = head(ln_out x)                                head is emb transposed where `tied`

Checkpoints hold `emb.weight`, `blocks.N.ln1.weight`, `blocks.N.att.time_decay`, `blocks.N.att.key.weight` and so on, in
float32, float16 or bfloat16.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemem.cells.rwkv4 import ChannelMix, TimeMix
from edgemem.errors import CheckpointError
from edgemem.models import ModelSpec, at_least
from edgemem.models.language import BYTES
from edgemem.module import Composite, Run
from edgemem.state import Port

PAPER = "Peng et al., RWKV: Reinventing RNNs for the Transformer Era, EMNLP 2023 (arXiv:2305.13048)"


@dataclass(frozen=True)
class RWKV4Config:
    """`ffn`: inner width of channel mixing, 0 for four times `width`. `tied`: the head is the embedding, transposed."""

    layers: int = 4
    width: int = 128
    vocab: int = 256
    ffn: int = 0
    tied: bool = False

    def __post_init__(self) -> None:
        at_least(self, layers=1, width=2, vocab=2, ffn=0)


@dataclass(frozen=True)
class ByteRWKV4Config(RWKV4Config):
    """About two million parameters over bytes; with another `vocab`, over tokens that have no text."""

    layers: int = 6
    width: int = 160
    vocab: int = BYTES


class Block(Composite):
    """Time mixing and channel mixing on residual paths; the first block also normalises the embedding."""

    def __init__(self, config: RWKV4Config, index: int) -> None:
        super().__init__()
        depth, rest = index / max(1, config.layers - 1), 1.0 - index / config.layers
        self.ln0 = nn.LayerNorm(config.width) if index == 0 else None
        self.ln1, self.ln2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.att = TimeMix(config.width, depth, rest)
        self.ffn = ChannelMix(config.width, config.ffn or 4 * config.width, rest)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        if self.ln0 is not None:
            x = self.ln0(x)
        x = x + run("att", self.ln1(x))
        return x + run("ffn", self.ln2(x))


class RWKV4(Composite):
    """Tokens [batch, time] to logits [batch, time, vocab]."""

    unit = "token"

    def __init__(self, config: RWKV4Config, encoding: str | None = None) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.layers))
        self.ln_out = nn.LayerNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)
        self.inputs = (Port("tokens", (), "int64", "tokens", low=0, high=config.vocab - 1, encoding=encoding),)
        self.outputs = (Port("logits", (config.vocab,), role="logits"),)
        nn.init.normal_(self.emb.weight, std=0.1 if config.tied else 1.0)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        x = self.emb(x)
        for index in range(len(self.blocks)):
            x = run(f"blocks.{index}", x)
        x = self.ln_out(x)
        return functional.linear(x, self.emb.weight) if self.head is None else self.head(x)


def settings_of(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """The configuration that a checkpoint's shapes tell.

    Raises:
        CheckpointError: a tensor that every RWKV-4 checkpoint has is missing, or not of the right rank.
    """
    for name in ("emb.weight", "blocks.0.ffn.key.weight"):
        if name not in tensors or tensors[name].dim() != 2:
            raise CheckpointError(f"the checkpoint has no matrix {name}; a file in RWKV-4's layout was wanted")
    layers = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    vocab, width = tensors["emb.weight"].shape
    return {
        "layers": max(layers) + 1,
        "width": width,
        "vocab": vocab,
        "ffn": tensors["blocks.0.ffn.key.weight"].shape[0],
        "tied": "head.weight" not in tensors,
    }


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors as the module has them: float32, token-shift weights as [1, 1, width]."""
    found = {name: tensor.to(torch.float32) for name, tensor in tensors.items()}
    return {name: t.reshape(1, 1, -1) if ".time_mix_" in name else t for name, t in found.items()}


MODELS = (
    ModelSpec(
        name="rwkv4",
        family="rwkv4",
        paper=PAPER,
        summary="Token language model; loads public RWKV-4 checkpoints",
        config=RWKV4Config,
        build=RWKV4,
        convert=convert,
        settings_of=settings_of,
    ),
    ModelSpec(
        name="lm-rwkv4",
        family="rwkv4",
        paper=PAPER,
        summary="Byte language model: constant memory and time per byte",
        config=ByteRWKV4Config,
        build=lambda config: RWKV4(config, encoding="bytes" if config.vocab == BYTES else None),
        checkpoint="lm-rwkv4.safetensors",
        convert=convert,
        settings_of=settings_of,
    ),
)
