"""How good a language model is on the test split, streamed file by file, and what it looks like beside the others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.tasks.bytes.data import files
from edgemem.tasks.bytes import EARLY, streamed

if TYPE_CHECKING:
    from edgemem.program import Program

COLOURS = {
    "lm-rwkv4": "tab:blue",
    "lm-memformer": "tab:orange",
    "lm-transformer-xl": "tab:green",
    "lm-transformer": "tab:red",
}


def test_bits(program: Program, largest: int | None = None) -> dict[str, float]:
    """Bits per byte of every file of the test split (of its first `largest` bytes), from the start state.

    `later` leaves out the first kilobyte of every file, where there is little to remember.
    """
    stream, bits, later = program.stream(), [], []
    for _, path in files("test"):
        text = np.frombuffer(path.read_bytes()[:largest], np.uint8)
        if len(text):
            found = streamed(stream, text)
            bits.append(found)
            later.append(found[EARLY:])
    joined = np.concatenate(bits)
    tail = np.concatenate(later)
    result = {"bits_per_byte": float(joined.mean()), "files": len(bits), "bytes": len(joined)}
    return {**result, "later": float(tail.mean())} if len(tail) else result


def picture(models: Mapping[str, Any], path: Path) -> None:
    """Learning curves, state, peak memory and time per byte over the context, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    (quality, state), (peak, speed) = figure.subplots(2, 2)
    for name, found in models.items():
        style: dict[str, Any] = {"label": name, "color": COLOURS.get(name), "marker": "o", "markersize": 4}
        curve, rows = found.get("training", {}).get("curve", []), found.get("contexts", [])
        quality.plot([p["bytes"] / 1e6 for p in curve], [p["valid_bits_per_byte"] for p in curve], **style)
        at = [row["context"] for row in rows]
        state.loglog(at, [row["state_bytes"] / 1e6 for row in rows], **style)
        peak.loglog(at, [row["peak_bytes"] / 1e6 for row in rows], **style)
        speed.loglog(at, [row["seconds_per_byte"] * 1e3 for row in rows], **style)
    quality.set(xlabel="megabytes trained on", ylabel="bits per byte, validation", title="Quality, same budget")
    state.set(xlabel="context, bytes", ylabel="MB", title="State")
    peak.set(xlabel="context, bytes", ylabel="MB", title="Peak memory, weights included")
    speed.set(xlabel="context, bytes", ylabel="ms of one CPU thread", title="Time per byte")
    for axes in (quality, state, peak, speed):
        axes.grid(alpha=0.3)
    state.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})
