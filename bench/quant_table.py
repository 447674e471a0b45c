"""What every scheme makes of every family: bytes, quality, time per step.

    python -m bench.quant_table [--models kws-lmuformer,lm-rwkv4] [--schemes "w8;w8a8"] [--excerpts | --times]

    model           scheme         bytes   ratio   output error   quality   us/step   x float
    kws-lmuformer   float         461068   1.000          0.000     0.978      91.2      1.00
    kws-lmuformer   w8            120444   0.261          0.006     0.978      99.0      1.09

writes bench/results/quant.json; rows of models and schemes that were not asked for stay as they are. `output error` is
the RMS difference of the outputs, relative to their RMS, over the packaged calibration sequences. Quality is the metric
of the model's task, streamed: on the whole test set for the schemes in `WHOLE`, on the packaged excerpt for the others
and with `--excerpts`, not anew with `--times`; float32 on the same stands beside it. A language model is judged in a
batch that is quantized alike. `tune` sees text of the training split. Times are medians of interleaved rounds on one
thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import Section, Table
from bench.tasks.bytes.data import corpus
from bench.timing import RESULTS, interleaved, spread, write
from bench.whole import judged
from edgemem.errors import UsageError
from edgemem.export import export_model
from edgemem.modelfile import open_model
from edgemem.models import spec
from edgemem.narrow import as_parent
from edgemem.program import Program, load
from edgemem.quant import Report, calibration, quantize
from edgemem.tasks import TASKS, task

MODELS = ("kws-lmuformer", "kws-gru", "lm-rwkv4", "lm-memformer", "asr-folding", "lm-transformer-xl")
SCHEMES = (
    "f16",
    "w8",
    "w8a8-dynamic",
    "w8a8",
    "w8a8-outlier",
    "w4g32",
    "vq:dim=2,codes=256",
    "vq:dim=4,codes=256",
    "vq:dim=4,codes=256,tune=100",
    "vq:dim=8,codes=256",
    "vq:dim=8,codes=256,tune=100",
    "memory-vq",
)
WHOLE = ("float", "w8", "w8a8", "vq:dim=2,codes=256", "vq:dim=4,codes=256", "vq:dim=4,codes=256,tune=100", "memory-vq")
BATCHES = {"lm-rwkv4": 16}  # of models whose step is too small to be judged one by one
TUNING_BYTES = 1 << 20
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


@dataclass
class Judge:
    """What a model of the zoo is judged by: its task, in which batch, and the float file's scores so far, by set."""

    model: str
    folder: Path
    task: str | None
    excerpts: bool
    times: bool
    float_scores: dict[bool, dict[str, Any]] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        return BATCHES.get(self.model, 1)

    def parent(self) -> Path:
        """The float file that is judged."""
        path = self.folder / f"{self.model}.b{self.batch}.onnx"
        if not path.exists():
            export_model(self.model, path, batch=self.batch)
        return path

    def quality(self, scheme: str, path: Path) -> dict[str, Any]:
        """The scores of a scheme's file and of float32 on the same set."""
        if self.task is None or self.times:
            return {} if self.times else {"task": None}
        whole = scheme in WHOLE and not self.excerpts
        if whole not in self.float_scores:
            self.float_scores[whole] = judged(self.parent(), self.task, whole)
        base = self.float_scores[whole]
        if scheme == "float":
            return {"task": self.task, **base, "float": base["quality"]}
        return {"task": self.task, **judged(path, self.task, whole), "float": base["quality"]}


def made(scheme: str, parent: Path, path: Path, folder: Path) -> Report:
    """The file of a scheme; codebooks are tuned on text of the training split."""
    text = None
    if "tune" in scheme and load(parent).contract.inputs[0].encoding == "bytes":
        text = folder / "train.txt"
        text.write_bytes(corpus("train")[:TUNING_BYTES].tobytes())
    return quantize(parent, path, scheme, calibrate=text, steps=64)


