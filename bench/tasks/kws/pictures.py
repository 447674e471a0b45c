"""The pictures of the results: who is taken for whom, and what size, cost and patience buy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LEVELS = {"clean": "clean", "10db": "10 dB", "0db": "0 dB"}


def save(figure: Any, path: Path) -> None:
    """As a PNG whose bytes say nothing of the software."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def confusion(result: Mapping[str, Any], path: Path) -> None:
    """The confusion matrix of clean clips, rows in percent."""
    from matplotlib.figure import Figure

    labels, counts = result["confusion"]["labels"], np.array(result["confusion"]["clean"])
    shares = 100.0 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    figure = Figure(figsize=(7, 6.2), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for i, j in np.argwhere(counts > 0):
        color = "white" if shares[i, j] > 50 else "black"
        axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    title = f"{result['model']}, test voices, clean: {100 * result['accuracy']['clean']:.1f} %"
    axes.set(xlabel="decided", ylabel="spoken", title=title)
    save(figure, path)


def models(entries: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Accuracy against the share of the word heard, and against multiply-accumulates, of every model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    early, cost = figure.subplots(1, 2)
    for name, found in sorted(entries.items()):
        (line,) = early.plot(found["early"]["share_heard"], np.multiply(100.0, found["early"]["accuracy"]), label=name)
        macs = found["macs_per_second_of_audio"] / 1e6
        for level, marker in zip(LEVELS, "os^", strict=True):
            cost.plot(macs, 100 * found["accuracy"][level], marker, color=line.get_color())
        cost.annotate(
            f"{name}\n{found['parameters'] / 1000:.0f} k parameters",
            (macs, 100 * found["accuracy"]["clean"]),
            textcoords="offset points",
            xytext=(-8, 0),
            fontsize=8,
            ha="right",
            va="center",
        )
    early.axvline(1.0, color="0.7", linewidth=0.8)
    early.set(xlabel="share of the word heard (1: its end)", ylabel="accuracy, %", title="clean, held-out voices")
    early.legend(loc="lower right", fontsize=8)
    for marker, level in zip("os^", LEVELS.values(), strict=True):
        cost.plot([], [], marker, color="0.4", label=level)
    cost.set(xlabel="million multiply-accumulates per second of audio", ylabel="accuracy, %")
    cost.margins(x=0.2)
    cost.set_xlim(left=0.0)
    cost.legend(loc="lower left", fontsize=8)
    save(figure, path)
