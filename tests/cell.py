"""A module of a user's own, that is no part of the zoo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemem.state import StateTensor

State = dict[str, Tensor]
EXAMPLE = torch.zeros(1, 1, 3)


class Cell(nn.Module):
    """The smallest recurrent module a user might write."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3 + width, width)
        self.state = (StateTensor("hidden", (width,)),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = torch.tanh(self.mix(torch.cat([x, state["hidden"]], dim=-1)))
        return hidden, {"hidden": hidden}
