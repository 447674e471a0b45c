"""Leaky integrate-and-fire neurons: they remember a potential, and what they say is 0 or 1.

Liu, Datta, Li & Beerel, "LMUFormer", ICLR 2024, whose neurons are those of spikingjelly with a time constant of 2,
each behind a batch normalisation.

    x_t = gain (c_t - mean) / sqrt(variance) + bias    c [batch, width]    the current that flows in
    u_t = decay v_{t-1} + x_t                          v [batch, width]    the potential
    s_t = 1 where u_t >= 1, else 0                     s [batch, width]    a spike
    v_t = 0 where s_t, else u_t                                            reset by it

Mean and variance are those of the batch in training, and running averages of these afterwards.

In training a spike has the slope of an arctangent, and the reset none (Fang et al., "Incorporating Learnable Membrane
Time Constant", ICCV 2021):

    ds/du ~ 1 / (1 + (pi (u - 1))^2)      dv/du = 1 - s

A spike is a step: two runtimes that round the seventh digit of a current differently can differ by a whole spike,
rarely, and for as long as the potentials remember it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemem.errors import ConfigError
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor

THRESHOLD = 1.0
START_BIAS = 0.5  # so that neurons fire before any training
LEAST_VARIANCE = 1e-5
MOMENTUM = 0.1  # of the running averages, per batch


class ChannelNorm(nn.Module):
    """x [..., width] with each channel brought to mean 0 and deviation 1, then scaled and shifted."""

    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.full((width,), START_BIAS))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return (x - self.mean) * (self.gain / (self.variance + LEAST_VARIANCE).sqrt()) + self.bias
        rows = x.to(self.gain.dtype).flatten(0, -2)  # statistics of half precision would be coarse
        y = functional.batch_norm(
            rows, self.mean, self.variance, self.gain, self.bias, training=True, momentum=MOMENTUM, eps=LEAST_VARIANCE
        )
        return y.reshape(x.shape)


class LeakyIntegrateAndFire(StreamingModule):
    """Currents x [batch, width], normalised, to spikes [batch, width] of 0.0 and 1.0."""

    def __init__(self, width: int, decay: float = 0.5) -> None:
        """Raises ConfigError if `decay` is not in [0, 1)."""
        super().__init__()
        if not 0.0 <= decay < 1.0:
            raise ConfigError(f"LeakyIntegrateAndFire.decay must be in [0, 1), got {decay}; 0 forgets at once")
        self.decay = decay
        self.norm = ChannelNorm(width)
        self.state = (StateTensor("potential", (width,), low=-THRESHOLD, high=THRESHOLD),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        potential = self.decay * state["potential"] + self.norm(x)
        fires = potential >= THRESHOLD
        return fires.to(x.dtype), {"potential": torch.where(fires, torch.zeros_like(x), potential)}

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, time, width] to spikes of the same shape, with the slopes of the module docstring."""
        spikes: Tensor = Spikes.apply(self.norm(x), self.decay)  # type: ignore[no-untyped-call]
        return spikes


class Spikes(torch.autograd.Function):
    """All steps of x [batch, time, width]; backward through time with the slope of an arctangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, decay: float) -> Tensor:  # type: ignore[override]
        potentials = x.transpose(0, 1).contiguous()  # u, before the reset
        spikes = torch.empty_like(potentials)
        before = torch.zeros_like(potentials[0])
        for u, s in zip(potentials, spikes, strict=True):
            u.add_(before, alpha=decay)
            torch.ge(u, THRESHOLD, out=s)
            before = torch.addcmul(u, u, s, value=-1.0)
        ctx.save_for_backward(potentials, spikes)
        ctx.decay = decay
        return spikes.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        potentials, spikes = ctx.saved_tensors
        arctangent = (potentials - THRESHOLD).mul_(math.pi).square_().add_(1.0).reciprocal_()
        currents = arctangent.mul_(slope.transpose(0, 1))
        through = (1.0 - spikes).mul_(ctx.decay)  # dv_t / du_t, times what of it the next step sees
        for t in range(len(currents) - 2, -1, -1):
            currents[t].addcmul_(currents[t + 1], through[t])
        return currents.transpose(0, 1), None
