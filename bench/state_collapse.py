"""A slow accumulator with its state in fewer bits: where int8 stands still, and what holds.

    python -m bench.state_collapse

    m = 0.999 m + 0.001 x       x a constant in noise; the largest update is far below half a step of int8

    policy         bytes   error after 5000 steps
    i8                 8                  60.7 %
    i8+dither         12                   2.0 %

writes bench/results/state_collapse.json and .png: each policy's memory against the exact one, as quantized files do it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import edgemem
from bench.timing import RESULTS, write
from edgemem.export import to_onnx
from edgemem.modelfile import open_model
from edgemem.narrow import as_parent
from edgemem.quant import quantize
from edgemem.quant.state import POLICIES

DECAY, WIDTH, STEPS = 0.999, 8, 5000
SHOWN = 6  # the channel of the picture
EVERY = 10  # steps between points of the picture


class SlowAverage(nn.Module):
    """m = decay m + (1 - decay) x"""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.state = (edgemem.StateTensor("mean", (WIDTH,)),)

    def step(self, x: Any, state: Any) -> Any:
        mean = DECAY * state["mean"] + (1 - DECAY) * x
        return self.mix(mean), {"mean": mean}


def sequence(count: int, seed: int) -> np.ndarray[Any, Any]:
    """[count, width]: every feature has a mean of its own."""
    noise = np.random.default_rng(seed).standard_normal((count, WIDTH))
    return (np.linspace(-1, 1, WIDTH) + 0.3 * noise).astype(np.float32)


def memories(folder: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, int]]:
    """The memory of every policy after every step [steps, width], and the bytes of its state."""
    parent = folder / "m.onnx"
    to_onnx(SlowAverage(), torch.zeros(1, 1, WIDTH), parent)
    np.save(folder / "x.npy", sequence(4096, 1))
    found, sizes = {}, {}
    for policy in POLICIES:
        path = folder / f"{policy}.onnx"
        report = quantize(parent, path, "w8", state=policy, calibrate=folder / "x.npy", smallest=8, steps=64)
        program = as_parent(open_model(path), edgemem.load(path), edgemem.load(parent))
        state, rows = program.new_state(), []
        for x in sequence(STEPS, 0):
            program.step({"x": x[None, None]}, state)
            rows.append(state.get()["mean"][0])
        found[policy], sizes[policy] = np.stack(rows), report.state_bytes_after
    return found, sizes


def drawn(found: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    """One channel of every memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.2), layout="constrained")
    for policy, rows in found.items():
        plain = policy in ("f32", "i8")
        axes.plot(range(0, STEPS, EVERY), rows[::EVERY, SHOWN], label=policy, lw=2.0 if plain else 0.9)
    axes.set(xlabel="step", ylabel="memory", title="m = 0.999 m + 0.001 x, its state stored in fewer bits")
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    """Measure, print, draw."""
    with tempfile.TemporaryDirectory() as folder:
        found, sizes = memories(Path(folder))
    exact, rows = found["f32"], {}
    print("policy         bytes   error after 5000 steps")
    for policy, memory in found.items():
        last = slice(STEPS - 500, None)
        error = float(np.sqrt(np.mean((memory[last] - exact[last]) ** 2) / np.mean(exact[last] ** 2)))
        rows[policy] = {"state_bytes": sizes[policy], "relative_error": error}
        print(f"{policy:14}{sizes[policy]:6}{error:23.1%}")
    drawn(found, RESULTS / "state_collapse.png")
    print(write("state_collapse", {"decay": DECAY, "steps": STEPS, "policies": rows}))


if __name__ == "__main__":
    main()
