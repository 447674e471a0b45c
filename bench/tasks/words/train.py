"""Train a streaming encoder with its parallel form by connectionist temporal classification (CTC).

Every model has the same recipe, the same sequences in the same order and the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench import training
from bench.tasks.words.compose import FRONT_END, Array
from edgemem.models.folding import ASRConfig, SpeechFolding


@dataclass(frozen=True)
class Recipe:
    """How the shipped models are trained. Shares are of the steps."""

    seed: int = 0
    short_steps: int = 400  # on short sequences, before
    steps: int = 2600  # on long ones
    batch: int = 32
    rate: float = 2e-3  # peak learning rate
    warm_up: float = 0.05
    weight_decay: float = 0.02
    branches: float = 0.2  # size of the residual branches' last weights, at the start
    time_masks: int = 1
    time_mask_rows: int = 3
    band_masks: int = 1
    band_mask_bands: int = 8
    average_from: float = 0.8  # from which on weights enter the average that is kept
    average_decay: float = 0.98
    judged: float = 0.125  # between two looks at the validation voices

    @property
    def all_steps(self) -> int:
        return self.short_steps + self.steps


Batches = Iterator[tuple[Array, Array]]


def loss_of(model: SpeechFolding, x: Tensor, words: Tensor) -> Tensor:
    """CTC loss of features x [batch, rows, width] and words [batch, most], per word."""
    with torch.autocast("cpu", torch.bfloat16):  # products in bfloat16; weights and their updates stay float32
        logits = model(x)
    scores = torch.log_softmax(logits.float(), dim=-1).transpose(0, 1)
    spoken = (words > 0).sum(dim=1)
    rows = torch.full((len(x),), x.shape[1])
    losses = functional.ctc_loss(scores, words.long(), rows, spoken, reduction="none", zero_infinity=True)
    return losses.sum() / spoken.sum()


def optimizers_of(model: SpeechFolding, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the encoder's matrices, AdamW for all else: in the few steps there are, AdamW alone learns far less."""
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and name.endswith("weight")]
    inner = [p for p in matrices if p is not model.embed.weight and p is not model.head.weight]
    chosen = {id(p) for p in inner}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return (
        torch.optim.Muon(inner, recipe.rate, recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, recipe.rate, betas=(0.9, 0.98), weight_decay=0.0),
    )


def gentle(model: SpeechFolding, share: float) -> SpeechFolding:
    """The model with smaller residual branches, so that it starts near the identity."""
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.attend.out.weight *= share
            layer.feed.reduce.weight *= share
    return model


def train(
    config: ASRConfig,
    short: Batches,
    long: Batches,
    recipe: Recipe,
    judge: Callable[[SpeechFolding], float],
    report: Callable[[str], None] = print,
) -> tuple[SpeechFolding, list[dict[str, float]]]:
    """A trained model, and what `judge` (token error rate on validation voices) said on the way.

    The weights are a running average over the last part of the training; none is picked by its score.
    """
    torch.manual_seed(recipe.seed)
    model = gentle(SpeechFolding(config), recipe.branches)
    draw, optimizers = np.random.default_rng([recipe.seed, 3]), optimizers_of(model, recipe)
    training.normalise(model, torch.cat([torch.from_numpy(next(long)[0]) for _ in range(8)]), FRONT_END.stack)
    averaged: dict[str, Tensor] = {}
    course: list[dict[str, float]] = []
    steps, begin = recipe.all_steps, time.process_time()
    looks = max(1, round(steps * recipe.judged))
    for step in range(1, steps + 1):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = training.rate_at(step / steps, recipe.rate, recipe.warm_up)
        features, words = next(short if step <= recipe.short_steps else long)
        x = training.masked(torch.from_numpy(features), model.center, FRONT_END.stack, recipe, draw)
        loss = loss_of(model.train(), x, torch.from_numpy(words))
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if step >= recipe.average_from * steps:
            averaged = training.blended(averaged, model, recipe.average_decay)
        if step % looks == 0 or step == steps:
            score = judge(training.with_weights(model, averaged or model.state_dict()))
            minutes = (time.process_time() - begin) / 60
            course.append({"step": step, "loss": loss.item(), "validation": score, "cpu_minutes": minutes})
            report(f"step {step:5} of {steps}  loss {loss.item():.3f}  validation {score:.4f}  {minutes:.1f} min")
    return training.with_weights(model, averaged), course
