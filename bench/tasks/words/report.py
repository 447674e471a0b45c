"""The comparison of the sweep: bench/results/words.json, words.png, and a table to read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench import timing
from bench.tasks.words.compose import FRONT_END
from edgemem.errors import InputError
from edgemem.export import to_onnx
from edgemem.models import build_model
from edgemem.program import load

HEAD = "model         seed  fold  width  parameters      bytes     clean     10 dB      0 dB   known after"
LEVELS = ("clean", "10db", "0db")
ROUNDS, CALLS = 15, 60  # of the timing


def line(found: Mapping[str, Any]) -> str:
    """One training of one model, under `HEAD`."""
    config, wait = found["config"], found["levels"]["clean"]["latency_seconds"]["median"]
    rates = [found["levels"][level]["token_error_rate"] for level in LEVELS]
    return (
        f"{found['model']:12}{found['seed']:6}{config['fold']:6}{config['width']:7}{found['parameters']:12,}"
        f"{found['checkpoint_bytes']:11,}"
        + "".join(f"{100 * rate:8.2f} %" for rate in rates)
        + (f"{wait:12.2f} s" if wait is not None else "           -")
    )


def step_times(model: str, settings: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Median time of a step under onnxruntime by name, and its ratio to the first's: all take turns."""
    with tempfile.TemporaryDirectory() as folder:
        calls = {}
        for name, changed in settings.items():
            path = Path(folder) / f"{name}.onnx"
            module, _ = build_model(model, changed, seed=0)
            to_onnx(module, None, path)
            stream = load(path).stream()
            port = stream.contract.inputs[0]
            x = np.random.default_rng(0).standard_normal(port.shape).astype(np.float32)
            calls[name] = lambda stream=stream, x=x: stream.step(x)
        rounds = {name: np.array(times) for name, times in timing.interleaved(calls, ROUNDS, CALLS).items()}
    first = next(iter(rounds.values()))
    return {
        name: {
            "p50_us": float(np.median(times)),
            "ratio": float(np.median(times / first)),
            "spread": timing.spread(times.tolist()),
        }
        for name, times in rounds.items()
    }


def collected(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What has been judged, in the order of the sweep.

    Raises:
        InputError: nothing has.
    """
    found = [json.loads(path.read_text()) for name in names for path in sorted(folder.glob(f"{name}-seed?.json"))]
    if not found:
        raise InputError(f"{folder}: judged models were wanted, none are there; run `python -m bench.tasks.words`")
    return found


def write(folder: Path, model: str, settings: Mapping[str, Mapping[str, object]]) -> None:
    """Compare all that has been judged."""
    rows = collected(folder, list(settings))
    there = {row["model"] for row in rows}
    result = {
        "rows": rows,
        "step": step_times(model, {name: changed for name, changed in settings.items() if name in there}),
        "seconds_per_step": rows[0]["config"]["segment"] * FRONT_END.seconds_per_frame,
        "look_ahead_seconds": rows[0]["config"]["look_ahead"] * FRONT_END.seconds_per_frame,
        "versions": {name: version(name) for name in ("edgemem", "torch", "numpy", "onnxruntime")},
    }
    print(HEAD, *map(line, rows), timing.write("words", result), sep="\n")
    picture(rows, timing.RESULTS / "words.png")


def rows() -> list[dict[str, Any]]:
    """The rows of the committed result."""
    found: list[dict[str, Any]] = json.loads((timing.RESULTS / "words.json").read_text())["rows"]
    return found


def picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Token error rate against the bytes of a checkpoint, at every noise level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for level, marker in zip(LEVELS, "osv", strict=True):
        sizes = [row["checkpoint_bytes"] / 1e6 for row in rows]
        rates = [100 * row["levels"][level]["token_error_rate"] for row in rows]
        axes.scatter(sizes, rates, marker=marker, label={"clean": "clean"}.get(level, f"noise at {level[:-2]} dB"))
    for row in rows:
        at = (row["checkpoint_bytes"] / 1e6, 100 * row["levels"]["clean"]["token_error_rate"])
        axes.annotate(row["model"], at, xytext=(0, -13), textcoords="offset points", fontsize=8, ha="center")
    axes.set(xlabel="megabytes of weights (float16)", ylabel="token errors, %", xscale="log")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.set_title("Connected words, held-out voices, streamed")
    figure.savefig(path, dpi=110, metadata={"Software": None})
