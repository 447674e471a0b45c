"""Gated recurrent unit, with torch's gate order and its reset gate after the recurrent product.

Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014 (version of cuDNN and torch).

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)            x [batch, features]
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)            h [batch, width]
    n = tanh(W_in x + b_in + r * (W_hn h + b_hn))         weight_ih [3 width, features]: rows r, z, n
    h = (1 - z) * n + z * h                               weight_hh [3 width, width]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemem.module import State, StreamingModule, kept
from edgemem.state import StateTensor


class GatedRecurrentUnit(StreamingModule):
    """features -> width; the state `hidden` [width] is the output of the last frame."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, batch_first=True)  # holds the weights, and runs whole sequences
        self.state = (StateTensor("hidden", (width,)),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = self._advance(self._projected(x), state["hidden"])
        return hidden, {"hidden": hidden}

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """One product for the inputs of all frames; the recurrent products follow one another."""
        projected, hidden, rows = self._projected(x), state["hidden"], []
        for index in range(x.shape[1]):
            after = self._advance(projected[:, index], hidden)
            hidden = after if valid is None else kept(valid > index, after, hidden)
            rows.append(after)
        return torch.stack(rows, dim=1), {"hidden": hidden}

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(x)[0]
        return y

    def _projected(self, x: Tensor) -> Tensor:
        weight, _, bias, _ = self.gru.all_weights[0]
        return functional.linear(x, weight, bias)

    def _advance(self, projected: Tensor, hidden: Tensor) -> Tensor:
        """One step from the input's gates [batch, 3 width] and the hidden state [batch, width]."""
        _, weight, _, bias = self.gru.all_weights[0]
        recurrent = functional.linear(hidden, weight, bias)
        x_reset, x_update, x_new = projected.chunk(3, dim=-1)
        h_reset, h_update, h_new = recurrent.chunk(3, dim=-1)
        reset, update = torch.sigmoid(x_reset + h_reset), torch.sigmoid(x_update + h_update)
        new = torch.tanh(x_new + reset * h_new)
        return (1 - update) * new + update * hidden
