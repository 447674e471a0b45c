"""Padding at the end of a chunk: it may hold NaN, and must leave no trace in a state."""

from __future__ import annotations

import torch
from torch import Tensor


def real_frames(x: Tensor, valid: Tensor) -> Tensor:
    """[batch, time] true where a frame of x [batch, time, ...] is one of the first `valid` [batch]."""
    return torch.arange(x.shape[1], device=x.device)[None, :] < valid[:, None]


def cleared(x: Tensor, valid: Tensor | None) -> Tensor:
    """x [batch, time, features] with zeros from frame `valid` [batch] on."""
    return x if valid is None else torch.where(real_frames(x, valid)[:, :, None], x, torch.zeros_like(x))


def taken(rows: Tensor, first: Tensor | None, count: int) -> Tensor:
    """`count` rows of rows [batch, time, ...] from row `first` [batch] on; the last ones where `first` is None.

    Rows are picked by a mask and a sum with zeros, which is exact and leaves NaN in the other rows behind.
    """
    time = rows.shape[1]
    if first is None:
        return rows[:, time - count :]
    place = torch.arange(time, device=rows.device)[None, :, None]
    wanted = first[:, None, None] + torch.arange(count, device=rows.device)[None, None, :]
    mask = (place == wanted).reshape(rows.shape[0], time, count, *[1] * (rows.dim() - 2))
    spread = rows[:, :, None]
    return torch.where(mask, spread, torch.zeros_like(spread)).sum(dim=1)


def rows_from(rows: Tensor, first: Tensor | None, count: int) -> Tensor:
    """As `taken`, for a `count` so large that a mask [time, count] would cost more than a lookup for each stream."""
    if first is None:
        return rows[:, rows.shape[1] - count :]
    place = torch.arange(count, device=rows.device)
    return torch.stack([rows[i].index_select(0, first[i] + place) for i in range(rows.shape[0])])
