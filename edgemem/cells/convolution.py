"""Causal convolution over time: the frames it still needs are its state.

    y_t = b + sum_j W_j x_{t - (kernel - 1 - j) * dilation}      x [batch, in]     W_j [out, in / groups]
    state  tail = the last (kernel - 1) * dilation frames        [span, in]        zeros before the first

A step is one matrix product over the gathered taps (or, depthwise, `kernel` multiply-adds), which is what small
targets do best.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemem.cells.padding import cleared, taken
from edgemem.errors import ConfigError
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor


class CausalConv1d(StreamingModule):
    """x [batch, time, inputs] to [batch, time, outputs]; weight [outputs, kernel * inputs / groups].

    The taps of `weight` are ordered by time, the oldest first.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, dilation: int = 1, groups: int = 1) -> None:
        """`groups` = `inputs` = `outputs` is a depthwise convolution.

        Raises:
            ConfigError: a size below 1, or groups that do not divide the channels.
        """
        super().__init__()
        if min(inputs, outputs, kernel, dilation, groups) < 1 or inputs % groups or outputs % groups:
            raise ConfigError(
                f"CausalConv1d needs sizes >= 1 and groups that divide inputs and outputs, got inputs={inputs}, "
                f"outputs={outputs}, kernel={kernel}, dilation={dilation}, groups={groups}"
            )
        self.inputs_count, self.kernel, self.dilation, self.groups = inputs, kernel, dilation, groups
        self.depthwise = groups == inputs == outputs
        self.span = (kernel - 1) * dilation
        taps = kernel * inputs // groups
        self.weight = nn.Parameter(torch.randn(outputs, taps) * math.sqrt(2.0 / taps))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.state = (StateTensor("tail", (self.span, inputs), role="tail"),) if self.span else ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = self.chunk(x[:, None], state)
        return y[:, 0], state

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Frames of x [batch, time, inputs] from `valid` on are padding."""
        if not self.span:
            return self._mixed([x]), {}
        rows = torch.cat([state["tail"], cleared(x, valid)], dim=1)
        return self._convolved(rows, x.shape[1]), {"tail": taken(rows, valid, self.span)}

    def forward(self, x: Tensor) -> Tensor:
        """By the library's convolution of pictures, one pixel high: the fastest to train of those it has."""
        rows = functional.pad(x, (0, 0, self.span, 0)).transpose(1, 2)[:, :, None]  # [batch, inputs, 1, span + time]
        weight = self.weight.reshape(len(self.weight), self.kernel, -1).transpose(1, 2)[:, :, None]
        y = functional.conv2d(rows, weight, self.bias, dilation=(1, self.dilation), groups=self.groups)
        return y[:, :, 0].transpose(1, 2)

    def _convolved(self, rows: Tensor, time: int) -> Tensor:
        """rows [batch, span + time, inputs] -> [batch, time, outputs]."""
        if time == 1 and self.dilation == 1 and self.groups == 1:  # the taps already lie one after another
            return functional.linear(rows.reshape(rows.shape[0], 1, -1), self.weight, self.bias)
        return self._mixed([rows[:, j * self.dilation : j * self.dilation + time] for j in range(self.kernel)])

    def _mixed(self, taps: list[Tensor]) -> Tensor:
        """`kernel` shifted views [batch, time, inputs] -> [batch, time, outputs]."""
        if self.groups == 1:
            return functional.linear(torch.cat(taps, dim=-1), self.weight, self.bias)
        if self.depthwise:
            y: Tensor = self.bias
            for j, tap in enumerate(taps):
                y = y + tap * self.weight[:, j]
            return y
        batch, time, _ = taps[0].shape
        window = torch.cat([tap.reshape(batch, time, self.groups, 1, -1) for tap in taps], dim=-1)
        weight = self.weight.reshape(self.groups, -1, self.weight.shape[1]).transpose(1, 2)
        return (window @ weight).reshape(batch, time, -1) + self.bias
