"""The weighted average of RWKV-4 over a whole sequence, with its own gradient: what training spends its time on.

    y_t = (A_t + e^{u + k_t} v_t) / (B_t + e^{u + k_t})         k, v, y [batch, time, width]     u, w [width], w < 0
    A_{t+1} = e^w A_t + e^{k_t} v_t        B_{t+1} = e^w B_t + e^{k_t}         both 0 before the first frame

    backward, with g_t the gradient of y_t and D_t the denominator of y_t
    F_t = g_t / D_t + e^w F_{t+1}          (of A_t)      H_t = -g_t y_t / D_t + e^w H_{t+1}     (of B_t)
    dv_t = e^{u + k_t} g_t / D_t + e^{k_t} F_{t+1}
    dk_t = e^{u + k_t} g_t (v_t - y_t) / D_t + e^{k_t} (v_t F_{t+1} + H_{t+1})
    du = sum e^{u + k_t} g_t (v_t - y_t) / D_t           dw = sum e^w (A_t F_{t+1} + B_t H_{t+1})

Sums are held as e^p a, with p the largest exponent in them (p_{t+1} = max(p_t + w, k_t), a cumulative maximum of
k_t - t w), and, backward, as e^s f with s_t = max(-q_t, s_{t+1} + w), q_t = max(p_t, u + k_t). No exponent that is
raised is above 0 then. All but one multiply-add per frame, each way, is done for all frames at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EMPTY = -1e30  # exponent of an empty sum: finite, so that differences of two are 0 and not NaN


class WeightedAverage(torch.autograd.Function):
    """y [batch, time, width] of w, u [width] and k, v [batch, time, width], from an empty past."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
        after = largest(k, w)  # p_{t+1} of every frame
        p = torch.cat([torch.full_like(after[:, :1], EMPTY), after[:, :-1]], dim=1)
        new = torch.exp(k - after)
        sums = scanned(torch.exp(p + w - after), torch.stack([new * v, new]))
        a, b = torch.cat([torch.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], dim=2)
        q = torch.maximum(p, u + k)
        old, now = torch.exp(p - q), torch.exp(u + k - q)
        d = old * b + now
        y: Tensor = (old * a + now * v) / d
        ctx.save_for_backward(w, k, v, p, a, b, q, now, d, y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        w, k, v, p, a, b, q, now, d, y = ctx.saved_tensors
        g = gradients[0] / d
        s = largest(-q.flip(1), w).flip(1)  # s_t of every frame
        later = torch.cat([s[:, 1:], torch.full_like(s[:, :1], EMPTY)], dim=1)
        scale = torch.exp(-q - s)
        sums = scanned(torch.exp(later + w - s).flip(1), torch.stack([scale * g, -scale * g * y]).flip(2)).flip(2)
        f, h = torch.cat([sums[:, :, 1:], torch.zeros_like(sums[:, :, :1])], dim=2)
        raised = torch.exp(k + later)
        bonus = now * g * (v - y)
        dw = torch.exp(w + p + later) * (a * f + b * h)
        return (
            dw.sum(dim=(0, 1)),
            bonus.sum(dim=(0, 1)),
            bonus + raised * (v * f + h),
            now * g + raised * f,
        )


def largest(x: Tensor, w: Tensor) -> Tensor:
    """m_t = max(m_{t-1} + w, x_t) over time of x [batch, time, width]."""
    ages = torch.arange(x.shape[1], dtype=x.dtype, device=x.device)[:, None] * w
    return torch.cummax(x - ages, dim=1)[0] + ages


def scanned(decay: Tensor, x: Tensor) -> Tensor:
    """s_t = decay_t s_{t-1} + x_t: decay [batch, time, width], x [2, batch, time, width]."""
    steps, factors, rows = x.unbind(2), decay.unbind(1), []
    total = torch.zeros_like(steps[0])
    for factor, step in zip(factors, steps, strict=True):
        total = torch.addcmul(step, total, factor)
        rows.append(total)
    return torch.stack(rows, dim=2)
