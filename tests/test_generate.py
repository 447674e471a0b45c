"""Sampling and decoding of tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.errors import InputError, UsageError
from edgemem.generate import Decoder, sample


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert sample(np.array([1.0, 3.0, 3.0, 2.0]), rng()) == 1


def test_frequencies_follow_the_softmax() -> None:
    logits, generator = np.log([0.1, 0.6, 0.3]), rng()
    counts = np.bincount([sample(logits, generator, 1.0) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(counts, [0.1, 0.6, 0.3], atol=0.03)  # three standard deviations of 4000 draws


def test_top_k_leaves_only_the_likeliest() -> None:
    generator = rng()
    drawn = {sample(np.array([0.0, 0.1, 5.0, 5.0]), generator, 100.0, top_k=2) for _ in range(200)}
    assert drawn == {2, 3}


def test_equal_seeds_draw_equal_tokens() -> None:
    logits = np.linspace(0, 1, 50)
    assert [sample(logits, rng(3), 1.0) for _ in range(5)] == [sample(logits, rng(3), 1.0) for _ in range(5)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"temperature": -1.0}, UsageError, "at least 0, got -1"),
        ({"temperature": float("nan")}, UsageError, "got nan"),
        ({"temperature": float("inf")}, UsageError, "finite number of at least 0, got inf"),
        ({"top_k": 0}, UsageError, "at least 1, got 0"),
        ({"top_k": 1.5}, UsageError, "whole number of at least 1, got 1.5"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict[str, float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sample(np.zeros(3), rng(), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (np.zeros((2, 2)), r"shape \[2, 2\]"),
        (np.zeros(0), r"shape \[0\]"),
        (np.array([0.0, np.nan]), "got nan"),
        (np.array([0.0, np.inf]), "got inf"),
        (np.full(3, -np.inf), "got -inf"),
    ],
)
def test_logits_without_a_token_are_refused(logits: np.ndarray, message: str, temperature: float) -> None:
    with pytest.raises(InputError, match=message):
        sample(logits, rng(), temperature)


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    generator = rng()
    drawn = {sample(np.array([-np.inf, 0.0, 0.0]), generator, 1.0, top_k=3) for _ in range(100)}
    assert drawn == {1, 2}
    assert sample(np.array([0.0, 2.0, 1.0]), generator, 1e-320) == 1  # the smallest numbers there are


@given(st.text(max_size=30))
def test_bytes_become_the_text_they_were(text: str) -> None:
    decoder = Decoder("bytes")
    assert "".join(decoder.push(byte) for byte in text.encode()) + decoder.flush() == text


def test_half_a_character_waits_and_ends_as_a_replacement() -> None:
    decoder = Decoder("bytes")
    assert decoder.push("é".encode()[0]) == ""
    assert decoder.flush() == "\ufffd"
    assert Decoder(None).push(17) == "17 "
    with pytest.raises(UsageError, match="'bpe'"):
        Decoder("bpe")


@pytest.mark.parametrize("token", [-1, 256])
def test_a_token_that_is_no_byte_is_refused(token: int) -> None:
    with pytest.raises(InputError, match=f"token {token} is not a byte"):
        Decoder("bytes").push(token)
