"""Running average over time, with an optional forgetting factor.

    step     s_t = forget s_{t-1} + x_t      n_t = forget n_{t-1} + 1      y_t = s_t / n_t
    chunk    s_t = forget^(t+1) s + sum_{k<=t} forget^(t-k) x_k            s [batch, width]     n [batch, 1]

`forget` = 1 averages all of the input, as LMUFormer's head does (Liu et al. 2024): right for clips. Below 1 it
averages the last 1 / (1 - forget) frames or so, which is what a stream without an end needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem.cells.padding import cleared, taken
from edgemem.errors import ConfigError
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor

BLOCK = 16  # frames whose sums are one matrix product
LONG = 1000.0  # weight of a state that verification may start from, where it has no bound


class RunningAverage(StreamingModule):
    """x [batch, width] to the mean of the frames so far [batch, width]; nothing in it is trained."""

    def __init__(self, width: int, forget: float = 1.0) -> None:
        """Raises ConfigError if `forget` is not in (0, 1]."""
        super().__init__()
        if not 0.0 < forget <= 1.0:
            raise ConfigError(f"RunningAverage.forget must be in (0, 1], got {forget}; 1 averages the whole input")
        self.width, self.forget = width, forget
        most = LONG if forget == 1.0 else min(LONG, 1.0 / (1.0 - forget))
        self.state = (
            StateTensor("sum", (width,), low=-most, high=most, wide=True),
            StateTensor("weight", (1,), role="counter", low=0.0, high=most, wide=True),
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        total, weight = state["sum"] * self.forget + x, state["weight"] * self.forget + 1.0
        return total / weight, {"sum": total, "weight": weight}

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Frames of x [batch, time, width] from `valid` on are padding."""
        real = torch.cat([cleared(x, valid), torch.ones_like(x[:, :, :1])], dim=-1)
        start = torch.cat([state["sum"], state["weight"]], dim=-1)[:, None]
        sums = discounted_sums(real, self.forget, start)
        last = taken(torch.cat([start, sums], dim=1), valid, 1)[:, 0]
        return sums[..., :-1] / sums[..., -1:], {"sum": last[:, :-1], "weight": last[:, -1:]}

    def forward(self, x: Tensor) -> Tensor:
        zeros = x.new_zeros(x.shape[0], self.width + 1)
        return self.chunk(x, {"sum": zeros[:, :-1], "weight": zeros[:, -1:]})[0]


def discounted_sums(x: Tensor, forget: float, start: Tensor) -> Tensor:
    """s_t = forget s_{t-1} + x_t from `start` [batch, 1, width]: x [batch, time, width] -> [batch, time, width].

    Blocks of BLOCK frames each by one triangular product; their ends carry over by the same sum, one level up.
    """
    time = x.shape[1]
    if time <= BLOCK:
        return triangle(x, time, forget) @ x + decay(x, time, forget) * start
    blocks = -(-time // BLOCK)
    filler = x.new_zeros(x.shape[0], blocks * BLOCK - time, x.shape[2])
    grid = torch.cat([x, filler], dim=1).reshape(x.shape[0], blocks, BLOCK, x.shape[2])
    inner = triangle(x, BLOCK, forget) @ grid
    ends = discounted_sums(inner[:, :, -1], forget**BLOCK, start)
    before = torch.cat([start, ends[:, :-1]], dim=1)[:, :, None]
    return (inner + decay(x, BLOCK, forget) * before).reshape(x.shape[0], blocks * BLOCK, x.shape[2])[:, :time]


def triangle(x: Tensor, time: int, forget: float) -> Tensor:
    """[time, time] of forget^(t - k) where k <= t, else 0, in the dtype of x."""
    return torch.tensor(
        [[forget ** (t - k) if k <= t else 0.0 for k in range(time)] for t in range(time)],
        dtype=x.dtype,
        device=x.device,
    )


def decay(x: Tensor, time: int, forget: float) -> Tensor:
    """[time, 1] of forget^(t + 1), in the dtype of x."""
    return torch.tensor([[forget ** (t + 1)] for t in range(time)], dtype=x.dtype, device=x.device)
