"""The training form of RWKV-4's average: its gradient against numerical differences and against the recurrence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgemem.cells.rwkv4 import TimeMix
from edgemem.cells.wkv import WeightedAverage
from edgemem.module import StreamingModule


def drawn(batch: int, time: int, width: int, seed: int) -> list[Tensor]:
    """w, u, k, v in float64, exponents small enough for the plain sums."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((width,), (width,), (batch, time, width), (batch, time, width))
    w, u, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return [tensor.requires_grad_() for tensor in (-torch.exp(w).detach(), u, 2.0 * k, v)]


def plain(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The equations as they stand, without scaling."""
    a = b = 0.0 * (w + k[:, 0])
    rows = []
    for t in range(k.shape[1]):
        now = torch.exp(u + k[:, t])
        rows.append((a + now * v[:, t]) / (b + now))
        a, b = torch.exp(w) * a + torch.exp(k[:, t]) * v[:, t], torch.exp(w) * b + torch.exp(k[:, t])
    return torch.stack(rows, dim=1)


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_values_and_gradients_are_those_of_the_plain_sums(batch: int, time: int, width: int, seed: int) -> None:
    tensors = drawn(batch, time, width, seed)
    weights = torch.randn(batch, time, width, dtype=torch.float64)
    y, wanted = WeightedAverage.apply(*tensors), plain(*tensors)
    torch.testing.assert_close(y, wanted, rtol=1e-11, atol=1e-11)
    for found, expected in zip(
        torch.autograd.grad((y * weights).sum(), tensors),
        torch.autograd.grad((wanted * weights).sum(), tensors),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_that_of_small_differences() -> None:
    assert torch.autograd.gradcheck(WeightedAverage.apply, drawn(2, 6, 3, seed=1))


@pytest.mark.parametrize("scale", [1.0, 400.0])
def test_long_sequences_and_large_exponents_stay_finite_and_equal_the_steps(scale: float) -> None:
    torch.manual_seed(0)
    cell, x = TimeMix(8).double(), torch.randn(2, 300, 8, dtype=torch.float64)
    with torch.no_grad():
        cell.key.weight *= scale  # e^k beyond float64
    y = cell(x)
    torch.testing.assert_close(y, StreamingModule.forward(cell, x), rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.grad(y.square().sum(), list(cell.parameters()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
