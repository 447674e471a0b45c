"""Train `kws-lmuformer` with its parallel form, on sequences of words composed anew for every step.

Every row that has a label counts: pauses are silence, a word has its label from shortly before its end and for a
while after. The same posteriors then decide a clip (the highest one) and a stream without an end (the one that
rises).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from bench.tasks.kws import augment
from bench.tasks.kws.features import FRONT_END, WARPS, features_of
from bench.tasks.kws.wordset import WordSet
from edgemem.models.kws_lmuformer import KWSLMUFormer

TONE_KNOTS = 6


@dataclass(frozen=True)
class Recipe:
    """How the shipped spotter is trained. Shares are of the steps."""

    seed: int = 0
    steps: int = 6000
    batch: int = 32
    seconds: float = 3.0  # of a composed sequence
    pause_seconds: tuple[float, float] = (0.0, 0.7)
    rate: float = 3e-3  # peak learning rate
    warm_up: float = 0.03
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    speeds: tuple[float, ...] = (0.8, 0.87, 0.93, 1.0, 1.08, 1.16, 1.25)
    unknown: float = 0.25  # of the words
    warped: float = 0.8  # of the sequences, in frequency, to make more speakers of them
    tone: float = 1.0  # standard deviation of the logarithm of energy, smooth over bands, to colour the sequences
    known_share: float = 0.85  # of a word, from which on its label is asked for
    time_masks: int = 2
    time_mask_rows: int = 5
    band_masks: int = 2
    band_mask_bands: int = 6
    average_from: float = 0.6  # from which on weights enter the average that is kept
    average_decay: float = 0.998
    judged: float = 0.05  # between two looks at the validation voices


Batches = Iterator[tuple[Tensor, Tensor]]  # features [batch, rows, width] float32, labels [batch, rows] int64


class Sequences(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches without an end, the same ones for the same seed."""

    def __init__(self, words: WordSet, recipe: Recipe) -> None:
        # held in memory: the file may be written anew while this trains
        self.words, self.recipe = replace(words, samples=np.array(words.samples)), recipe

    def __iter__(self) -> Batches:
        torch.set_num_threads(1)
        recipe = self.recipe
        varied = augment.Recipe(speeds=recipe.speeds, pause_seconds=recipe.pause_seconds, unknown=recipe.unknown)
        maker = augment.StreamMaker(self.words, FRONT_END, recipe.seed, recipe.seconds, varied)
        draw = np.random.default_rng(recipe.seed + 2)
        while True:
            made = [maker.sequence() for _ in range(recipe.batch)]
            labels = [augment.row_labels(placed, FRONT_END, maker.rows, recipe.known_share) for _, placed in made]
            sounds = torch.from_numpy(np.stack([sound for sound, _ in made])).float()
            yield features_of(sounds, *disguise(recipe, draw)), torch.from_numpy(np.stack(labels))


def disguise(recipe: Recipe, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """How a batch is warped [batch] int64 and coloured [batch, mels], see `features_of`."""
    count, middle = recipe.batch, len(WARPS) // 2
    warp = np.where(draw.random(count) < recipe.warped, draw.integers(len(WARPS), size=count), middle)
    bands, knots = np.arange(FRONT_END.mels), np.linspace(0, FRONT_END.mels - 1, TONE_KNOTS)
    tone = np.stack([np.interp(bands, knots, draw.normal(0.0, recipe.tone, TONE_KNOTS)) for _ in range(count)])
    return torch.from_numpy(warp), torch.from_numpy(tone).float()


def batches(words: WordSet, recipe: Recipe, ahead: bool = True) -> Batches:
    """The batches of a recipe; with `ahead`, a process of its own makes the next ones meanwhile."""
    workers = {"num_workers": 1, "prefetch_factor": 8} if ahead else {"num_workers": 0}
    return iter(DataLoader(Sequences(words, recipe), batch_size=None, **workers))  # type: ignore[arg-type]


def masked(x: Tensor, fill: Tensor, recipe: Recipe, draw: np.random.Generator) -> Tensor:
    """SpecAugment: some rows and some mel bands of x [batch, rows, width] replaced by `fill` [width]."""
    batch, rows, width = x.shape
    bands = width // FRONT_END.stack
    keep_rows = unmasked(batch, rows, recipe.time_masks, recipe.time_mask_rows, draw)
    keep_bands = np.tile(unmasked(batch, bands, recipe.band_masks, recipe.band_mask_bands, draw), FRONT_END.stack)
    return torch.where(torch.from_numpy(keep_rows[:, :, None] & keep_bands[:, None, :]), x, fill)


def unmasked(batch: int, size: int, masks: int, widest: int, draw: np.random.Generator) -> augment.Array:
    """[batch, size] bool, false inside of `masks` random spans per row."""
    width = draw.integers(0, widest + 1, (batch, masks, 1))
    first = draw.integers(0, size, (batch, masks, 1))
    place = np.arange(size)
    kept: augment.Array = np.all((place < first) | (place >= first + width), axis=1)
    return kept


def loss_of(model: KWSLMUFormer, x: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Cross-entropy of the averaged logits, over the rows that have a label."""
    return functional.cross_entropy(
        model(x).flatten(0, 1), labels.flatten(), ignore_index=augment.IGNORE, label_smoothing=recipe.label_smoothing
    )


def rate_at(share: float, recipe: Recipe) -> float:
    """Learning rate at `share` 0..1 of the training: linear warm-up, then half a cosine."""
    if share < recipe.warm_up:
        return recipe.rate * share / recipe.warm_up
    return recipe.rate * 0.5 * (1.0 + math.cos(math.pi * (share - recipe.warm_up) / (1.0 - recipe.warm_up)))


def optimizer_of(model: KWSLMUFormer, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; biases and norms do not decay."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98))


def normalise(model: KWSLMUFormer, x: Tensor) -> None:
    """Set the model's `center` and `scale` from features x [batch, rows, width], alike for stacked frames."""
    bands = x.reshape(-1, FRONT_END.stack, FRONT_END.mels).flatten(0, 1)
    model.center.copy_(bands.mean(dim=0).repeat(FRONT_END.stack))
    model.scale.copy_((1.0 / bands.std(dim=0)).repeat(FRONT_END.stack))


def train(
    model: KWSLMUFormer,
    source: Batches,
    recipe: Recipe,
    judge: Callable[[KWSLMUFormer], float],
    report: Callable[[str], None] = print,
) -> KWSLMUFormer:
    """Train; returns a model with the weights that `judge` (on validation voices) liked best.

    The candidates are running averages of the weights over the last part of the training.
    """
    draw, optimizer = np.random.default_rng(recipe.seed + 1), optimizer_of(model, recipe)
    averaged: dict[str, Tensor] = {}
    best_score, best = -1.0, model
    looks = max(1, round(recipe.steps * recipe.judged))
    normalise(model, torch.cat([next(source)[0] for _ in range(8)]))
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


def blended(averaged: dict[str, Tensor], model: KWSLMUFormer, decay: float) -> dict[str, Tensor]:
    """The running average of the weights, one step on; starts at the weights themselves."""
    weights = model.state_dict()
    if not averaged:
        return {key: value.clone() for key, value in weights.items()}
    return {key: averaged[key].lerp(value, 1.0 - decay) for key, value in weights.items()}


def with_weights(model: KWSLMUFormer, weights: dict[str, Tensor]) -> KWSLMUFormer:
    """A copy of the model that holds other weights, to be judged."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin.eval()
