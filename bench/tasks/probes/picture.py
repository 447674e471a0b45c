"""The table as a picture: scores of every model on every probe, and recall over long delays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw `bench/results/probes.json` as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.45, 1])
    scores(left, result)
    delays(right, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def scores(axes: Any, result: dict[str, Any]) -> None:
    """Model x probe, with what guessing and a perfect memory of the last frames would score below."""
    models, names = list(result["models"]), list(result["probes"])
    bounded = {name: facts["bounded"] for name, facts in result["probes"].items()}
    rows = {
        **{m: [result["models"][m].get(name, {}).get("score") for name in names] for m in models},
        f"last {result['window']} frames, perfect": [bounded[name] for name in names],
        "guessing": [result["probes"][name]["chance"] for name in names],
    }
    values = np.array([[np.nan if v is None else v for v in row] for row in rows.values()], dtype=float)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in np.argwhere(np.isfinite(values)):
        axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="w" if values[i, j] > 0.6 else "k")
    for i, j in np.argwhere(~np.isfinite(values)):
        axes.text(j, i, "–", ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.axhline(len(models) - 0.5, color="k", linewidth=1)
    axes.set_title("score (1 is perfect)")


def delays(axes: Any, result: dict[str, Any]) -> None:
    """Accuracy over distance, streamed."""
    for model, found in result["models"].items():
        levels = found.get("delay", {}).get("levels", {})
        distances = [int(level.split()[0]) for level in levels]
        axes.plot(distances, list(levels.values()), marker="o", label=model)
    axes.axhline(result["probes"]["delay"]["chance"], color="k", linestyle=":", label="guessing")
    axes.axvline(result["delay_trained_to"], color="k", linestyle="--", linewidth=1, label="longest in training")
    axes.set(xscale="log", ylim=(0, 1.04), xlabel="frames between needle and question", ylabel="accuracy")
    axes.set_xscale("log", base=2)
    axes.set_title("long delays, streamed")
    axes.legend(fontsize=8)
