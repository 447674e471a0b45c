"""One row of the table of schemes: a file, how good it is, how fast it is, and what each was measured with.

    file    bytes, ratio, state_ratio, output_error, seconds      key: parent, scheme, code and data that it was made of
    score   task, metric, quality, of, float, seconds, machine    digest: of the file judged; set: of what it judged
    time    us_per_step, spread, times_float, seconds, machine    digest: of the file; seconds: of the model's one pass

Files stay in a folder, each with what it was made of (`key`): equal keys, equal files. A score or a time belongs to the
file with its `digest`, and goes when the file becomes another.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import edgemem
from bench import timing, whole
from bench.tasks.bytes.data import corpus
from bench.timing import interleaved, spread
from edgemem.digests import digest as digest_of
from edgemem.export import export_model
from edgemem.files import atomic_write
from edgemem.modelfile import open_model
from edgemem.models import spec
from edgemem.narrow import as_parent
from edgemem.program import Program, load
from edgemem.quant import calibration, quantize
from edgemem.tasks import TASKS, task

Row = dict[str, Any]
FLOAT = "float"
BATCHES = {"lm-rwkv4": 16}  # of models whose step is too small to be judged one by one
STEPS = 300  # over which outputs are compared
CERTIFIED_STEPS = 64
TUNING_BYTES = 1 << 20
ROUNDS, ROUND_SECONDS, FEWEST_CALLS = 9, 0.02, 3
FLOAT_CODE = ("export", "cells", "models")  # what an exported file depends on, beside its checkpoint
NARROW_CODE = ("quant",)


# --- files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A file of the folder: `facts` are the row's `file`, `digest` is of all but its metadata."""

    path: Path
    digest: str
    facts: Row


@dataclass(frozen=True)
class Shelf:
    """The files of one model in a folder."""

    model: str
    folder: Path

    def parent(self, batch: int = 1) -> Made:
        """The float file."""
        path = self.folder / f"{self.model}.b{batch}.onnx"
        key = digest_of(
            [edgemem.__version__, spec(self.model).checkpoint and checkpoint(self.model), *code(FLOAT_CODE)]
        )
        return kept(path, key, lambda: self.exported(path, batch))

    def exported(self, path: Path, batch: int) -> Row:
        export_model(self.model, path, batch=batch)
        return {"bytes": open_model(path).onnx.weight_bytes, "ratio": 1.0, "state_ratio": 1.0, "output_error": 0.0}

    def narrow(self, scheme: str, batch: int = 1) -> Made:
        """The file of a scheme.

        Raises:
            UsageError: the scheme does not fit the model.
        """
        parent, name = self.parent(batch), "".join(c if c.isalnum() or c in "-=" else "_" for c in scheme)
        path = self.folder / f"{self.model}.b{batch}.{name}.onnx"
        data = calibration.packaged(open_model(parent.path).contract)
        assert data is not None
        text = training_text(self.folder) if "tune" in scheme and is_text(parent.path) else None
        key = digest_of([parent.digest, scheme, data.digest, text and sha256(text), *code(NARROW_CODE)])
        return kept(path, key, lambda: quantized(parent.path, path, scheme, text, data))


def kept(path: Path, key: str, make: Any) -> Made:
    """The file at `path` if it was made of `key`, else a new one."""
    side = path.with_suffix(".json")
    known = json.loads(side.read_text()) if side.is_file() and path.is_file() else {}
    if known.get("key") != key:
        begin = time.perf_counter()
        facts = make()
        facts |= {"seconds": time.perf_counter() - begin, "key": key}
        with atomic_write(side) as file:
            file.write(json.dumps(facts, indent=1).encode())
        known = facts
    return Made(path, digest(path), known)


def quantized(parent: Path, path: Path, scheme: str, text: Path | None, data: calibration.Data) -> Row:
    """Make the file of a scheme, and compare its outputs with the parent's."""
    report = quantize(parent, path, scheme, calibrate=text, steps=CERTIFIED_STEPS)
    wide = load(parent)
    return {
        "bytes": report.bytes_after,
        "ratio": report.ratio,
        "state_ratio": report.state_bytes_after / report.state_bytes_before,
        "output_error": output_error(wide, as_parent(open_model(path), load(path), wide), data),
        "warnings": list(report.warnings),
    }


