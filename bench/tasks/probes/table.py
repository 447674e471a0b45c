"""Any model of the zoo on any probe, streamed by its `step` form, many episodes side by side; and the table of it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from torch import nn

from edgemem.models import build_model
from edgemem.models.probes import FoldingProbeConfig
from edgemem.module import scan, segment_length, state_bytes
from edgemem.tasks import probes
from edgemem.tasks.episodes import Array

MODELS = ("probe-rwkv4", "probe-lmu", "probe-gru", "probe-memformer", "probe-folding")
WINDOW = FoldingProbeConfig().frames  # of the bounded memory that every score stands beside


def stepwise(module: nn.Module) -> probes.Answer:
    """Answers of a module (of the zoo, or one's own with `state` and `step`), one step after another from its start."""

    def answer(x: Array) -> Array:
        with torch.no_grad():
            y: Array = scan(module, torch.from_numpy(x), sizes=[segment_length(module)])[0].numpy()
        return y

    return answer


def measured(
    model: str, name: str, limit: int | None = None, longest: int | None = None, **built: Any
) -> dict[str, Any]:
    """A model's scores on the probe `name`; `built` goes to `build_model` (a seed, a checkpoint)."""
    module, _ = build_model(model, {"probe": name}, **built)
    found = probes.judged(probes.probe(name), stepwise(module), limit, longest=longest)
    return {
        **found,
        "parameters": sum(p.numel() for p in module.parameters()),
        "state_bytes": state_bytes(module),
    }


def expected(name: str) -> dict[str, Any]:
    """What guessing scores on a probe, and what a perfect memory of the last WINDOW frames would (None: unknown)."""
    wanted = probes.probe(name)
    bounds = {
        level: probes.bounded(wanted, made.make(made.episodes, probes.TEST_SEED), WINDOW)
        for level, made in wanted.levels.items()
    }
    known = [bound for bound in bounds.values() if bound is not None]
    return {
        "chance": wanted.chance,
        "metric": "accuracy" if wanted.labels else "1 - NRMSE",
        "bounded": fmean(known) if known else None,
        "bounded_levels": bounds,
    }


def ordered(result: dict[str, Any]) -> dict[str, Any]:
    """A result read back from its file, which sorts keys, in the order of MODELS, PROBES and their levels."""

    def levels(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        return {level: found[level] for level in probes.PROBES[name].levels}

    rows = {model: result["models"][model] for model in MODELS}
    facts = {name: result["probes"][name] for name in probes.PROBES}
    return {
        **result,
        "models": {
            model: {name: {**row[name], "levels": levels(name, row[name]["levels"])} for name in facts if name in row}
            for model, row in rows.items()
        },
        "probes": {n: {**f, "bounded_levels": levels(n, f["bounded_levels"])} for n, f in facts.items()},
    }


def lines(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], names: list[str]) -> list[str]:
    """The table as text: a line per model, a column per probe."""
    head = f"{'model':16}" + "".join(f"{name:>16}" for name in names)
    return [
        head,
        *(
            f"{model:16}"
            + "".join(f"{found[name]['score']:16.3f}" if name in found else f"{'-':>16}" for name in names)
            for model, found in rows.items()
        ),
    ]
