"""Legendre memory, and the two recurrent layers made of it.

Voelker, Kajić & Eliasmith, "Legendre Memory Units", NeurIPS 2019 (LMUCell).
Chilkuri & Eliasmith, "Parallelizing Legendre Memory Unit Training", ICML 2021 (the parallel form).
Liu, Datta, Li & Beerel, "LMUFormer", ICLR 2024 (LMU).

The memory holds the last `window` steps of each input channel as `order` Legendre coefficients:

    theta m'(t) = A m(t) + B u(t)      A_ij = (2i+1) (-1 if i < j else (-1)^(i-j+1))      B_i = (2i+1) (-1)^i
    step        m_t = Ad m_{t-1} + Bd u_t                   m [batch, channels, order]     u [batch, channels]
    forward     m_t = sum_k h_k u_{t-k},  h_k = Ad^k Bd     u [batch, time, channels]      h [time, order]
    chunk       m_t = Ad^(t+1) m + sum_{k<=t} h_{t-k} u_k

Ad, Bd are the exact zero-order hold over one step: exp([[A, B], [0, 0]] / theta) = [[Ad, Bd], [0, 1]].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgemem.cells.padding import cleared, taken
from edgemem.errors import ConfigError
from edgemem.module import Composite, Run, State, StreamingModule
from edgemem.state import StateTensor

SHORT = 256  # steps up to which the parallel form is a matrix product
BLOCK = 8  # steps that the chunk form advances by one matrix product; its constants are [BLOCK, order, order]


def held_system(order: int, window: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ad [order, order] and Bd [order], float64: the delay system of `window` steps under zero-order hold."""
    row, column = np.arange(order)[:, None], np.arange(order)[None, :]
    sign = np.where(row < column, -1.0, np.where((row - column) % 2 == 0, -1.0, 1.0))
    augmented = np.zeros((order + 1, order + 1))
    augmented[:order, :order] = (2 * row + 1) * sign
    augmented[:order, order] = (2 * row[:, 0] + 1) * np.where(row[:, 0] % 2 == 0, 1.0, -1.0)
    held = torch.linalg.matrix_exp(torch.from_numpy(augmented / window)).numpy()
    return held[:order, :order].copy(), held[:order, order].copy()


