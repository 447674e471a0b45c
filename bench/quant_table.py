"""What every scheme makes of every family: bytes, quality, time per step.

    python -m bench.quant_table [--models kws-lmuformer,lm-rwkv4] [--schemes w8,w8a8] [--steps 300]

    model           scheme         bytes   ratio   output error   quality   us/step   x float
    kws-lmuformer   float         461068   1.000          0.000     0.978      91.2      1.00
    kws-lmuformer   w8            120444   0.261          0.006     0.978      99.0      1.09

writes bench/results/quant.json; rows of models and schemes that were not asked for stay as they are. `output error` is
the RMS difference of the outputs, relative to their RMS, over the packaged calibration sequences. Quality is the metric
of the model's task on its excerpt, for models that ship trained. Times are medians of interleaved rounds on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import Section, Table
from bench.timing import RESULTS, interleaved, spread, write
from edgemem.evaluation import evaluate
from edgemem.export import export_model
from edgemem.modelfile import open_model
from edgemem.models import spec
from edgemem.narrow import as_parent
from edgemem.program import Program, load
from edgemem.quant import calibration, quantize
from edgemem.tasks import TASKS, task

MODELS = ("kws-lmuformer", "lm-rwkv4", "lm-memformer", "asr-folding")
SCHEMES = (
    "f16",
    "w8",
    "w8a8-dynamic",
    "w8a8",
    "w8a8-outlier",
    "w4g32",
    "vq:dim=2,codes=256",
    "vq:dim=4,codes=256",
    "vq:dim=8,codes=256",
    "memory-vq",
)
ROUNDS = 7


def task_of(program: Program) -> str | None:
    """The first task that a shipped model fits."""
    if spec(program.contract.model.name).checkpoint is None:
        return None
    return next((name for name in TASKS if task(name).refusal(program.contract) is None), None)


def output_error(parent: Program, narrow: Program, data: calibration.Data, count: int) -> float:
    """RMS difference of the outputs relative to their RMS, both programs carrying their own state."""
    left, right, difference, size = parent.new_state(), narrow.new_state(), 0.0, 0.0
    for position, inputs in calibration.steps(parent.contract, data, count, runs=()):
        if position == 0:
            left.reset()
            right.reset()
        wanted = {name: np.array(value, np.float64) for name, value in parent.step(inputs, left).items()}
        for name, value in narrow.step(inputs, right).items():
            difference += float(((value - wanted[name]) ** 2).sum())
            size += float((wanted[name] ** 2).sum())
    return float(np.sqrt(difference / size))


def measured(name: str, schemes: list[str], steps: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of one model by scheme, `float` first."""
    path = folder / f"{name}.onnx"
    export_model(name, path)
    parent = load(path)
    data = calibration.packaged(parent.contract)
    assert data is not None
    judge = task_of(parent)
    first = {"bytes": open_model(path).onnx.weight_bytes, "ratio": 1.0, "output_error": 0.0}
    rows: dict[str, dict[str, Any]] = {"float": first | quality(path, judge)}
    programs = {"float": parent}
    for scheme in schemes:
        out = folder / f"{name}.{len(programs)}.onnx"
        report = quantize(path, out, scheme, steps=64)
        programs[scheme] = load(out)
        seen = as_parent(open_model(out), programs[scheme], parent)
        rows[scheme] = {
            "bytes": report.bytes_after,
            "ratio": report.ratio,
            "state_ratio": report.state_bytes_after / report.state_bytes_before,
            "output_error": output_error(parent, seen, data, steps),
        } | quality(out, judge)
        print(f"{name:15} {scheme:20} {rows[scheme]}", flush=True)
    for scheme, times in timed(programs, data, steps).items():
        rows[scheme] |= {"us_per_step": statistics.median(times), "spread": spread(times)}
    for row in rows.values():
        row["times_float"] = row["us_per_step"] / rows["float"]["us_per_step"]
    return rows


def quality(path: Path, judge: str | None) -> dict[str, Any]:
    """The task's metric of one file."""
    if judge is None:
        return {"task": None}
    found = evaluate(path, judge)
    return {"task": judge, "metric": found.score.metric, "quality": found.score.value}


def timed(programs: dict[str, Program], data: calibration.Data, steps: int) -> dict[str, list[float]]:
    """Microseconds per step of every program, taking turns."""
    inputs = next(inputs for _, inputs in calibration.steps(programs["float"].contract, data, 1, runs=()))
    states = {name: program.new_state() for name, program in programs.items()}
    calls = {name: (lambda p=program, s=states[name]: p.step(inputs, s)) for name, program in programs.items()}
    return interleaved(calls, ROUNDS, max(10, steps // 10))


def section(result: dict[str, Any]) -> Section:
    """The table of the results page."""
    heads = ("model", "scheme", "bytes", "of float32", "output error", "quality", "µs per step", "of float32")
    lines = []
    for model, rows in result["models"].items():
        for scheme, row in sorted(rows.items(), key=lambda item: (item[0] != "float", -item[1]["ratio"])):
            judged = f"{row['metric']} {row['quality']:.4f}" if row.get("task") else "–"
            lines.append(
                [
                    model,
                    f"`{scheme}`",
                    f"{row['bytes']:,}",
                    f"{row['ratio']:.3f}×",
                    f"{row['output_error']:.2%}",
                    judged,
                    f"{row['us_per_step']:.0f}",
                    f"{row['times_float']:.2f}×",
                ]
            )
    return Section(
        title="Quantization",
        text=(
            "Every scheme on models of the zoo, in onnxruntime on one thread. Bytes are of all initializers: "
            "embeddings, scales and codebooks included. The output error is RMS, relative, over the packaged "
            "calibration sequences; quality is that of the task's excerpt, for models that ship trained (the "
            "others have random weights). onnxruntime dequantizes int8 weights anew in every step; compiled "
            "programs need not. `memory-vq` shrinks the state alone, 16 times below bfloat16. The picture: a slow "
            "accumulator whose state is stored in fewer bits (`python -m bench.state_collapse`)."
        ),
        tables=(Table("Bytes, quality, time", heads, lines),),
        pictures=("state_collapse.png",),
        recipe="bench.quant_table",
    )


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--schemes", default=";".join(SCHEMES), help="separated by ;")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    path = RESULTS / "quant.json"
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            models[name] = models.get(name, {}) | measured(
                name, options.schemes.split(";"), options.steps, Path(folder)
            )
            print(write("quant", {"models": models}))


if __name__ == "__main__":
    main()
