"""Small `w8a8` models of every family, and the C of an integer step built for this machine, sanitizer included."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

import edgemem
from edgemem.program import Program
from edgemem.runtimes.aot import emit, emit_header
from edgemem.runtimes.aot.load import AotProgram, Library
from edgemem.runtimes.integer.generate import generated
from tests.firmware import SPOTTER

FAMILIES = {
    "kws-lmuformer": SPOTTER,
    "rwkv4": {"layers": 2, "width": 24, "vocab": 19},
    "memformer": {"layers": 1, "width": 24, "heads": 2, "vocab": 19, "segment": 6, "slots": 5},
    "folding": {"layers": 2, "width": 24, "heads": 2, "features": 10, "segment": 4, "left": 6, "look_ahead": 2},
}
MORE = {
    "kws-gru": {"layers": 2, "width": 20, "features": 18},
    "lmu": {"layers": 1, "width": 24, "order": 6, "features": 10},
    "kws-spiking-lmuformer": SPOTTER,
    "kws-transformer": {"layers": 1, "width": 24, "heads": 2, "ffn": 48, "features": 12, "segment": 4, "left": 8},
}
SANITIZED = ("-O0", "-std=gnu99", "-fPIC", "-shared", "-ffp-contract=off", "-fsanitize=undefined",
             "-fno-sanitize=alignment")  # fmt: skip


def quantized(name: str, config: dict[str, int], folder: Path) -> Path:
    """A small model with seeded weights, quantized by `w8a8`."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    path, into, examples = (folder / f"{name}{end}" for end in (".onnx", "8.onnx", ".npy"))
    if into.exists():
        return into
    export_model(name, path, config, seed=1)
    port, rng = edgemem.load(path).contract.inputs[0], np.random.default_rng(4)
    if port.range is None:
        np.save(examples, rng.standard_normal((96, port.shape[-1])).astype(np.float32))
    else:
        np.save(examples, rng.integers(0, port.range[1] + 1, 160))
    quantize(path, into, "w8a8", calibrate=examples, smallest=64, steps=16)
    return into


def on_host(path: Path, folder: Path) -> Program:
    """The C of an integer step as a library of this machine; its states are the integers that the step keeps."""
    made = generated(path, "model")
    folder.mkdir()
    sources = [*made.kernels.sources(folder), "model.c", "model_weights.S"]
    (folder / "model.h").write_text(emit_header.header(made.source))
    (folder / "model.c").write_text(emit.driver(made.source))
    (folder / "model_weights.bin").write_bytes(made.blob)
    (folder / "model_weights.S").write_text(emit.weights_text("model", made.source.plan.alignment))
    subprocess.run(["gcc", *SANITIZED, *sources, "-o", "model.so"], cwd=folder, check=True)
    plan = made.source.plan
    sizes = {"weights": len(made.blob), "state": plan.state_bytes, "arena": plan.arena_bytes}
    return AotProgram(Library(folder / "model.so", "model"), made.source.contract, sizes)
