"""A byte-level Transformer language model with a key-value cache: the full-attention baseline.

    x = emb[token]
    x = x + attend(norm x)      x = x + W_2 relu(W_1 norm x)       layers.N.attend, layers.N.feed
    logits = head(norm x)

Its state is the cache of the last `context` bytes in every layer. `context` is no weight: a checkpoint runs at any.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgemem.cells.feedforward import FeedForward
from edgemem.cells.transformer import CachedAttention
from edgemem.models import ModelSpec, at_least, divides
from edgemem.models.language import BYTES, embedding, token_port
from edgemem.module import Composite, Run
from edgemem.state import Port

PAPER = "Vaswani et al., Attention Is All You Need, NeurIPS 2017 (arXiv:1706.03762)"


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of `lm-transformer`. `context`: bytes before the current one that are attended, and cached."""

    layers: int = 4
    width: int = 192
    heads: int = 6
    context: int = 256
    vocab: int = BYTES
    ffn: int = 0  # inner width of the feed-forward parts (0: 4 * width)

    def __post_init__(self) -> None:
        at_least(self, layers=1, width=2, heads=1, context=1, vocab=2, ffn=0)
        divides(self, "heads", "width")


class Layer(Composite):
    """Attention and feed-forward on residual paths, each normalised before."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attend_norm = nn.LayerNorm(config.width)
        self.attend = CachedAttention(config.width, config.heads, config.context)
        self.feed_norm = nn.LayerNorm(config.width)
        self.feed = FeedForward(config.width, config.ffn or 4 * config.width)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        x = x + run("attend", self.attend_norm(x))
        y: Tensor = x + self.feed(self.feed_norm(x))
        return y


class Transformer(Composite):
    """Tokens [batch, time] to logits [batch, time, vocab]."""

    unit = "token"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed = embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab)
        self.inputs = (token_port("tokens", config.vocab),)
        self.outputs = (Port("logits", (config.vocab,), role="logits"),)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        x = self.embed(x)
        for index in range(len(self.layers)):
            x = run(f"layers.{index}", x)
        y: Tensor = self.head(self.norm(x))
        return y


MODELS = (
    ModelSpec(
        name="lm-transformer",
        family="transformer",
        paper=PAPER,
        summary="Byte language model with full attention: a key-value cache of a set context",
        config=TransformerConfig,
        build=Transformer,
        checkpoint="lm-transformer.safetensors",
        unweighted=("context",),
    ),
)
