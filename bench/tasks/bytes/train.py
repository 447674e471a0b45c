"""Train a byte language model as it will be used: on streams, its state carried from one window to the next.

`batch` streams read the corpus side by side, each from its own place; a window of `window` bytes is one step of AdamW,
and the state after it, cut off from the gradient, is where the next window starts. All models are trained so, with one
recipe; what a model can remember beyond a window is up to its state.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bench import training
from bench.tasks.bytes.data import Array
from edgemem.module import State, StreamingModule, chunk

BITS = 1.0 / math.log(2.0)


@dataclass(frozen=True)
class Recipe:
    """How every model of the comparison is trained."""

    seed: int = 0
    steps: int = 800
    batch: int = 32
    window: int = 128  # bytes
    rate: float = 2e-3  # peak learning rate
    warm_up: float = 0.05  # of the steps
    last_rate: float = 0.02  # of the peak
    weight_decay: float = 0.05
    largest_gradient: float = 1.0
    judged: int = 10  # looks at the validation split
    valid_bytes: int = 40_000


def windows(corpus: Array, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Bytes [batch, window] int64 and the bytes that follow each; consecutive windows of a row are consecutive text."""
    draw = np.random.default_rng(recipe.seed)
    starts = (np.arange(recipe.batch) + draw.random()) * len(corpus) / recipe.batch
    at = starts.astype(np.int64)
    while True:
        place = (at[:, None] + np.arange(recipe.window + 1)) % len(corpus)
        rows = torch.from_numpy(corpus[place].astype(np.int64))
        yield rows[:, :-1], rows[:, 1:]
        at += recipe.window


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate: linear warm-up, then half a cosine down to `last_rate`."""
    warm = max(1, round(recipe.warm_up * recipe.steps))
    if step < warm:
        return recipe.rate * (step + 1) / warm
    share = (step - warm) / max(1, recipe.steps - warm)
    return recipe.rate * (recipe.last_rate + (1 - recipe.last_rate) * 0.5 * (1 + math.cos(math.pi * share)))


def optimizer_of(model: StreamingModule, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (norms, biases, decays) do not, whatever axes of one element they have."""
    return training.adamw(model, recipe.rate, recipe.weight_decay, lambda p: p.squeeze().dim() > 1, betas=(0.9, 0.97))


def bits_per_byte(model: StreamingModule, corpus: Array, piece: int = 1024) -> float:
    """What a byte of the corpus costs on average, streamed from the start state in pieces."""
    model.eval()
    state, bits = model.start(), 0.0
    text = torch.from_numpy(corpus.astype(np.int64))
    piece = min(piece, len(text) - 1)
    whole = (len(text) - 1) // piece * piece
    with torch.no_grad():
        for at in range(0, whole, piece):
            logits, state = chunk(model, text[None, at : at + piece], state)
            bits += float(functional.cross_entropy(logits[0], text[at + 1 : at + piece + 1], reduction="sum")) * BITS
    return bits / whole


def train(
    model: StreamingModule,
    corpus: Array,
    valid: Array,
    recipe: Recipe,
    report: Callable[[str], None] = print,
) -> list[dict[str, float]]:
    """Train the model in place; gives the learning curve: step, bytes, seconds and validation bits per byte."""
    optimizer, source = optimizer_of(model, recipe), windows(corpus, recipe)
    state: State = model.start(recipe.batch)
    curve, begin, recent = [], time.process_time(), 0.0
    looks = {round(recipe.steps * (i + 1) / recipe.judged) for i in range(recipe.judged)}
    for step in range(1, recipe.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step - 1, recipe)
        x, following = next(source)
        with torch.autocast("cpu", torch.bfloat16):  # matrix products only; twice as fast, the losses the same
            logits, after = chunk(model.train(), x, state)
        state = {name: tensor.detach().to(state[name].dtype) for name, tensor in after.items()}
        loss = functional.cross_entropy(logits.float().flatten(0, 1), following.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.largest_gradient)
        optimizer.step()
        recent = loss.item() * BITS if step == 1 else 0.95 * recent + 0.05 * loss.item() * BITS
        if step in looks or step % 20 == 0:
            seconds, done = time.process_time() - begin, step * recipe.batch * recipe.window
            line = f"step {step:5} of {recipe.steps}  train {recent:.3f}  {done / seconds:,.0f} bytes per CPU second"
            if step in looks:
                found = bits_per_byte(model, valid[: recipe.valid_bytes])
                curve.append({"step": step, "bytes": done, "cpu_seconds": seconds, "valid_bits_per_byte": found})
                line += f"  valid {found:.4f}"
            report(line)
    return curve