def powers_of(a: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """a^1 .. a^count: [count, order, order]."""
    powers = [a]
    for _ in range(count - 1):
        powers.append(powers[-1] @ a)
    return np.stack(powers)


def impulse_response(a: NDArray[np.float64], b: NDArray[np.float64], time: int) -> NDArray[np.float64]:
    """h_k = a^k b for k < time: [time, order], doubled in length at each turn."""
    response, power = b[None, :], a
    while len(response) < time:
        response = np.concatenate([response, response @ power.T])
        power = power @ power
    return response[:time]


def causal_convolution(u: Tensor, response: Tensor) -> Tensor:
    """sum_k response_k u_{t-k}: u [batch, time, channels], response [time, order] -> [batch, time, channels, order].

    By one product with all shifts of the response where the sequence is short, else by FFT.
    """
    (batch, time, channels), order = u.shape, response.shape[1]
    if time <= SHORT:
        product = u.transpose(1, 2).reshape(-1, time) @ shifts(response)
        return product.reshape(batch, channels, time, order).transpose(1, 2)
    size = 2 * time  # zeros up to here keep the end of the circular convolution off its beginning
    spectrum = torch.fft.rfft(u, size, dim=1)[..., None] * torch.fft.rfft(response, size, dim=0)[:, None, :]
    convolved: Tensor = torch.fft.irfft(spectrum, size, dim=1)
    return convolved[:, :time]


def shifts(response: Tensor) -> Tensor:
    """response_{t-k} in row k, columns (t, :), zeros where k > t: [time, order] -> [time, time * order]."""
    time, order = response.shape
    padded = torch.cat([response.new_zeros(time - 1, order), response])
    windows = padded.unfold(0, time, 1)  # [time, order, time], the first one ending in response_0
    return windows.flip(0).transpose(1, 2).reshape(time, time * order)


class LegendreMemory(StreamingModule):
    """The last `window` steps of `channels` inputs, as `order` coefficients each; nothing in it is trained.

    Maps u [batch, channels] to m [batch, channels * order], channel by channel.
    """

    powers: Tensor  # [BLOCK, order, order]: Ad^1 .. Ad^BLOCK
    response: Tensor  # [BLOCK, order]: h_0 .. h_(BLOCK - 1)

    def __init__(self, order: int, window: float, channels: int = 1) -> None:
        """`window` is theta, in steps.

        Raises:
            ConfigError: an order or a channel count below 1, or a window that is not positive.
        """
        super().__init__()
        if order < 1 or channels < 1 or not (window > 0 and math.isfinite(window)):
            raise ConfigError(
                f"LegendreMemory needs order >= 1, channels >= 1 and a finite window > 0, "
                f"got order={order}, channels={channels}, window={window}"
            )
        self.order, self.window, self.channels = order, window, channels
        self.exact = held_system(order, window)
        self.register_buffer("powers", torch.from_numpy(powers_of(self.exact[0], BLOCK)).float(), persistent=False)
        self.register_buffer("response", torch.from_numpy(self._response(BLOCK)).float(), persistent=False)
        self.state = (StateTensor("memory", (channels, order)),)

    def _response(self, time: int) -> NDArray[np.float64]:
        return impulse_response(*self.exact, time)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LegendreMemory:
        """Move or cast the module; the constants are cast from float64, so that `.double()` is exact."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.powers = torch.from_numpy(powers_of(self.exact[0], BLOCK)).to(self.powers)
        self.response = torch.from_numpy(self._response(BLOCK)).to(self.response)
        return self

    def step(self, u: Tensor, state: State) -> tuple[Tensor, State]:
        memory = state["memory"] @ self.powers[0].T + u[:, :, None] * self.response[0]
        return memory.reshape(u.shape[0], -1), {"memory": memory}

    def chunk(self, u: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """From any state, BLOCK steps at a time; frames of u [batch, time, channels] from `valid` on are padding."""
        (batch, time), u = u.shape[:2], cleared(u, valid)
        memory, rows = state["memory"], [state["memory"][:, None]]
        for start in range(0, time, BLOCK):
            block = self._block(u[:, start : start + BLOCK], memory)
            rows.append(block)
            memory = block[:, -1]
        trace = torch.cat(rows, dim=1)  # [batch, 1 + time, channels, order]
        return trace[:, 1:].reshape(batch, time, -1), {"memory": taken(trace, valid, 1)[:, 0]}

    def _block(self, u: Tensor, memory: Tensor) -> Tensor:
        """u [batch, time <= BLOCK, channels] from `memory` [batch, channels, order]: [batch, time, channels, order]."""
        (batch, time), order = u.shape[:2], self.order
        decay = self.powers[:time].reshape(time * order, order)
        zeros = torch.zeros_like(self.response[:1]).expand(time, order)
        ahead = torch.cat([zeros, self.response[:time]])  # h_(t-k) at row time + t - k, zeros where k > t
        mixing = torch.stack([ahead[time - k : 2 * time - k].reshape(-1) for k in range(time)])  # [time, time * order]
        rows = memory @ decay.T + u.transpose(1, 2) @ mixing
        return rows.reshape(batch, self.channels, time, order).transpose(1, 2)

    def forward(self, u: Tensor) -> Tensor:
        """m [batch, time, channels * order] of u [batch, time, channels], by FFT."""
        response = torch.from_numpy(self._response(u.shape[1])).to(u)
        return causal_convolution(u, response).reshape(*u.shape[:2], -1)


class LMU(Composite):
    """The feed-forward layer of LMUFormer: nothing but the memory is recurrent, so it trains in parallel.

    u = relu(Wu x + bu)      x [batch, width]       u [batch, channels]; the paper has one channel
    m = LegendreMemory(u)                           m [batch, channels * order]
    h = relu(Wh [m; x] + bh)                        h [batch, outputs]
    """

    def __init__(self, width: int, order: int, window: float, outputs: int = 0, channels: int = 1) -> None:
        """`outputs` 0 means `width`; `window` is in steps."""
        super().__init__()
        self.encode = nn.Linear(width, channels)
        self.memory = LegendreMemory(order, window, channels)
        self.mix = nn.Linear(channels * order + width, outputs or width)
        # relu passes half of the variance; u starts mostly positive, so that no channel is born dead
        nn.init.kaiming_normal_(self.mix.weight)
        nn.init.constant_(self.encode.bias, 0.5)

    def flow(self, x: Tensor, run: Run) -> Tensor:
        m = run("memory", functional.relu(self.encode(x)))
        return functional.relu(self.mix(torch.cat([m, x], dim=-1)))


class LMUCell(StreamingModule):
    """The original cell, genuinely recurrent: memory and hidden state feed each other.

        u_t = ex . x_t + eh . h_{t-1} + em . m_{t-1}            x [batch, inputs]    u [batch]
        m_t = Ad m_{t-1} + Bd u_t                               m [batch, order]
        h_t = tanh(Wx x_t + Wh h_{t-1} + Wm m_t)                h [batch, hidden]

    Starts as in the paper (LeCun uniform encoders, Xavier normal kernels), with a small em in place of zeros.
    """

    def __init__(self, inputs: int, hidden: int, order: int, window: float) -> None:
        """`window` is in steps."""
        super().__init__()
        self.memory_system = LegendreMemory(order, window)
        self.memory_system.state = ()  # the memory is this cell's own state
        self.input_encoder = nn.Parameter(uniform(inputs, math.sqrt(3.0 / inputs)))
        self.hidden_encoder = nn.Parameter(uniform(hidden, math.sqrt(3.0 / hidden)))
        self.memory_encoder = nn.Parameter(uniform(order, 0.1 / order))
        self.input_kernel = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden, inputs)))
        self.hidden_kernel = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden, hidden)))
        self.memory_kernel = nn.Parameter(nn.init.xavier_normal_(torch.empty(hidden, order)))
        self.state = (StateTensor("hidden", (hidden,)), StateTensor("memory", (order,)))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, memory, system = state["hidden"], state["memory"], self.memory_system
        u = x @ self.input_encoder + hidden @ self.hidden_encoder + memory @ self.memory_encoder
        memory = memory @ system.powers[0].T + u[:, None] * system.response[0]
        hidden = torch.tanh(x @ self.input_kernel.T + hidden @ self.hidden_kernel.T + memory @ self.memory_kernel.T)
        return hidden, {"hidden": hidden, "memory": memory}


def uniform(count: int, bound: float) -> Tensor:
    """[count] drawn from -bound..bound."""
    return (2.0 * torch.rand(count) - 1.0) * bound