def measured(name: str, options: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of one model by scheme, `float` first."""
    path = folder / f"{name}.b1.onnx"
    export_model(name, path)
    parent = load(path)
    data = calibration.packaged(parent.contract)
    assert data is not None
    judge = Judge(name, folder, task_of(parent), options.excerpts, options.times)
    first = {"bytes": open_model(path).onnx.weight_bytes, "ratio": 1.0, "output_error": 0.0}
    rows: dict[str, dict[str, Any]] = {"float": first | judge.quality("float", judge.parent())}
    programs = {"float": parent}
    for scheme in options.schemes.split(";"):
        out = whole = folder / f"{name}.{len(programs)}.onnx"
        try:
            if (
                judge.batch > 1 and not options.times
            ):  # training moves the numbers of a file, not its size nor its speed
                whole = folder / "batched.onnx"
                made(scheme, judge.parent(), whole, folder)
            report = made(scheme if judge.batch == 1 else scheme.partition(",tune")[0], path, out, folder)
        except UsageError as error:  # a memory that this model has not
            print(f"{name:15} {scheme:20} {error}", flush=True)
            continue
        programs[scheme], base = load(out), parent if whole is out else load(judge.parent())
        seen = as_parent(open_model(whole), load(whole), base)
        rows[scheme] = {
            "bytes": report.bytes_after,
            "ratio": report.ratio,
            "state_ratio": report.state_bytes_after / report.state_bytes_before,
            "output_error": output_error(base, seen, data, options.steps),
        } | judge.quality(scheme, whole)
        print(f"{name:15} {scheme:20} {rows[scheme]}", flush=True)
    for scheme, times in timed(programs, data, options.steps).items():
        rows[scheme] |= {"us_per_step": statistics.median(times), "spread": spread(times)}
    for row in rows.values():
        row["times_float"] = row["us_per_step"] / rows["float"]["us_per_step"]
    return rows


def timed(programs: dict[str, Program], data: calibration.Data, steps: int) -> dict[str, list[float]]:
    """Microseconds per step of every program, taking turns."""
    inputs = next(inputs for _, inputs in calibration.steps(programs["float"].contract, data, 1, runs=()))
    states = {name: program.new_state() for name, program in programs.items()}
    calls = {name: (lambda p=program, s=states[name]: p.step(inputs, s)) for name, program in programs.items()}
    return interleaved(calls, ROUNDS, max(10, steps // 10))


def section(result: dict[str, Any]) -> Section:
    """The table of the results page."""
    heads = ("model", "scheme", "bytes", "of float32", "output error", "quality", "change", "judged on",
             "µs per step", "of float32")  # fmt: skip
    lines = []
    for model, rows in result["models"].items():
        for scheme, row in sorted(rows.items(), key=lambda item: (item[0] != "float", -item[1]["ratio"])):
            score = f"{row['metric']} {row['quality']:.4f}" if row.get("task") else "–"
            base = row.get("float", rows["float"].get("quality"))  # on the same clips or bytes
            change = f"{row['quality'] / base - 1:+.2%}" if row.get("task") and scheme != "float" else "–"
            lines.append(
                [
                    model,
                    f"`{scheme}`",
                    f"{row['bytes']:,}",
                    f"{row['ratio']:.3f}×",
                    f"{row['output_error']:.2%}",
                    score,
                    change,
                    row.get("of", "–"),
                    f"{row['us_per_step']:.0f}" if "us_per_step" in row else "–",
                    f"{row['times_float']:.2f}×" if "us_per_step" in row else "–",
                ]
            )
    return Section(
        title="Quantization",
        text=(
            "Every scheme on models of the zoo, in onnxruntime on one thread. Bytes are of all initializers: "
            "embeddings, scales and codebooks included. The output error is RMS, relative, over the packaged "
            "calibration sequences; quality is the task's, streamed, beside float32 on the same bytes or "
            "clips. onnxruntime dequantizes int8 weights anew in every step; compiled "
            "programs need not. 4-bit codes are `dim=2`, 2-bit ones `dim=4`, 1-bit ones `dim=8`; `tune` trains their "
            "codebooks. Of the recogniser's excerpt a word is half a point, 9 % of its errors. `memory-vq` shrinks the "
            "state alone, 16 times below bfloat16. The picture: a slow accumulator whose state is stored in fewer bits "
            "(`python -m bench.state_collapse`)."
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
    parser.add_argument("--excerpts", action="store_true", help="judge on packaged excerpts alone")
    parser.add_argument("--times", action="store_true", help="measure bytes and times, keep the scores that are there")
    options = parser.parse_args()
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows = measured(name, options, Path(folder))
        path = RESULTS / "quant.json"  # read as late as here: another model may have been measured meanwhile
        models = json.loads(path.read_text())["models"] if path.exists() else {}
        known = models.get(name, {})
        merged = known | {scheme: known.get(scheme, {}) | row for scheme, row in rows.items()}
        print(write("quant", {"models": models | {name: merged}}))


if __name__ == "__main__":
    main()
