"""How long does a step take on a GPU, beside torch and onnxruntime, and how far is it from the memory's speed?

python -m bench.gpu [--models small,mid,169M] [--batches 1,16,256] [--rounds 20] [--engines edgemem,torch,...]
                    [--seconds 600]

writes bench/results/gpu.json, again after every model, so that a run which is cut short leaves what it has measured.
With `--seconds` no further model or engine is started once they are spent. An engine that fails is left out, with its
reason. Models are RWKV-4 of random weights in float32; all engines (`bench.gpu_engines`) take turns in every round,
once they agree on the outputs:

    run    microseconds of a step, of many that are launched one after another and waited for once
    step   microseconds from an input of the host to the output on the host, one at a time
    copy   bytes that the device reads and writes in a second when it copies, measured in the same rounds

Without a CUDA GPU it refuses. `--device cpu` tries the script itself on a processor; that is no measurement.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import Section, Table
from bench.gpu_engines import ENGINES, Absent, Engine
from bench.timing import RESULTS, spread, write
from edgemem.errors import EdgememError
from edgemem.measure import step_bytes
from edgemem.modelfile import open_model
from edgemem.text import first_line

MODELS: Mapping[str, dict[str, object]] = {
    "small": {"layers": 2, "width": 64, "vocab": 64},
    "mid": {"layers": 8, "width": 512, "vocab": 4096},
    "169M": {"layers": 12, "width": 768, "vocab": 50277},
}
TINY = {"layers": 1, "width": 16, "vocab": 16}  # for a trial
BATCHES = (1, 16, 256)
COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 22}
RUN_SECONDS = 0.02  # of each engine in each round
CHECKED_STEPS = 4
NO_TIME = "no time was left for it (--seconds)"
TOLERANCE = 1e-3  # of the largest output: sums of thousands of float32 in another order
GOALS = (
    ("169M", 1, "of the copy bandwidth, at least", 0.7),
    ("small", 1, "of torch-graph's step, at most", 0.5),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--seconds", type=float, default=math.inf, help="start nothing further after them")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder for gpu.json")
    given = parser.parse_args(arguments)
    end = time.monotonic() + given.seconds
    labels, batches = given.models.split(","), [int(batch) for batch in given.batches.split(",")]
    known = {**MODELS, "tiny": TINY}
    if unknown := [label for label in labels if label not in known]:
        parser.error(f"--models: {', '.join(known)} were wanted, {', '.join(unknown)} came")
    names = given.engines.split(",")
    if unknown := [name for name in names if name not in ENGINES]:
        parser.error(f"--engines: {', '.join(ENGINES)} were wanted, {', '.join(unknown)} came")
    if given.device == "cpu" and given.out == RESULTS:
        parser.error("--device cpu measures no GPU: give --out, another folder than that of the results")
    try:
        device = described(given.device)
    except EdgememError as error:
        print(f"bench.gpu: {error}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {
        "device": device,
        "rounds": given.rounds,
        "rows": [],
        "skipped": [],
        "versions": versions(),
    }
    cases = [(label, batch) for batch in batches for label in labels]  # a batch of 1 of every model comes first
    for label, batch in cases:
        trial = Trial(given.device, given.rounds, names, end)
        trial.measure(known[label], batch)
        result["rows"] += [{"model": label, "batch": batch, **row} for row in trial.rows]
        result["skipped"] += [{"model": label, "batch": batch, **row} for row in trial.absent]
        for row in trial.rows:
            print(line({"model": label, "batch": batch, **row}), flush=True)
        for row in trial.absent:
            print(f"{label:<6}{batch:>5}  {row['engine']:<14}left out: {row['reason']}", flush=True)
        path = write("gpu", result, given.out)
    print(path)
    return 1 if any(row["engine"] == "edgemem" for row in result["skipped"]) else 0


def described(device: str) -> dict[str, Any]:
    """The device's name and what it has.

    Raises:
        DeviceError: a GPU was asked for and there is none that TVM can use; says why.
    """
    if device == "cpu":
        return {"name": "cpu"}
    from edgemem.runtimes.vm.program import arch_here

    arch = arch_here()
    import tvm

    gpu = tvm.cuda(0)
    return {
        "name": str(gpu.device_name),
        "arch": arch,
        "memory_bytes": int(gpu.total_global_memory),
        "multiprocessors": int(gpu.multi_processor_count),
    }


class Trial:
    """One model at one batch size: rows of the engines that ran, and why the others did not."""

    def __init__(self, device: str, rounds: int, names: Sequence[str], end: float) -> None:
        self.device, self.rounds, self.names, self.end = device, rounds, names, end
        self.rows: list[dict[str, Any]] = []
        self.absent: list[dict[str, Any]] = []

    def measure(self, settings: Mapping[str, object], batch: int) -> None:
        """Export the model, and let the engines take turns."""
        from edgemem.export import export_model

        if self.late():
            return self.leave_out(self.names, NO_TIME)
        with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
            path = Path(folder) / "model.onnx"
            try:
                export_model("rwkv4", path, settings, seed=0, batch=batch, certified_steps=CHECKED_STEPS)
            except EdgememError as error:
                return self.leave_out(self.names, reason(error))
            self.turns(path)
        return None

    def late(self) -> bool:
        return time.monotonic() >= self.end

    def leave_out(self, names: Sequence[str], why: str) -> None:
        self.absent += [{"engine": name, "reason": why} for name in names]

    def turns(self, path: Path) -> None:
        """All engines on one model, in turn in each round."""
        model = open_model(path)
        port = model.contract.inputs[0]
        least, most = port.range or (0, 1)
        rng = np.random.default_rng(0)
        chunks = [rng.integers(least, most + 1, port.shape).astype(port.dtype) for _ in range(CHECKED_STEPS)]
        engines = self.started(path, chunks)
        if not engines:
            return
        copy = Copy(self.device)
        times: dict[str, dict[str, list[float]]] = {name: {"run": [], "step": []} for name in engines}
        copies: list[float] = []
        for index in range(self.rounds + 1):  # the first one warms up
            copies.append(copy.bytes_per_second())
            for name, engine in list(engines.items()):
                try:
                    times[name]["run"].append(run_us(engine))
                    times[name]["step"].append(step_us(engine, chunks))
                except Exception as error:  # each engine raises errors of its own kind
                    self.leave_out([name], reason(error))
                    del engines[name], times[name]
            if index == 0:
                copies.clear()
                for kinds in times.values():
                    kinds["run"].clear(), kinds["step"].clear()
            elif self.late():
                break
        nbytes = step_bytes(model)
        self.rows += [row(name, found, nbytes, copies) for name, found in times.items()]

    def started(self, path: Path, chunks: Sequence[Any]) -> dict[str, Engine]:
        """The engines that are here and compute what the first of them does."""
        engines: dict[str, Engine] = {}
        wanted: list[Any] = []
        for name in self.names:
            if self.late():
                self.leave_out([name], NO_TIME)
                continue
            try:
                engine = ENGINES[name](path, self.device)
                outputs = [np.array(engine.step(chunk)) for chunk in chunks]
            except Exception as error:  # each engine raises errors of its own kind
                self.leave_out([name], reason(error))
                continue
            wanted = wanted or outputs
            apart = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(outputs, wanted, strict=True))
            if apart <= TOLERANCE:
                engines[name] = engine
            else:
                self.leave_out([name], f"its outputs differ by {apart:.1e} of the largest")
        return engines


def reason(error: Exception) -> str:
    """Why an engine is left out."""
    if isinstance(error, Absent | ImportError | EdgememError):
        return first_line(error)
    return f"{type(error).__name__}: {first_line(error)}"


class Copy:
    """A large tensor of the device, copied on it."""

    def __init__(self, device: str) -> None:
        import tvm

        self.device = tvm.cuda(0) if device == "cuda" else tvm.cpu()
        self.nbytes = COPY_BYTES[device]
        self.source, self.target = (tvm.runtime.empty((self.nbytes,), "uint8", self.device) for _ in "ab")

    def bytes_per_second(self) -> float:
        """Bytes read and written in a second."""
        self.device.sync()
        begin = time.perf_counter()
        self.source.copyto(self.target)
        self.device.sync()
        return 2 * self.nbytes / (time.perf_counter() - begin)


def run_us(engine: Engine) -> float:
    """Microseconds of a step among steps that follow one another without a pause."""
    begin = time.perf_counter()
    engine.launch()
    engine.wait()
    count = max(1, int(RUN_SECONDS / max(1e-6, time.perf_counter() - begin)))
    begin = time.perf_counter()
    for _ in range(count):
        engine.launch()
    engine.wait()
    return (time.perf_counter() - begin) / count * 1e6


def step_us(engine: Engine, chunks: Sequence[Any]) -> float:
    """Microseconds of a step from host to host: the median of some."""
    times: list[float] = []
    end = time.perf_counter() + RUN_SECONDS
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        engine.step(chunks[len(times) % len(chunks)])
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def row(name: str, found: Mapping[str, Sequence[float]], nbytes: int, copies: Sequence[float]) -> dict[str, Any]:
    """One engine's figures: medians of the rounds."""
    run = statistics.median(found["run"])
    share = statistics.median(nbytes / us * 1e6 / copy for us, copy in zip(found["run"], copies, strict=True))
    return {
        "engine": name,
        "rounds": len(found["run"]),
        "run_us": round(run, 2),
        "run_spread": round(spread(found["run"]), 4),
        "step_us": round(statistics.median(found["step"]), 2),
        "step_spread": round(spread(found["step"]), 4),
        "bytes_per_step": nbytes,
        "gb_per_s": round(nbytes / run / 1e3, 2),
        "copy_gb_per_s": round(statistics.median(copies) / 1e9, 2),
        "of_copy": round(share, 4),
    }


