"""Codebooks after a short training: codes stay, entries and scales move, until the model answers as the float one does.

    weights    w = scale[n] sum_r book[r, code[r, n, g]]      book and scale are trained, every other tensor is fixed
    loss       logits: KL(softmax(float model) || softmax(coded model)); other outputs: squared error over variance

The teacher is the float model itself on the calibration sequences, so no labels are needed. One window in eight is held
out, of much data fewer; what was trained is kept only if the loss on those is smaller than before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from edgemem.errors import ConfigError, UsageError
from edgemem.modelfile import open_model
from edgemem.program import Array
from edgemem.quant.graph import Weight
from edgemem.quant.scheme import Job

if TYPE_CHECKING:
    from torch import nn

    from edgemem.quant.calibration import Data
    from edgemem.quant.vq import Coded

WINDOW_FRAMES = 128
BATCH = 8
HELD_OUT = 8  # one window of so many
HELD_WINDOWS = 32  # where there are many
RATE = 5e-3  # of Adam; entries are of rows whose RMS is 1
Pool = tuple[list[Weight], list["Coded"]]


@dataclass
class Trained:
    """One matrix: its parameter's name, fixed codes, and what is trained; `book` is shared by its pool. Of mirrored
    codebooks it is the first halves.
    """

    parameter: str
    weight: Weight
    codes: Tensor  # [R, outputs, groups]
    book: Tensor  # [R, K, dim], or [R, K / 2, dim]
    start: Tensor  # [outputs], the scales before
    gain: Tensor  # [outputs], their logarithmic change
    mirrored: bool

    def books(self) -> Tensor:
        """[R, K, dim]"""
        return torch.cat([self.book, -self.book], dim=1) if self.mirrored else self.book

    def value(self) -> Tensor:
        """The parameter in the module's layout."""
        terms = [book[codes] for book, codes in zip(self.books(), self.codes, strict=True)]
        rows = torch.stack(terms).sum(dim=0).flatten(1) * (self.start * self.gain.exp())[:, None]
        stored = rows if self.weight.by_row else rows.T
        return stored.T if self.weight.name.endswith(".T") else stored


