"""Train a model for a probe, with its parallel form: every model with the same batches, steps and rates.

Each model trains once at every rate of the recipe, unless it has solved the probe before; the validation episodes
choose.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn import functional

from bench import training
from bench.tasks.probes import data
from edgemem.module import StreamingModule
from edgemem.tasks import probes
from edgemem.tasks.episodes import UNASKED, Array, Episodes

SOLVED = 0.998  # validation score at which a training stops, once it has seen all difficulties for a while
SOLVED_FROM = 0.7  # share of the steps; curricula end at half


@dataclass(frozen=True)
class Recipe:
    """How a probe is trained. Shares are of the steps."""

    steps: int
    batch: int = 32
    seed: int = 0
    rates: tuple[float, ...] = (5e-3, 2e-3)  # peak learning rates that are tried
    warm_up: float = 0.05
    weight_decay: float = 0.02
    looks: int = 10  # at the validation episodes


RECIPES = {
    "recall": Recipe(3000),
    "copy": Recipe(1500, rates=(5e-3,)),
    "delay": Recipe(1000),
    "mackey-glass": Recipe(400, batch=16, rates=(5e-3,)),
    "narma": Recipe(800, batch=16, rates=(5e-3,)),
    "digits": Recipe(1000, rates=(5e-3,)),
    "digits-permuted": Recipe(1000, rates=(5e-3,)),
}


def loss_of(y: Tensor, episodes: Episodes) -> Tensor:
    """Cross-entropy of the answers that are asked for, or the squared error of the predictions that count."""
    targets = torch.from_numpy(episodes.targets)
    if targets.is_floating_point():
        wanted = torch.isfinite(targets)
        return functional.mse_loss(y[wanted], targets[wanted])
    return functional.cross_entropy(y.flatten(0, 1), targets.flatten(), ignore_index=UNASKED)


def whole(module: StreamingModule) -> probes.Answer:
    """Answers of the parallel form."""

    def answer(x: Array) -> Array:
        with torch.no_grad():
            y: Array = module(torch.from_numpy(x)).numpy()
        return y

    return answer


def train(
    module: StreamingModule, name: str, recipe: Recipe, report: Callable[[str], None] = print
) -> tuple[StreamingModule, dict[str, float]]:
    """Train from the module's weights; returns those that validation liked best, and the facts of their training."""
    best, facts = module, {"validation": -1.0}
    for rate in recipe.rates:
        if facts["validation"] < SOLVED:
            found, its = train_at(copy.deepcopy(module), name, recipe, rate, report)
            best, facts = (found, its) if its["validation"] > facts["validation"] else (best, facts)
    return best, facts


def train_at(
    module: StreamingModule, name: str, recipe: Recipe, rate: float, report: Callable[[str], None]
) -> tuple[StreamingModule, dict[str, float]]:
    """`train` at one peak rate."""
    optimizer = training.adamw(module, rate, recipe.weight_decay, lambda p: p.dim() == 2)  # nor decay rates
    wanted, valid = probes.probe(name), data.validation(name)
    best, best_score, step = module, -1.0, 0
    looks = max(1, recipe.steps // recipe.looks)
    for step, episodes in enumerate(data.training(name, recipe.seed, recipe.batch, recipe.steps), 1):
        for group in optimizer.param_groups:
            group["lr"] = training.rate_at(step / recipe.steps, rate, recipe.warm_up)
        loss = loss_of(module.train()(torch.from_numpy(episodes.x)), episodes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % looks and step != recipe.steps:
            continue
        score = fmean(probes.score(wanted, whole(module.eval())(e.x), e) for e in valid)
        report(
            f"{name:16} rate {rate}  step {step:5} of {recipe.steps}  loss {loss.item():.4f}  validation {score:.4f}"
        )
        if score >= best_score:  # of equals the later one: it has seen more
            best, best_score = copy.deepcopy(module).eval(), score
        if best_score >= SOLVED and step >= SOLVED_FROM * recipe.steps:
            break
    return best, {"rate": rate, "steps_taken": step, "validation": best_score}
