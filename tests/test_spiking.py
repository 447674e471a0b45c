"""Spiking neurons: when they fire, what training sees of it, and their normalisation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from edgemem.cells.spiking import MOMENTUM, ChannelNorm, LeakyIntegrateAndFire, Spikes
from edgemem.errors import ConfigError


def plain(decay: float = 0.5) -> LeakyIntegrateAndFire:
    """One neuron that takes its current as it is."""
    neuron = LeakyIntegrateAndFire(1, decay).eval()
    with torch.no_grad():
        neuron.norm.bias.zero_()
    return neuron


def fired(neuron: LeakyIntegrateAndFire, *currents: float) -> list[float]:
    with torch.no_grad():
        return [float(spike) for spike in neuron(torch.tensor(currents)[None, :, None]).flatten()]


def test_a_neuron_gathers_leaks_fires_and_starts_again() -> None:
    # potentials 0.6, 0.9, 1.05 -> fires; then 0.6 again
    assert fired(plain(), 0.6, 0.6, 0.6, 0.6) == [0.0, 0.0, 1.0, 0.0]
    assert fired(plain(decay=0.0), 0.6, 0.6, 0.6) == [0.0, 0.0, 0.0]
    assert fired(plain(), 1.001, 5.0, -5.0, 1.001) == [1.0, 1.0, 0.0, 0.0]  # what is below 0 is owed


def test_a_decay_that_forgets_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"decay must be in \[0, 1\), got 1\.0"):
        LeakyIntegrateAndFire(3, 1.0)


class Step(torch.autograd.Function):
    """One step's spike with the slope of an arctangent, for the same thing written step by step."""

    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(potential)
        return (potential >= 1.0).to(potential.dtype)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:  # type: ignore[override]
        (potential,) = ctx.saved_tensors
        return slope / (1.0 + (math.pi * (potential - 1.0)) ** 2)


def test_the_gradient_is_that_of_the_steps_one_by_one() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 20, 5, dtype=torch.float64), torch.randn(3, 20, 5, dtype=torch.float64)
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    (Spikes.apply(mine, 0.5) * weight).sum().backward()
    potential, spikes = torch.zeros(3, 5, dtype=torch.float64), []
    for t in range(20):
        u = 0.5 * potential + theirs[:, t]
        spikes.append(Step.apply(u))
        potential = u * (1.0 - spikes[-1].detach())
    (torch.stack(spikes, dim=1) * weight).sum().backward()
    assert theirs.grad is not None and mine.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)


def test_training_normalises_by_the_batch_and_remembers_it() -> None:
    torch.manual_seed(0)
    norm, x = ChannelNorm(2).train(), torch.randn(4, 100, 2) * torch.tensor([3.0, 0.1]) + torch.tensor([5.0, -1.0])
    y = (norm(x) - norm.bias).flatten(0, 1)
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(y.std(dim=0), torch.ones(2), atol=5e-3, rtol=0.0)
    mean, variance = x.flatten(0, 1).mean(dim=0), x.flatten(0, 1).var(dim=0)
    torch.testing.assert_close(norm.mean, MOMENTUM * mean)
    torch.testing.assert_close(norm.variance, 1.0 + MOMENTUM * (variance - 1.0))
    for _ in range(200):
        norm(x)
    torch.testing.assert_close(norm.eval()(x), (x - mean) / (variance + 1e-5).sqrt() + norm.bias, atol=1e-3, rtol=1e-3)
