"""What tests of firmware share: whether its tools are there, what a folder says of itself, a small integer model."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemem.boards import board

# Widths that no block of a kernel divides among them.
SPOTTER = {"layers": 1, "width": 24, "order": 6, "channels": 3, "convolutions": 2, "features": 22}


def needs(name: str) -> None:
    """Skip where the board's compiler, its C library, Make or its emulator is missing."""
    for tool in ("make", board(name).compiler, *board(name).emulator[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: make boards")
    command = [board(name).compiler, *board(name).compiler_flags, "-E", "-x", "c", "-"]
    if subprocess.run(command, input=b"#include <string.h>\n", capture_output=True).returncode:
        pytest.skip(f"the C library for {name} is not installed: make boards")


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def integer_spotter(folder: Path) -> Path:
    """A small keyword spotter in `w8a8`."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    export_model("kws-lmuformer", folder / "k.onnx", SPOTTER, seed=1)
    rows = np.random.default_rng(4).standard_normal((96, SPOTTER["features"])).astype(np.float32)
    np.save(folder / "k.npy", rows)
    quantize(folder / "k.onnx", folder / "k8.onnx", "w8a8", calibrate=folder / "k.npy", smallest=64, steps=16)
    return folder / "k8.onnx"
