"""Small compiled programs for several tests, and the glue that runs one of them under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from edgemem.boards import board
from edgemem.contract import Contract

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
C_SOURCES = Path(__file__).parent / "aot_c"
C_TYPES = {"float32": "float", "int64": "int64_t", "int32": "int32_t"}


def model_file(name: str, folder: Path) -> Path:
    """A small model of the zoo, exported."""
    path = folder / f"{name}.onnx"
    path.write_bytes(exported(name))
    return path


@cache
def exported(name: str) -> bytes:
    """The file of a small model; the same bytes each time, so that one export serves all tests."""
    from edgemem.export import export_model
    from tests.zoo import SMALL

    with tempfile.TemporaryDirectory() as folder:
        export_model(name, Path(folder) / "m.onnx", SMALL[name], seed=1)
        return (Path(folder) / "m.onnx").read_bytes()


def needs(name: str) -> None:
    """Skip where the board's compiler or emulator is missing."""
    for tool in (board(name).compiler, *board(name).emulator[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed: make boards")
    include = subprocess.run(
        [board(name).compiler, "-E", "-x", "c", "-"], input=b"#include <stdio.h>\n", capture_output=True
    )
    if include.returncode:
        pytest.skip(f"the C library's headers for {name} are not installed: make boards")


def compiled(path: Path, folder: Path, board: str = "host") -> dict[str, Any]:
    """Compile a model file as `model`."""
    from edgemem.boards import board as described
    from edgemem.runtimes.aot.compiler import compile_model

    return compile_model(path, described(board), folder, name="model")


def glue(contract: Contract) -> str:
    """`guarded_model.h`: names of the model, and how its inputs are made, filled and spoiled."""
    names = ("STATE_BYTES", "ARENA_BYTES", "STATES", "OK")
    allocate, fill, spoil, code = [], [], [], "MODEL_OK"
    for port in contract.inputs:
        kind, count = C_TYPES[port.dtype], 1
        for extent in port.shape:
            count *= extent
        value = "(float)rand() / (float)RAND_MAX - 0.5f"
        if port.range is not None:
            low, high = port.range
            value = f"{low} + rand() % {high - low + 1}"
            spoil, code = [f"(({kind} *)(void *)(uintptr_t)i->{port.name})[0] = {high + 1};"], "MODEL_ERROR_RANGE"
        elif code == "MODEL_OK":
            spoil = [f"(({kind} *)(void *)(uintptr_t)i->{port.name})[{count - 1}] = 0.0f / zero;"]
            code = "MODEL_ERROR_NUMBER"
        allocate.append(f"i->{port.name} = (const {kind} *)(void *)room({count} * sizeof({kind}));")
        fill.append(
            f"for (k = 0; k < {count}; ++k) (({kind} *)(void *)(uintptr_t)i->{port.name})[k] = ({kind})({value});"
        )
    for port in contract.outputs:
        count = 1
        for extent in port.shape:
            count *= extent
        kind = C_TYPES[port.dtype]
        allocate.append(f"o->{port.name} = ({kind} *)(void *)room({count} * sizeof({kind}));")
    return f"""\
#include "model.h"
#define SPOILED {code}
{"".join(f"/* {name} */" for name in names)}
static volatile float zero = 0.0f;
static void make_ports(model_inputs *i, model_outputs *o, unsigned char *(*room)(size_t))
{{
    {" ".join(allocate)}
}}
static void fill_inputs(model_inputs *i)
{{
    int k;
    {" ".join(fill)}
}}
static void spoil_inputs(model_inputs *i)
{{
    (void)zero;
    {" ".join(spoil)}
}}
"""


def run_guarded(folder: Path, contract: Contract, steps: int) -> subprocess.CompletedProcess[str]:
    """Compile the driver and the harness with sanitizers, link the kernels, run."""
    (folder / "guarded_model.h").write_text(glue(contract))
    shutil.copy(C_SOURCES / "guarded.c", folder)
    subprocess.run(
        ["gcc", "-std=c99", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", "guarded",
         "guarded.c", "model.c", "model_kernels.o", "model_weights.S"],
        cwd=folder, check=True,
    )  # fmt: skip
    return subprocess.run(["./guarded", str(steps)], cwd=folder, capture_output=True, text=True)
