"""RWKV-4: time mixing by an exponentially decaying attention, and channel mixing.

Peng et al., "RWKV: Reinventing RNNs for the Transformer Era", Findings of EMNLP 2023. Names are BlinkDL's.

    shift   x^k = mu_k x_t + (1 - mu_k) x_{t-1}                         x [batch, width], the same for v and r
    r = sigmoid(Wr x^r)    k = Wk x^k    v = Wv x^v    w = -exp(time_decay)    u = time_first
    wkv_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (sum_{i<t} e^{(t-1-i) w + k_i} + e^{u + k_t})
    y = Wo (r wkv)

    step    numerator aa, denominator bb and the largest exponent pp that both are scaled by:
            q = max(pp, u + k)          wkv = (e^{pp-q} aa + e^{u+k-q} v) / (e^{pp-q} bb + e^{u+k-q})
            q = max(pp + w, k)          aa = e^{pp+w-q} aa + e^{k-q} v      bb = e^{pp+w-q} bb + e^{k-q}      pp = q
    chunk   the same sums over a block of frames at once, each scaled by its own largest exponent; while training, frame
            after frame, which is the least work where a batch is large
    forward the same sums for training from an empty past, see `edgemem.cells.wkv`

    channel mixing   y = sigmoid(Wr x^r) (Wv relu(Wk x^k)^2)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemem.cells.padding import cleared, taken
from edgemem.cells.wkv import EMPTY, WeightedAverage
from edgemem.module import State, StreamingModule
from edgemem.state import StateTensor

BLOCK = 32  # frames whose pairwise exponents [BLOCK, BLOCK + 1, width] are held at once


def shifted(x: Tensor, before: Tensor) -> Tensor:
    """x [batch, time, width] one frame later, `before` [batch, width] first."""
    return torch.cat([before[:, None], x[:, :-1]], dim=1)


def mixed(x: Tensor, past: Tensor, mu: Tensor) -> Tensor:
    """mu x + (1 - mu) past, mu [1, 1, width] whatever the leading axes of x."""
    return x * mu.reshape(-1) + past * (1 - mu.reshape(-1))


class TimeMix(StreamingModule):
    """x [batch, width] to [batch, width]; the states wkv_num, wkv_den and wkv_max are aa, bb and pp."""

    def __init__(self, width: int, depth: float = 0.0, rest: float = 1.0) -> None:
        """`depth` (0 first layer .. 1 last) and `rest` (1 .. almost 0) shape the start values, as BlinkDL's do."""
        super().__init__()
        place = torch.arange(width) / width
        self.time_decay = nn.Parameter(-5.0 + 8.0 * (torch.arange(width) / max(1, width - 1)) ** (0.7 + 1.3 * depth))
        zigzag = ((torch.arange(width) + 1) % 3 - 1) * 0.5
        self.time_first = nn.Parameter(torch.full((width,), -1.2039728) + zigzag)  # log 0.3
        self.time_mix_k = nn.Parameter(place.pow(rest).reshape(1, 1, -1))
        self.time_mix_v = nn.Parameter((place.pow(rest) + 0.3 * depth).reshape(1, 1, -1))
        self.time_mix_r = nn.Parameter(place.pow(0.5 * rest).reshape(1, 1, -1))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.state = (
            StateTensor("shift", (width,)),
            StateTensor("wkv_num", (width,), wide=True),
            StateTensor("wkv_den", (width,), low=0.5, high=8.0, wide=True),
            StateTensor("wkv_max", (width,), start=EMPTY, low=-4.0, high=4.0, wide=True),
        )

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        r, k, v = self._projected(x, state["shift"])
        wkv, (aa, bb, pp) = self._advanced(k, v, state["wkv_num"], state["wkv_den"], state["wkv_max"])
        return self.output(r * wkv), {"shift": x, "wkv_num": aa, "wkv_den": bb, "wkv_max": pp}

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """All projections at once, then the sums block by block.

        Frames of x [batch, time, width] from `valid` on are padding.
        """
        if x.shape[1] == 1 and valid is None:
            y, after = self.step(x[:, 0], state)
            return y[:, None], after
        x = cleared(x, valid)
        r, k, v = self._projected(x, shifted(x, state["shift"]))
        sums = (state["wkv_num"], state["wkv_den"], state["wkv_max"])
        if self.training and valid is None:
            rows = []
            for now_k, now_v in zip(k.unbind(1), v.unbind(1), strict=True):
                wkv, sums = self._advanced(now_k, now_v, *sums)
                rows.append(wkv)
            after = {"shift": x[:, -1], "wkv_num": sums[0], "wkv_den": sums[1], "wkv_max": sums[2]}
            return self.output(r * torch.stack(rows, dim=1)), after
        rows, traces = [], [tuple(s[:, None] for s in sums)]
        for start in range(0, x.shape[1], BLOCK):
            piece = slice(start, start + BLOCK)
            wkv, trace = self._block(k[:, piece], v[:, piece], *(s[:, -1] for s in traces[-1]))
            rows.append(wkv)
            traces.append(trace)
        seen = [torch.cat(parts, dim=1) for parts in zip(*traces, strict=True)]  # each [batch, 1 + time, width]
        last = [taken(part, valid, 1)[:, 0] for part in seen]
        shift = taken(torch.cat([state["shift"][:, None], x], dim=1), valid, 1)[:, 0]
        after = {"shift": shift, "wkv_num": last[0], "wkv_den": last[1], "wkv_max": last[2]}
        return self.output(r * torch.cat(rows, dim=1)), after

    def forward(self, x: Tensor) -> Tensor:
        """The whole sequence x [batch, time, width], with a gradient of its own: what training runs."""
        r, k, v = self._projected(x, shifted(x, torch.zeros_like(x[:, 0])))
        wkv = WeightedAverage.apply(-torch.exp(self.time_decay), self.time_first, k, v)  # type: ignore[no-untyped-call]
        y: Tensor = self.output(r * wkv)
        return y

    def _projected(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, k, v of frames and the frames before them."""
        r = torch.sigmoid(self.receptance(mixed(x, past, self.time_mix_r)))
        return r, self.key(mixed(x, past, self.time_mix_k)), self.value(mixed(x, past, self.time_mix_v))

    def _advanced(
        self, k: Tensor, v: Tensor, aa: Tensor, bb: Tensor, pp: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """wkv [batch, width] of a frame from the sums before it, and the sums after it."""
        now, decayed = self.time_first + k, pp - torch.exp(self.time_decay)
        q = torch.maximum(pp, now)
        old, new = torch.exp(pp - q), torch.exp(now - q)
        wkv = (old * aa + new * v) / (old * bb + new)
        q = torch.maximum(decayed, k)
        old, new = torch.exp(decayed - q), torch.exp(k - q)
        return wkv, (old * aa + new * v, old * bb + new, q)

    def _block(
        self, k: Tensor, v: Tensor, aa: Tensor, bb: Tensor, pp: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """wkv [batch, time, width] of a block from the sums before it, and the sums after each of its frames."""
        time, decay = k.shape[1], -torch.exp(self.time_decay)
        age = torch.arange(time, device=k.device)[:, None] - torch.arange(time, device=k.device)[None, :]
        steps = age.clamp(min=0).to(k.dtype)[:, :, None] * decay  # [time, time, width]: (t - i) w
        exponents = torch.where(
            (age >= 0)[None, :, :, None], steps[None] + k[:, None], torch.full_like(k[:, None], EMPTY)
        )
        carried = pp[:, None] + torch.arange(1, time + 1, device=k.device).to(k.dtype)[:, None] * decay
        top = torch.maximum(exponents.amax(dim=2), carried)  # [batch, time, width]
        weights, old = torch.exp(exponents - top[:, :, None]), torch.exp(carried - top)
        num = (weights * v[:, None]).sum(dim=2) + old * aa[:, None]
        den = weights.sum(dim=2) + old * bb[:, None]
        before = [torch.cat([first[:, None], part[:, :-1]], dim=1) for first, part in ((aa, num), (bb, den), (pp, top))]
        now = self.time_first + k
        q = torch.maximum(before[2], now)
        past, new = torch.exp(before[2] - q), torch.exp(now - q)
        return (past * before[0] + new * v) / (past * before[1] + new), (num, den, top)


class ChannelMix(StreamingModule):
    """x [batch, width] to [batch, width] through `inner` squared rectified units."""

    def __init__(self, width: int, inner: int, rest: float = 1.0) -> None:
        super().__init__()
        place = torch.arange(width) / width
        self.time_mix_k = nn.Parameter(place.pow(rest).reshape(1, 1, -1))
        self.time_mix_r = nn.Parameter(place.pow(rest).reshape(1, 1, -1))
        self.key = nn.Linear(width, inner, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(inner, width, bias=False)
        self.state = (StateTensor("shift", (width,)),)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self._mixed(x, state["shift"]), {"shift": x}

    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        """Frames of x [batch, time, width] from `valid` on are padding."""
        if x.shape[1] == 1 and valid is None:
            y, after = self.step(x[:, 0], state)
            return y[:, None], after
        x = cleared(x, valid)
        rows = torch.cat([state["shift"][:, None], x], dim=1)
        return self._mixed(x, rows[:, :-1]), {"shift": taken(rows, valid, 1)[:, 0]}

    def _mixed(self, x: Tensor, past: Tensor) -> Tensor:
        k = torch.relu(self.key(mixed(x, past, self.time_mix_k)))
        y: Tensor = torch.sigmoid(self.receptance(mixed(x, past, self.time_mix_r))) * self.value(k * k)
        return y
