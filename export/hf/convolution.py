"""Short depthwise convolutions over time, one frame at a time: their state is the last inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def convolved(convolution: nn.Conv1d, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
    """Frame x [batch, width] through a causal depthwise convolution, and the tail [batch, width, taps - 1] after it."""
    frames = torch.cat([tail, x[:, :, None]], dim=2)
    y = (frames * convolution.weight[:, 0]).sum(dim=2)
    return y if convolution.bias is None else y + convolution.bias, frames[:, :, 1:]
