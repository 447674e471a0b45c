"""What language models share: tokens as an input, and the vectors they become."""

from __future__ import annotations

import math

from torch import nn

from edgemem.state import Port

BYTES = 256  # the vocabulary of which every token is a byte of UTF-8


def token_port(name: str, vocab: int) -> Port:
    """An input of token ids 0..vocab - 1: UTF-8 bytes where the vocabulary is all of them."""
    encoding = "bytes" if vocab == BYTES else None
    return Port(name, (), dtype="int64", role="tokens", low=0, high=vocab - 1, encoding=encoding)


def embedding(vocab: int, width: int) -> nn.Embedding:
    """Token vectors of about unit norm, as the positions that are added to them."""
    table = nn.Embedding(vocab, width)
    nn.init.normal_(table.weight, std=1.0 / math.sqrt(width))
    return table
