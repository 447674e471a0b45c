"""LSTM, GRU and RNN of the ONNX standard in float64, frame by frame and stream by stream, with loops.

https://onnx.ai/onnx/operators/onnx__LSTM.html      https://onnx.ai/onnx/operators/onnx__GRU.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Function = Callable[[Array], Array]
FUNCTIONS: Mapping[str, Callable[..., Function]] = {
    "Relu": lambda: lambda x: np.where(x > 0, x, 0),
    "Tanh": lambda: np.tanh,
    "Sigmoid": lambda: lambda x: 1 / (1 + np.exp(-x)),
    "Softsign": lambda: lambda x: x / (1 + np.abs(x)),
    "Softplus": lambda: lambda x: np.log1p(np.exp(x)),
    "Affine": lambda alpha, beta: lambda x: alpha * x + beta,
    "LeakyRelu": lambda alpha: lambda x: np.where(x >= 0, x, alpha * x),
    "ThresholdedRelu": lambda alpha: lambda x: np.where(x > alpha, x, 0),  # as the operator of that name has it
    "ScaledTanh": lambda alpha, beta: lambda x: alpha * np.tanh(beta * x),
    "HardSigmoid": lambda alpha, beta: lambda x: np.minimum(np.maximum(alpha * x + beta, 0), 1),
    "Elu": lambda alpha: lambda x: np.where(x >= 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1)),
}


def layer(
    kind: str,
    x: Array,  # [time, batch, inputs]
    weights: Mapping[str, Array],  # W, R, and B, P where there are such, for each direction
    start: Mapping[str, Array],  # h and c [directions, batch, hidden]
    functions: Sequence[Sequence[Function]],  # of each direction
    backwards: Sequence[bool],
    lengths: Array,  # [batch] int
    clip: float | None = None,
    linear_before_reset: bool = False,
    input_forget: bool = False,
) -> dict[str, Array]:
    """Y [time, directions, batch, hidden], Y_h and (LSTM) Y_c [directions, batch, hidden]."""
    time, batch, _ = x.shape
    hidden = weights["R"].shape[2]
    y = np.zeros((time, len(backwards), batch, hidden))
    last = {name: np.array(value, np.float64) for name, value in start.items()}
    for d, back in enumerate(backwards):
        for b in range(batch):
            own = {name: array[d].astype(np.float64) for name, array in weights.items()}
            state = {name: value[d, b] for name, value in last.items()}
            for t in reversed(range(time)) if back else range(time):
                if t >= lengths[b]:
                    continue
                options = (functions[d], clip, linear_before_reset, input_forget)
                state = CELLS[kind](x[t, b].astype(np.float64), state, own, hidden, *options)
                y[t, d, b] = state["h"]
            for name, value in state.items():
                last[name][d, b] = value
    return {"Y": y, **{f"Y_{name}": value for name, value in last.items()}}


def bounded(x: Array, clip: float | None) -> Array:
    return x if clip is None else np.minimum(np.maximum(x, -clip), clip)


def gate(own: Mapping[str, Array], which: int, hidden: int, x: Array) -> tuple[Array, Array, Array, Array]:
    """W x, R of one gate, and its two biases."""
    rows = slice(which * hidden, (which + 1) * hidden)
    both = own.get("B", np.zeros(2 * len(own["W"])))
    half = len(both) // 2
    return own["W"][rows] @ x, own["R"][rows], both[:half][rows], both[half:][rows]


def lstm(x: Array, state: Mapping[str, Array], own: Mapping[str, Array], hidden: int, f: Sequence[Function],
         clip: float | None, linear: bool, input_forget: bool) -> dict[str, Array]:  # fmt: skip
    h, c = state["h"], state["c"]
    peep = own.get("P", np.zeros(3 * hidden)).reshape(3, hidden)  # i o f
    i, o, g, n = (w + r @ h + wb + rb for w, r, wb, rb in (gate(own, k, hidden, x) for k in range(4)))
    i = f[0](bounded(i + peep[0] * c, clip))
    forget = 1 - i if input_forget else f[0](bounded(g + peep[2] * c, clip))
    memory = forget * c + i * f[1](bounded(n, clip))
    return {"h": f[0](bounded(o + peep[1] * memory, clip)) * f[2](memory), "c": memory}


def gru(x: Array, state: Mapping[str, Array], own: Mapping[str, Array], hidden: int, f: Sequence[Function],
        clip: float | None, linear: bool, input_forget: bool) -> dict[str, Array]:  # fmt: skip
    h = state["h"]
    z, r = (f[0](bounded(w + rec @ h + wb + rb, clip)) for w, rec, wb, rb in (gate(own, k, hidden, x) for k in (0, 1)))
    w, rec, wb, rb = gate(own, 2, hidden, x)
    seen = r * (rec @ h + rb) if linear else rec @ (r * h) + rb
    return {"h": (1 - z) * f[1](bounded(w + wb + seen, clip)) + z * h}


def rnn(x: Array, state: Mapping[str, Array], own: Mapping[str, Array], hidden: int, f: Sequence[Function],
        clip: float | None, linear: bool, input_forget: bool) -> dict[str, Array]:  # fmt: skip
    w, r, wb, rb = gate(own, 0, hidden, x)
    return {"h": f[0](bounded(w + r @ state["h"] + wb + rb, clip))}


CELLS = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