def versions() -> dict[str, str]:
    """Versions of the engines that are installed."""
    found = {}
    for package in ("apache-tvm", "torch", "onnxruntime", "onnxruntime-gpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def line(row: Mapping[str, Any]) -> str:
    """One row for people."""
    return (
        f"{row['model']:<6}{row['batch']:>5}  {row['engine']:<14}{row['run_us']:>10.1f} µs run"
        f"{row['step_us']:>10.1f} µs step{row['gb_per_s']:>9.1f} GB/s{row['of_copy']:>7.2f} of copy"
    )


def section(result: Mapping[str, Any]) -> Section:
    """The part of the results page."""
    heads = ("model", "batch", "engine", "run µs", "spread", "step µs", "spread", "GB/s", "of copy", "edgemem takes")
    return Section(
        title="On a GPU",
        text=(
            f"RWKV-4 of random weights in float32 on {result['device']['name']}; all engines in turn in "
            f"{result['rounds']} rounds, medians. `run`: steps launched one after another; `step`: from an input of "
            "the host to the output on the host. GB/s: weights and states of a step over `run`; `of copy`: beside what "
            "the device reads and writes when it copies, in the same rounds. `edgemem takes`: its `step` over that of "
            "the engine."
        ),
        tables=[
            Table("Steps", heads, [cells(row, result["rows"]) for row in result["rows"]]),
            Table("What is asked of edgemem", ("model", "batch", "asked", "goal", "measured", ""), goals(result)),
        ],
        recipe="bench.gpu",
    )


def cells(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row of the first table."""
    own = row_of(rows, row["model"], row["batch"], "edgemem")
    return [
        row["model"], str(row["batch"]), f"`{row['engine']}`", f"{row['run_us']:,.1f}", f"{row['run_spread']:.1%}",
        f"{row['step_us']:,.1f}", f"{row['step_spread']:.1%}", f"{row['gb_per_s']:,.1f}", f"{row['of_copy']:.2f}",
        "–" if own is None else f"{own['step_us'] / row['step_us']:.2f}",
    ]  # fmt: skip


def row_of(rows: Sequence[Mapping[str, Any]], model: str, batch: int, engine: str) -> Mapping[str, Any] | None:
    return next((r for r in rows if (r["model"], r["batch"], r["engine"]) == (model, batch, engine)), None)


def goals(result: Mapping[str, Any]) -> list[list[str]]:
    """What was wanted beside what came."""
    lines = []
    for (model, batch, asked, goal), measure in zip(GOALS, (of_copy, of_graph), strict=True):
        own = row_of(result["rows"], model, batch, "edgemem")
        value = None if own is None else measure(own, row_of(result["rows"], model, batch, "torch-graph"))
        holds = value is not None and (value >= goal if "least" in asked else value <= goal)
        verdict = "not run" if value is None else "reached" if holds else "missed"
        lines.append([model, str(batch), asked, f"{goal:.2f}", "–" if value is None else f"{value:.2f}", verdict])
    return lines


def of_copy(own: Mapping[str, Any], other: Mapping[str, Any] | None) -> float | None:
    return float(own["of_copy"])


def of_graph(own: Mapping[str, Any], other: Mapping[str, Any] | None) -> float | None:
    return None if other is None else float(own["step_us"]) / float(other["step_us"])


if __name__ == "__main__":
    sys.exit(main())
