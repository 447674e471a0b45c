"""Choosing the next token, and turning tokens into text as they come."""

from __future__ import annotations

import codecs
from typing import Any

import numpy as np

from edgemem.errors import InputError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]


def sample(logits: Array, rng: np.random.Generator, temperature: float = 0.0, top_k: int | None = None) -> int:
    """A token drawn from logits [vocab]: the likeliest at temperature 0, else by softmax(logits / temperature).

    `top_k` keeps only that many of the likeliest tokens. Ties at temperature 0 go to the lowest token.

    Raises:
        UsageError: a negative temperature or a `top_k` below 1.
        InputError: logits that are not one vector of numbers.
    """
    if not temperature >= 0.0:
        raise UsageError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k must be at least 1, got {top_k}")
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 1 or not len(scores) or np.isnan(scores).any():
        raise InputError(f"logits: one vector of numbers was wanted, shape {list(scores.shape)} or NaN came")
    if temperature == 0.0:
        return int(scores.argmax())
    if top_k is not None and top_k < len(scores):
        likeliest = np.argsort(-scores, kind="stable")[:top_k]
        kept = np.full_like(scores, -np.inf)
        kept[likeliest] = scores[likeliest]
        scores = kept
    powers = np.exp((scores - scores.max()) / temperature)
    return int(rng.choice(len(scores), p=powers / powers.sum()))


class Decoder:
    """Text of tokens, one by one; a character appears when its last byte has come.

    The encoding `bytes` has one token per byte of UTF-8, with U+FFFD for what is not. Without an encoding a token
    is written as its number and a space.
    """

    def __init__(self, encoding: str | None) -> None:
        if encoding not in ("bytes", None):
            raise UsageError(f"encoding {encoding!r} is unknown; there is 'bytes'")
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace") if encoding else None

    def push(self, token: int) -> str:
        """The text that is complete with this token, often none."""
        return f"{token} " if self._utf8 is None else self._utf8.decode(bytes([token]))

    def flush(self) -> str:
        """What is left of a character whose end never came."""
        return "" if self._utf8 is None else self._utf8.decode(b"", final=True)