def output_error(parent: Program, narrow: Program, data: calibration.Data) -> float:
    """RMS difference of the outputs relative to their RMS, both programs carrying their own state."""
    left, right, difference, size = parent.new_state(), narrow.new_state(), 0.0, 0.0
    for position, inputs in calibration.steps(parent.contract, data, STEPS, runs=()):
        if position == 0:
            left.reset()
            right.reset()
        wanted = {name: np.array(value, np.float64) for name, value in parent.step(inputs, left).items()}
        for name, value in narrow.step(inputs, right).items():
            difference += float(((value - wanted[name]) ** 2).sum())
            size += float((wanted[name] ** 2).sum())
    return float(np.sqrt(difference / size))


def training_text(folder: Path) -> Path:
    """Text of the training split, for codebooks that are tuned."""
    path = folder / "train.txt"
    if not path.is_file():
        with atomic_write(path) as file:
            file.write(corpus("train")[:TUNING_BYTES].tobytes())
    return path


def is_text(path: Path) -> bool:
    return open_model(path).contract.inputs[0].encoding == "bytes"


@cache
def checkpoint(model: str) -> str:
    """SHA-256 of the checkpoint that ships."""
    from edgemem.checkpoints import packaged

    name = spec(model).checkpoint
    return sha256(packaged(name)) if name else ""


@cache
def code(folders: tuple[str, ...]) -> list[str]:
    """SHA-256 of the modules directly in some of edgemem's sub-packages."""
    import importlib

    roots = [Path(str(importlib.import_module(f"edgemem.{name}").__path__[0])) for name in folders]
    return [sha256(path) for root in roots for path in sorted(root.glob("*.py"))]


def machine() -> str:
    """What a number was measured on."""
    found = timing.machine()
    return f"{found['cpu']}, {found['cores']} cores, Python {found['python']}, onnxruntime {version('onnxruntime')}"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(path: Path) -> str:
    """Of a model file without its metadata, which says when and with which versions it was compared."""
    model = onnx.load(path)
    del model.metadata_props[:]
    model.producer_version = ""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


# --- scores ------------------------------------------------------------------------------------------------------


def task_of(path: Path) -> str | None:
    """The first task that a shipped model fits."""
    contract = open_model(path).contract
    return next((name for name in TASKS if task(name).refusal(contract) is None), None)


def score(made: Made, name: str, entire: bool, known: Mapping[str, Any]) -> Row:
    """How good a file is at a task, on the whole test set or its excerpt; what is `known` if it is of this file."""
    data = whole.digest(name, entire)
    if (known.get("digest"), known.get("set")) == (made.digest, data):
        return dict(known)
    begin = time.perf_counter()
    found = {"task": name, **whole.judged(made.path, name, entire), "digest": made.digest, "set": data}
    return found | {"seconds": time.perf_counter() - begin, "machine": machine()}


# --- times -------------------------------------------------------------------------------------------------------


def timed(files: Mapping[str, Made]) -> dict[str, Row]:
    """Microseconds per step of every file, taking turns in one pass; `float` is one of them."""
    begin = time.perf_counter()
    programs = {name: load(made.path) for name, made in files.items()}
    data = calibration.packaged(programs[FLOAT].contract)
    assert data is not None
    inputs = next(inputs for _, inputs in calibration.steps(programs[FLOAT].contract, data, 1, runs=()))
    calls = {name: stepping(program, inputs) for name, program in programs.items()}
    once = interleaved({FLOAT: calls[FLOAT]}, 3, FEWEST_CALLS)[FLOAT]
    count = max(FEWEST_CALLS, round(ROUND_SECONDS * 1e6 / min(once)))
    rounds = interleaved(calls, ROUNDS, count)
    seconds = time.perf_counter() - begin
    return {
        name: {
            "us_per_step": statistics.median(times),
            "spread": spread(times),
            "times_float": statistics.median(a / b for a, b in zip(times, rounds[FLOAT], strict=True)),
            "digest": files[name].digest,
            "machine": machine(),
            "seconds": seconds,
        }
        for name, times in rounds.items()
    }


def stepping(program: Program, inputs: Mapping[str, Any]) -> Any:
    """A call that makes one step of a stream."""
    state = program.new_state()
    return lambda: program.step(inputs, state)
