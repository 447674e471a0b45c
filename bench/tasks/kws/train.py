"""Train a keyword spotter with its parallel form, on the pool of composed sequences.

Every row counts: pauses are silence, a word has its label from shortly before its end and for a while after, and
until then its label or silence (see `augment`). The same posteriors then decide a clip (the highest one) and a
stream without an end (the one that rises).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench import training
from bench.tasks.kws.augment import or_silence
from bench.tasks.kws.features import FRONT_END, WARPS
from bench.tasks.kws.words import SILENCE

Batches = Iterator[tuple[Tensor, Tensor]]  # features [batch, rows, width] float32, labels [batch, rows] int64

TONE_KNOTS = 6
NORMALISED_BY = 16  # batches


@dataclass(frozen=True)
class Recipe:
    """How a spotter is trained. Shares are of the steps."""

    seed: int = 0
    steps: int = 7500
    batch: int = 32
    rate: float = 3e-3  # peak learning rate
    warm_up: float = 0.03
    weight_decay: float = 0.02
    label_smoothing: float = 0.02
    warped: float = 0.7  # of the sequences, in frequency, to make more speakers of them
    tone: float = 0.6  # standard deviation of the logarithm of energy: smooth over bands, to colour the sequences
    gain: float = 0.3  # and the same for all bands
    time_masks: int = 1
    time_mask_rows: int = 4
    band_masks: int = 2
    band_mask_bands: int = 5
    bfloat16: bool = True  # products of training in half precision; all else, and what is kept, in float32
    average_from: float = 0.6  # from which on weights enter the average that is kept
    average_decay: float = 0.998
    judged: float = 0.2  # between two looks at the validation voices


def warps(recipe: Recipe, draw: np.random.Generator) -> Tensor:
    """[batch] int64: an index into `WARPS` for each sequence, the middle one for those that stay."""
    count, middle = recipe.batch, len(WARPS) // 2
    return torch.from_numpy(np.where(draw.random(count) < recipe.warped, draw.integers(len(WARPS), size=count), middle))


def tones(recipe: Recipe, draw: np.random.Generator) -> Tensor:
    """[batch, mels] float32: the logarithm of a gain that is smooth over bands, for each sequence."""
    bands, knots = np.arange(FRONT_END.mels), np.linspace(0, FRONT_END.mels - 1, TONE_KNOTS)
    drawn = (np.interp(bands, knots, draw.normal(0.0, recipe.tone, TONE_KNOTS)) for _ in range(recipe.batch))
    return torch.from_numpy(np.stack(list(drawn))).float()


def loss_of(model: nn.Module, x: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Mean over all rows: cross-entropy where one label is right, -log of their sum where two are."""
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
        logits = model(x)
    logs = torch.log_softmax(logits.float().flatten(0, 1), dim=-1)
    labels = labels.flatten()
    one = labels >= 0
    right = torch.where(one, labels, or_silence(labels))
    chosen = logs.gather(1, right[:, None])[:, 0]
    smooth = recipe.label_smoothing
    either = torch.logaddexp(chosen, logs[:, SILENCE])
    return -torch.where(one, (1 - smooth) * chosen + smooth * logs.mean(dim=1), either).mean()


def train(
    model: nn.Module,
    source: Batches,
    recipe: Recipe,
    judge: Callable[[nn.Module], float],
    report: Callable[[str], None] = print,
) -> nn.Module:
    """Train; returns a model with the weights that `judge` (on validation voices) liked best.

    The candidates are running averages of the weights over the last part of the training.
    """
    draw, optimizer = np.random.default_rng(recipe.seed + 1), training.adamw(model, recipe.rate, recipe.weight_decay)
    averaged: dict[str, Tensor] = {}
    best_score, best = -1.0, model
    looks = max(1, round(recipe.steps * recipe.judged))
    training.normalise(model, torch.cat([next(source)[0] for _ in range(NORMALISED_BY)]), FRONT_END.stack)
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step / recipe.steps, recipe.rate, recipe.warm_up)
        x, labels = next(source)
        x = training.masked(x, model.center, FRONT_END.stack, recipe, draw)
        loss = loss_of(model.train(), x, labels, recipe)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step >= recipe.average_from * recipe.steps:
            averaged = training.blended(averaged, model, recipe.average_decay)
        if step % looks == 0 or step == recipe.steps:
            candidate = training.with_weights(model, averaged or model.state_dict())
            score = judge(candidate)
            report(f"step {step:5} of {recipe.steps}  loss {loss.item():.3f}  validation {score:.4f}")
            if averaged and score >= best_score:
                best_score, best = score, candidate
    return best
