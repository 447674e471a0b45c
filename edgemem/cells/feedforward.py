"""The feed-forward part of attention's layers (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FeedForward(nn.Module):
    """W_2 relu(W_1 x) on each frame."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner)
        self.reduce = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reduce(torch.relu(self.expand(x)))
        return y
