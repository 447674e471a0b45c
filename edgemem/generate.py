"""Choosing the next token, and turning tokens into text as they come."""

from __future__ import annotations

import codecs
import math
from typing import Any

import numpy as np

from edgemem.errors import InputError, UsageError

Array = np.ndarray[Any, np.dtype[Any]]


def sample(logits: Array, rng: np.random.Generator, temperature: float = 0.0, top_k: int | None = None) -> int:
    """A token drawn from logits [vocab]: the likeliest at temperature 0, else by softmax(logits / temperature).

    `top_k` keeps only that many of the likeliest tokens. Ties at temperature 0 go to the lowest token.

    A logit of minus infinity rules its token out.

    Raises:
        UsageError: a temperature that is negative or not finite, or a `top_k` that is not a whole number of at least 1.
        InputError: logits that are not one vector of numbers, or that rule out every token.
    """
    if not 0.0 <= temperature < math.inf:
        raise UsageError(f"temperature must be a finite number of at least 0, got {temperature}; 0 takes the likeliest")
    if top_k is not None and (not isinstance(top_k, int | np.integer) or top_k < 1):
        raise UsageError(f"top_k must be a whole number of at least 1, got {top_k}; leave it out to keep all tokens")
    scores = checked(logits)
    if temperature == 0.0:
        return int(scores.argmax())
    if top_k is not None and top_k < len(scores):
        likeliest = np.argsort(-scores, kind="stable")[:top_k]
        kept = np.full_like(scores, -np.inf)
        kept[likeliest] = scores[likeliest]
        scores = kept
    with np.errstate(over="ignore"):  # a tiny temperature: minus infinity, of which the power is 0
        powers = np.exp((scores - scores.max()) / temperature)
    return int(rng.choice(len(scores), p=powers / powers.sum()))


def checked(logits: Array) -> Array:
    """The logits in float64, where a token can be drawn from them.

    Raises:
        InputError: not a vector, an empty one, or one without a finite maximum.
    """
    scores = np.asarray(logits, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise InputError(f"logits must be one vector [vocab], got shape {list(scores.shape)}; give those of one step")
    largest = scores.max()  # NaN if any is
    if not np.isfinite(largest):
        raise InputError(f"logits must have a finite maximum, got {largest}; the model's weights or state are damaged")
    return scores


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
        """The text that is complete with this token, often none.

        Raises:
            InputError: a token that is not a byte, where the encoding is `bytes`.
        """
        if self._utf8 is None:
            return f"{token} "
        if not 0 <= token <= 255:
            raise InputError(f"token {token} is not a byte, 0 to 255; the model's encoding is not 'bytes'")
        return self._utf8.decode(bytes([token]))

    def flush(self) -> str:
        """What is left of a character whose end never came."""
        return "" if self._utf8 is None else self._utf8.decode(b"", final=True)
