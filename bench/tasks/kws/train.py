"""Train a keyword spotter with its parallel form, on the pool of composed sequences.

Every row counts: pauses are silence, a word has its label from shortly before its end and for a while after, and
until then its label or silence (see `augment`). The same posteriors then decide a clip (the highest one) and a
stream without an end (the one that rises).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.tasks.kws.augment import Array, or_silence
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


def masked(x: Tensor, fill: Tensor, recipe: Recipe, draw: np.random.Generator) -> Tensor:
    """SpecAugment: some rows and some mel bands of x [batch, rows, width] replaced by `fill` [width]."""
    batch, rows, width = x.shape
    bands = width // FRONT_END.stack
    keep_rows = unmasked(batch, rows, recipe.time_masks, recipe.time_mask_rows, draw)
    keep_bands = np.tile(unmasked(batch, bands, recipe.band_masks, recipe.band_mask_bands, draw), FRONT_END.stack)
    return torch.where(torch.from_numpy(keep_rows[:, :, None] & keep_bands[:, None, :]), x, fill)


def unmasked(batch: int, size: int, masks: int, widest: int, draw: np.random.Generator) -> Array:
    """[batch, size] bool, false inside of `masks` random spans per row."""
    width = draw.integers(0, widest + 1, (batch, masks, 1))
    first = draw.integers(0, size, (batch, masks, 1))
    place = np.arange(size)
    kept: Array = np.all((place < first) | (place >= first + width), axis=1)
    return kept


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


def rate_at(share: float, recipe: Recipe) -> float:
    """Learning rate at `share` 0..1 of the training: linear warm-up, then half a cosine."""
    if share < recipe.warm_up:
        return recipe.rate * share / recipe.warm_up
    return recipe.rate * 0.5 * (1.0 + math.cos(math.pi * (share - recipe.warm_up) / (1.0 - recipe.warm_up)))


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases and norms do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))


def normalise(model: nn.Module, x: Tensor) -> None:
    """Set the model's `center` and `scale` from features x [batch, rows, width], alike for stacked frames."""
    bands = x.reshape(-1, FRONT_END.stack, FRONT_END.mels).flatten(0, 1)
    model.center.copy_(bands.mean(dim=0).repeat(FRONT_END.stack))
    model.scale.copy_((1.0 / bands.std(dim=0)).repeat(FRONT_END.stack))


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
    draw, optimizer = np.random.default_rng(recipe.seed + 1), optimizer_of(model, recipe)
    averaged: dict[str, Tensor] = {}
    best_score, best = -1.0, model
    looks = max(1, round(recipe.steps * recipe.judged))
    normalise(model, torch.cat([next(source)[0] for _ in range(NORMALISED_BY)]))
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / recipe.steps, recipe)
        x, labels = next(source)
        loss = loss_of(model.train(), masked(x, model.center, recipe, draw), labels, recipe)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step >= recipe.average_from * recipe.steps:
            averaged = blended(averaged, model, recipe.average_decay)
        if step % looks == 0 or step == recipe.steps:
            candidate = with_weights(model, averaged or model.state_dict())
            score = judge(candidate)
            report(f"step {step:5} of {recipe.steps}  loss {loss.item():.3f}  validation {score:.4f}")
            if averaged and score >= best_score:
                best_score, best = score, candidate
    return best


def blended(averaged: dict[str, Tensor], model: nn.Module, decay: float) -> dict[str, Tensor]:
    """The running average of the weights, one step on; starts at the weights themselves."""
    weights = model.state_dict()
    if not averaged:
        return {key: value.clone() for key, value in weights.items()}
    return {key: averaged[key].lerp(value, 1.0 - decay) for key, value in weights.items()}


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of the model that holds other weights, to be judged."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin.eval()
