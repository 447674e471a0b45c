"""Codebooks of a memory trained while the model lives on them, as those of a vector-quantized autoencoder are.

    memory     e = book[argmin_k |x - book_k|^2]         x: what a step leaves, e: what the next one reads
    gradient   through e to the entries, and past the rounding to the step before, as if e were x
    loss       sum over steps: distance of the outputs from the float model's + COMMIT |x - e|^2 / var x

van den Oord et al., "Neural Discrete Representation Learning", 2017. Weights stay as they are. Each window is `UNROLL`
steps from the start state; windows that are held out decide, as in `edgemem.quant.tuning`, whether what was trained is
kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgemem.module import chunk, extent, span, start_state
from edgemem.program import Array
from edgemem.quant import tuning
from edgemem.quant.scheme import Job

if TYPE_CHECKING:
    from torch import nn

UNROLL = 12  # steps of a window
BATCH = 8
RATE = 0.01  # of Adam, in units of the memory's RMS
COMMIT = 0.25
Books = dict[str, Tensor]  # [groups, codes, dim]


def tuned(job: Job, books: Mapping[str, Array], steps: int, seed: int) -> dict[str, Array]:
    """The codebooks [groups, codes, dim] by state after `steps` of training, in float16; entries that are 0 stay 0.

    Raises:
        UsageError: a model that cannot be rebuilt in torch, or too little calibration data.
    """
    module, unit = tuning.module_of(job), job.contract.chunk.frames
    held, kept = tuning.divided(tuning.windows(job, UNROLL * unit))
    scales = {name: float(np.sqrt(np.mean(book.astype(np.float64) ** 2))) or 1.0 for name, book in books.items()}
    learnt = {n: torch.from_numpy(b.astype(np.float32) / scales[n]).requires_grad_() for n, b in books.items()}
    empty = {name: (book == 0).all(dim=-1, keepdim=True) for name, book in learnt.items()}

    def current() -> Books:
        return {name: torch.where(empty[name], 0.0, book * scales[name]) for name, book in learnt.items()}

    def loss(pieces: Sequence[dict[str, Tensor]]) -> Tensor:
        return distance(module, current(), tuning.joined(pieces), unit)

    def held_loss() -> float:
        with torch.no_grad():
            return float(np.mean([loss(held[at : at + BATCH]).item() for at in range(0, len(held), BATCH)]))

    before = held_loss()
    optimizer = torch.optim.Adam(list(learnt.values()), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    rng = np.random.default_rng(seed)
    for step in range(steps):
        job.tick("tuning", step / steps)
        picked = rng.choice(len(kept), min(BATCH, len(kept)), replace=False)
        optimizer.zero_grad()
        loss([kept[int(index)] for index in picked]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    if held_loss() >= before:
        job.warnings.append(
            f"{steps} steps of tuning did not make the held-out loss smaller; the codebooks are as fitted"
        )
        return dict(books)
    return {name: book.detach().numpy().astype(np.float16) for name, book in current().items()}


def distance(module: nn.Module, books: Books, batch: Mapping[str, Tensor], unit: int) -> Tensor:
    """The loss of one batch of windows, `unit` frames a step."""
    x: Any = dict(batch) if len(batch) > 1 else next(iter(batch.values()))
    streams, frames = extent(x)
    exact, coded = start_state(module, streams), start_state(module, streams)
    terms = []
    for at in range(0, frames, unit):
        piece = span(x, at, unit)
        with torch.no_grad():
            wanted, exact = chunk(module, piece, exact)
        came, coded = chunk(module, piece, coded)
        terms.append(tuning.outputs_distance(module, wanted, came))
        for name, book in books.items():
            value = coded[name]
            entry = nearest(value, book)
            spread = value.detach().var().clamp(min=1e-12)
            terms.append(COMMIT * ((value.detach() - entry) ** 2).mean() / spread / len(books))
            coded[name] = entry + value - value.detach()
    return torch.stack(terms).sum() / (frames // unit)


def nearest(value: Tensor, book: Tensor) -> Tensor:
    """The entries nearest to value [..., groups dim], as it is shaped."""
    groups, _, dim = book.shape
    parts = value.detach().reshape(-1, groups, dim).transpose(0, 1)  # [groups, n, dim]
    closeness = parts @ book.detach().transpose(1, 2) - (book.detach() ** 2).sum(dim=-1)[:, None] / 2
    labels = closeness.argmax(dim=-1)  # [groups, n]
    entries = torch.gather(book, 1, labels[..., None].expand(-1, -1, dim))
    return entries.transpose(0, 1).reshape(value.shape)
