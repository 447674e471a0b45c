"""What a language model costs when it has a long past: state, peak memory, time per byte, at contexts of 1 k to 64 k.

A recurrent model is streamed over the whole context; a model with a cache is exported with a cache of that many rows,
which are filled (with random rows: costs do not depend on values). Each measurement is a process of its own:

    python -m bench.tasks.bytes.contexts lm.onnx 8192

    {"peak_bytes": 31457280, "seconds_per_byte": 0.00041, "state_bytes": 19200}

Times are of the CPU, of one step on one thread, over the bytes in it: the tenth percentile of many steps, since
whatever else the machine does only adds. Peak memory is what the process grew by from before it loaded the model:
weights, state (two of them under onnxruntime), activations.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from edgemem.stream import Stream

CONTEXTS = (1024, 8192, 65536)
CACHES = {"lm-transformer": "context", "lm-transformer-xl": "memory"}  # the setting that says how far a model looks
TIMED_SECONDS = 2.0
FEWEST_STEPS = 8
BLOCK_BYTES = 512


def peak_bytes() -> int:
    """The most memory that this process has held (getrusage would also know of the one that started it)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def fill(stream: Stream, context: int, draw: np.random.Generator) -> None:
    """Bring a stream to where it has seen `context` bytes: by filling its caches, or by streaming them."""
    states = stream.contract.states
    if not any(state.role == "cache" for state in states):
        for _ in range(context // BLOCK_BYTES + 1):  # the logits of the whole past are not the model's memory
            stream.push(draw.integers(0, 256, min(context, BLOCK_BYTES)))
        return
    full = {"cache": lambda s: draw.uniform(-1.0, 1.0, s.shape), "counter": lambda s: np.full(s.shape, s.range[1])}
    stream.set_state({s.name: full[s.role](s).astype(s.dtype) for s in states})


def cost(path: Path, context: int) -> dict[str, float]:
    """The costs of one step behind `context` bytes."""
    import onnxruntime  # noqa: F401  the memory of libraries is not the model's

    import edgemem.runtimes.ort
    import edgemem.stream  # noqa: F401
    from edgemem.program import load

    before, draw = peak_bytes(), np.random.default_rng(0)
    stream = load(path).stream()
    fill(stream, context, draw)
    frames = stream.contract.inputs[0].shape[1]
    times: list[float] = []
    while len(times) < FEWEST_STEPS or sum(times) < TIMED_SECONDS:
        chunk = draw.integers(0, 256, frames)
        begin = time.process_time()
        stream.step(chunk)
        times.append(time.process_time() - begin)
    state = sum(array.nbytes for array in stream.state.values())
    return {
        "state_bytes": state,
        "peak_bytes": peak_bytes() - before,
        "seconds_per_byte": float(np.quantile(times, 0.1)) / frames,
    }


def costs(
    name: str, checkpoint: Path | None, contexts: Sequence[int | None] = CONTEXTS, report: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """The costs of a model at every context, one row each; None is the cache that it ships with.

    Without a checkpoint the weights are random, which costs do not depend on.
    """
    from edgemem.export import export_model

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for context in contexts:
            settings = {CACHES[name]: context} if name in CACHES and context else {}
            path = Path(folder) / f"{name}{''.join(map(str, settings.values()))}.onnx"
            if not path.exists():
                export_model(name, path, settings, checkpoint=checkpoint, certified_steps=2)  # long ones take seconds
            command = [sys.executable, "-m", "bench.tasks.bytes.contexts", str(path), str(context or min(CONTEXTS))]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows.append({"context": context, **json.loads(out)})
            report(f"{name:20} {rows[-1]}")
    return rows


if __name__ == "__main__":
    print(json.dumps(cost(Path(sys.argv[1]), int(sys.argv[2]))))