def tuned(job: Job, pools: Sequence[Pool], steps: int, seed: int) -> list[Pool]:
    """The pools with codebooks and scales after `steps` of training.

    Raises:
        UsageError: no calibration data, or a model that cannot be rebuilt in torch.
    """
    if job.calibration is None:
        raise UsageError("vq with tune needs calibration data; give some by --calibrate")
    module = module_of(job)
    names = dict(module.named_parameters())
    mirrored = bool(job.settings["mirror"])
    trained: list[Trained] = []
    for weights, coded in pools:
        count = coded[0].books.shape[1]
        held = coded[0].books[:, : count // 2 if mirrored else count]
        book = torch.from_numpy(held.astype(np.float32)).requires_grad_()
        for weight, code in zip(weights, coded, strict=True):
            parameter = weight.name.removesuffix(".T")
            scale = torch.from_numpy(code.scale.astype(np.float32))
            trained.append(
                Trained(
                    parameter if parameter in names else "",
                    weight,
                    torch.from_numpy(code.codes.astype(np.int64)),
                    book,
                    scale,
                    torch.zeros_like(scale).requires_grad_(),
                    mirrored,
                )
            )
    learnt = [item for item in trained if item.parameter]
    if learnt and improved(job, module, learnt, steps, seed):
        return with_results(pools, trained)
    job.warnings.append(f"{steps} steps of tuning did not make the held-out loss smaller; the codebooks are as fitted")
    return list(pools)


def module_of(job: Job) -> nn.Module:
    """The float module of the file that is quantized.

    Raises:
        UsageError: the file has no torch form to rebuild.
    """
    from edgemem.reference import rebuilt
    from edgemem.weights import stored_tensors

    model = open_model(job.parent)
    try:
        return rebuilt(model, stored_tensors(model)).module
    except ConfigError as error:
        raise UsageError(f"tune rebuilds the model in torch, which fails: {error}; leave tune out") from error


def windows(job: Job, wanted_frames: int = WINDOW_FRAMES) -> list[dict[str, Tensor]]:
    """Pieces of the calibration sequences [1, frames, ...], whole segments each, all of one length.

    Raises:
        UsageError: fewer than `HELD_OUT` of them; more calibration data is wanted.
    """
    assert job.calibration is not None
    data: Data = job.calibration.data
    unit = job.contract.chunk.frames
    longest = max(len(next(iter(sequence.values()))) for sequence in data.sequences)
    frames = min(max(wanted_frames, 2 * unit), longest) // unit * unit
    found = []
    for sequence in data.sequences:
        for at in range(0, len(next(iter(sequence.values()))) - frames + 1, frames):
            found.append({name: torch.from_numpy(a[None, at : at + frames].copy()) for name, a in sequence.items()})
    if frames == 0 or len(found) < HELD_OUT:
        raise UsageError(
            f"tune needs at least {HELD_OUT} windows of {max(frames, unit)} frames, {len(found)} came; "
            "give more data by --calibrate"
        )
    return found


def improved(job: Job, module: nn.Module, learnt: list[Trained], steps: int, seed: int) -> bool:
    """Train; whether the loss on the held-out windows became smaller."""
    held, kept = divided(windows(job))
    books = list({id(item.book): item.book for item in learnt}.values())
    optimizer = torch.optim.Adam([*books, *(item.gain for item in learnt)], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    rng = np.random.default_rng(seed)
    before = held_loss(module, learnt, held)
    for step in range(steps):
        job.tick("tuning", step / steps)
        picked = rng.choice(len(kept), min(BATCH, len(kept)), replace=False)
        loss = distance(module, learnt, joined([kept[int(index)] for index in picked]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return held_loss(module, learnt, held) < before


def divided(pieces: list[dict[str, Tensor]]) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The windows that are held out, and those to train on."""
    every = max(HELD_OUT, len(pieces) // HELD_WINDOWS)
    return pieces[::every], [piece for index, piece in enumerate(pieces) if index % every]


def held_loss(module: nn.Module, learnt: list[Trained], held: list[dict[str, Tensor]]) -> float:
    """The loss over all held-out windows."""
    with torch.no_grad():
        batches = [joined(held[at : at + BATCH]) for at in range(0, len(held), BATCH)]
        return float(np.mean([distance(module, learnt, batch).item() for batch in batches]))


def joined(pieces: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def distance(module: nn.Module, learnt: list[Trained], batch: Mapping[str, Tensor]) -> Tensor:
    """How far the coded model's outputs are from the float model's."""
    x: Any = dict(batch) if len(batch) > 1 else next(iter(batch.values()))
    with torch.no_grad():
        wanted = module(x)
    values = {item.parameter: item.value() for item in learnt}
    came = torch.func.functional_call(module, values, (x,))
    return outputs_distance(module, wanted, came)


def outputs_distance(module: nn.Module, wanted: Any, came: Any) -> Tensor:
    """The sum over all outputs of a module."""
    pairs = [(wanted[n], came[n], n) for n in wanted] if isinstance(wanted, dict) else [(wanted, came, None)]
    roles = {port.name: port.role for port in getattr(module, "outputs", ())}
    single = next(iter(roles.values()), "values")
    losses = [loss_of(a, b, roles.get(n, single) if n else single) for a, b, n in pairs]
    return torch.stack(losses).sum()


def loss_of(wanted: Tensor, came: Tensor, role: str) -> Tensor:
    """Of one output."""
    if role == "logits":
        target = wanted.log_softmax(dim=-1)
        return (target.exp() * (target - came.log_softmax(dim=-1))).sum(dim=-1).mean()
    return ((came - wanted) ** 2).mean() / wanted.var().clamp(min=1e-12)


def with_results(pools: Sequence[Pool], trained: list[Trained]) -> list[Pool]:
    """The trained numbers in float16, as they are stored."""
    by_name = {item.weight.name: item for item in trained}
    found: list[Pool] = []
    for weights, coded in pools:
        renewed = []
        for weight, code in zip(weights, coded, strict=True):
            item = by_name[weight.name]
            scale: Array = (item.start * item.gain.exp()).detach().numpy().astype(code.scale.dtype)
            renewed.append(replace(code, books=item.books().detach().numpy().astype(np.float16), scale=scale))
        found.append((weights, renewed))
    return found
