"""Products by a core's matrix unit: exact for any shape, the same bytes as without it, no step where it is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import relax
from tvm.s_tir import Schedule

import edgemem
from edgemem.boards import Board, board
from edgemem.errors import ModelFileError
from edgemem.runtimes.aot import tile_unit
from edgemem.runtimes.aot.load import TILES, refused
from edgemem.runtimes.aot.machine import machine
from edgemem.runtimes.aot.plan import HEADER_BYTES
from edgemem.runtimes.aot.quantized import products, reasons, tiles
from edgemem.runtimes.aot.schedules.tiles import panel_of, tiling_of
from edgemem.trial import random_inputs
from tests.aot_kernels import HOST, run_module
from tests.aot_programs import C_SOURCES, glue, run_guarded

Array = np.ndarray[Any, np.dtype[Any]]
needs_tiles = pytest.mark.skipif(not HOST.tiles, reason="no AMX that this system lets a process use")
ROWS, WIDTH = 20, 80  # two tiles of 10 rows, inputs that end behind 64
SHIM = """\
#include <stdarg.h>
long syscall(long number, ...);
long syscall(long number, ...) { (void)number; return -1; }
"""


def integer_product(folder: Path, x: Array, zero: Array | None, q: Array, fixed: bool) -> tuple[Array, str]:
    """x times q by a kernel of this machine, and its schedule; the zero point a constant, or an input of the kernel."""
    builder = relax.BlockBuilder()
    variables = [relax.Var("x", relax.TensorType(list(x.shape), str(x.dtype)))]
    arrays = [x]
    below: Any = None if zero is None else relax.const(zero, str(zero.dtype))
    if zero is not None and not fixed:
        below = relax.Var("zero", relax.TensorType([1], str(zero.dtype)))
        variables, arrays = [*variables, below], [*arrays, zero]
    with builder.function("main", variables):
        with builder.dataflow():
            made = products.integer_product(builder, variables[0], below, q, HOST)
            given = builder.emit_output(builder.normalize(made))
        builder.emit_func_output(given)
    return run_module(folder, builder.get(), arrays)


@needs_tiles
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("zero", [None, "fixed", "moving"])
def test_products_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, zero: str | None) -> None:
    """Rows that fill no tile, inputs that end inside one, few outputs; extreme values; every shape of a block."""
    monkeypatch.setattr(tiles, "LEAST_PRODUCTS", 0)
    rng = np.random.default_rng([len(dtype), len(zero or "")])
    shapes: list[tuple[Sequence[int], int, int]] = [
        ((64,), 256, 256), ((16,), 64, 16), ((32,), 64, 32), ((9, 2), 4, 17), ((2, 40), 65, 5),
        *(((int(m),), int(k), int(n)) for m, k, n in rng.integers((8, 1, 1), (101, 300, 150), (4, 3))),
    ]  # fmt: skip
    limits = np.iinfo(dtype)
    for lead, k, n in shapes:
        x = rng.integers(limits.min, limits.max + 1, (*lead, k)).astype(dtype)
        q = rng.integers(-128, 128, (k, n)).astype(np.int8)
        x[0], q[:, 0], q[:, -1] = limits.max, 127, -128
        offset = rng.integers(limits.min, limits.max + 1, 1).astype(dtype) if zero else None
        y, schedule = integer_product(tmp_path, x, offset, q, zero == "fixed")
        assert schedule == "tiles", (lead, k, n)
        wanted = (x.astype("i8") - (0 if offset is None else int(offset[0]))) @ q.astype("i8")
        np.testing.assert_array_equal(y, wanted, err_msg=str((lead, k, n)))


@needs_tiles
@pytest.mark.parametrize(("rows", "outputs"), [(7, 1024), (8, 256), (16, 512)])
def test_few_rows_and_small_products_stay_with_vectors(tmp_path: Path, rows: int, outputs: int) -> None:
    x, q = np.ones((rows, 64), np.uint8), np.ones((64, outputs), np.int8)
    y, schedule = integer_product(tmp_path, x, None, q, True)
    assert (schedule == "tiles") == (rows == 16) and (y == 64).all()


@needs_tiles
def test_a_schedule_that_does_not_fit_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any other does: the product is computed all the same, by plain loops."""

    def refuse(sch: Schedule, *_: object) -> None:
        sch.get_sblock("absent")

    monkeypatch.setattr("edgemem.runtimes.aot.schedules.tiles.side_by_side", refuse)
    x, q = np.arange(16 * 64).reshape(16, 64).astype(np.uint8), np.full((64, 512), -3, np.int8)
    y, schedule = integer_product(tmp_path, x, None, q, True)
    assert schedule == "loops"
    np.testing.assert_array_equal(y, x.astype("i4") @ q.astype("i4"))


def test_tiles_are_as_equal_as_can_be() -> None:
    assert [(t.rows, t.count) for t in (tiling_of([n], panel_of(64)) for n in (8, 16, 17, 33, 100))] == [
        (8, 1), (16, 1), (9, 2), (11, 3), (15, 7)
    ]  # fmt: skip
    assert [(p.columns, p.count) for p in map(panel_of, (1, 16, 40, 96, 112, 256))] == [
        (16, 1), (16, 1), (48, 1), (48, 2), (64, 2), (64, 4)
    ]  # fmt: skip
    assert [tiling_of([rows], panel_of(32)).tall for rows in (16, 32, 48, 64)] == [1, 2, 1, 2]
    assert tiling_of([2, 30, 1], panel_of(64)).axis == 1


def without(board_: Board, folder: Path) -> Board:
    """A board of this machine whose programs do without AMX, as a file of a user's has it."""
    (folder / "plain.toml").write_text(
        f'name = "plain"\ntitle = "no tiles"\nkind = "linux"\ncore = "native"\ncompiler = "{board_.compiler}"\n'
        f'runtime = "aot"\nfeatures = ["-{tile_unit.FEATURE}"]\n'
    )
    return board(str(folder / "plain.toml"))


class Segment(nn.Module):
    """Two products of a matrix of rows, which is mixed with what is remembered of the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.narrow = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)
        self.state = (edgemem.StateTensor("mean", (ROWS, WIDTH)),)

    def step(self, x, state):  # type: ignore[no-untyped-def]
        y = self.narrow(torch.relu(self.wide(x + state["mean"])))
        return y, {"mean": torch.tanh(y)}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, dict[str, Any], dict[str, Any]]]:
    """A model in both int8 schemes: its folders with tiles and without, and their manifests."""
    from edgemem.export import to_onnx
    from edgemem.quant import quantize
    from edgemem.runtimes.aot.compiler import compile_model
    from tests.quantizing import random_data

    folder = tmp_path_factory.mktemp("tiles")
    plain = without(board("host"), folder)
    to_onnx(Segment(), torch.zeros(1, 1, ROWS, WIDTH), folder / "m.onnx")
    data = random_data(folder / "m.onnx", folder / "data.npz", 64)
    made = {}
    for scheme in ("w8a8", "w8a8-dynamic"):
        path = folder / f"{scheme}.onnx"
        quantize(folder / "m.onnx", path, scheme, calibrate=data if scheme == "w8a8" else None, steps=2)
        with_tiles = compile_model(path, board("host"), folder / f"{scheme}-tiles", name="model")
        with_none = compile_model(path, plain, folder / f"{scheme}-plain", name="model")
        made[scheme] = (folder / f"{scheme}-tiles", folder / f"{scheme}-plain", with_tiles, with_none)
    return made


@needs_tiles
@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-dynamic"])
def test_models_give_the_same_bytes_with_tiles_and_without(programs: Any, scheme: str) -> None:
    first, second, manifest, plain = programs[scheme]
    tiled = [kernel["primfunc"] for kernel in manifest["kernels"] if kernel["schedule"] == "tiles"]
    assert manifest["matrix_unit"] == tile_unit.FEATURE and plain["matrix_unit"] is None
    assert len(tiled) == 2 and all("product_w8a8" in name for name in tiled)
    assert not any(kernel["schedule"] == "tiles" for kernel in plain["kernels"])
    assert any("in tiles of AMX" in row["reason"] for row in manifest["products"])
    assert any("quantized_rows" in kernel["primfunc"] for kernel in manifest["kernels"]) == (scheme != "w8a8")
    loaded = [edgemem.load(first), edgemem.load(first, threads=2), edgemem.load(second)]
    states = [program.new_state() for program in loaded]
    rng = np.random.default_rng(0)
    for _ in range(12):
        inputs = random_inputs(loaded[0].contract, rng)
        results = [
            {name: value.copy() for name, value in program.step(inputs, state).items()}
            for program, state in zip(loaded, states, strict=True)
        ]
        held = [state.get() for state in states]
        for others in (results, held):
            assert all(np.isfinite(value).all() for value in others[0].values())
            assert all(
                value.tobytes() == other[name].tobytes() for other in others for name, value in others[0].items()
            )


@needs_tiles
def test_a_program_asks_once_and_gives_the_unit_back(programs: Any, tmp_path: Path) -> None:
    """Refused, no step runs, a block of another process included; granted, no state of the unit outlives a step."""
    folder = programs["w8a8"][0]
    contract = edgemem.load(folder).contract
    shutil.copytree(folder, tmp_path / "p")
    (tmp_path / "p" / "guarded_model.h").write_text(glue(contract))
    subprocess.run(
        ["gcc", "-std=c99", "-Wall", "-O1", "-Wno-unused-function", f"-DMARK={HEADER_BYTES}", "-I.", "-o", "tiles",
         C_SOURCES / "tiles.c", "model.c", "model_kernels.o", "model_weights.S"],
        cwd=tmp_path / "p", check=True,
    )  # fmt: skip
    assert subprocess.run(["./tiles"], cwd=tmp_path / "p").returncode == 0


@needs_tiles
def test_a_system_that_refuses(programs: Any, tmp_path: Path) -> None:
    """Python says what to do, and asking finds out."""
    (tmp_path / "no.c").write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "no.so", "no.c"], cwd=tmp_path, check=True)
    text = (
        "import sys, edgemem, edgemem.errors\nfrom edgemem.runtimes.aot.tile_unit import granted\n"
        "print(granted())\n"
        "try: edgemem.load(sys.argv[1]).stream()\nexcept edgemem.errors.ModelFileError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", text, programs["w8a8"][0]], env=os.environ | {"LD_PRELOAD": str(tmp_path / "no.so")},
        capture_output=True, text=True,
    )  # fmt: skip
    said = result.stdout.splitlines()
    assert said[0] == "False" and "compile the model again on this machine" in said[1], (said, result.stderr)


@needs_tiles
def test_tiles_under_sanitizers(programs: Any, tmp_path: Path) -> None:
    folder = programs["w8a8-dynamic"][0]
    shutil.copytree(folder, tmp_path / "p")
    result = run_guarded(tmp_path / "p", edgemem.load(folder).contract, 20)
    assert result.returncode == 0, result.stderr


def test_the_error_names_the_remedy() -> None:
    assert isinstance(refused(TILES), ModelFileError) and "compile the model again" in str(refused(TILES))


def test_who_may_use_the_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine if its system grants it, another if its board file names the feature; the report says why not."""
    fields = {"name": "x", "title": "x", "kind": "linux", "triple": "x86_64-linux-gnu", "vector_bits": 512,
              "vector_registers": 32, "compiler": "gcc", "runtime": "aot"}  # fmt: skip
    named = Board.model_validate({**fields, "core": "sapphirerapids", "features": ["+amx-int8"]})
    silent = Board.model_validate({**fields, "core": "sapphirerapids"})
    other = Board.model_validate({**fields, "core": "znver4"})
    machines = [machine(each) for each in (named, silent, other)]
    assert [each.tiles for each in machines] == [True, False, False]
    lines = [reasons.of_integers((64,), (256, 256), each) for each in machines]
    assert lines[0].startswith("64 rows in tiles of AMX")
    assert lines[1].endswith("the core has AMX, but nothing says that the system lets a program use it")
    assert lines[2] == "vpdpbusd"
    assert reasons.of_integers((1, 1), (2048, 2048), machines[0]).endswith("AMX is for 8 rows and more")
    assert reasons.of_integers((64,), (8, 8), machines[0]).endswith("longer than it saves of 64 x 8 x 8")
    monkeypatch.setattr(tile_unit, "granted", lambda: False)
    assert not machine(board("host")).tiles
    monkeypatch.setattr(tile_unit, "granted", lambda: True)
    assert machine(board("host")).tiles == tile_unit.has_unit(HOST.target)
    assert not replace(HOST, tiles=False).tiles


@pytest.mark.parametrize("reply", [OSError("no such library"), AttributeError("syscall")])
def test_no_one_to_ask(monkeypatch: pytest.MonkeyPatch, reply: Exception) -> None:
    def library(name: object) -> None:
        raise reply

    monkeypatch.setattr(tile_unit.ctypes, "CDLL", library)
    assert tile_unit.granted() is False
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tile_unit.granted() is False


@needs_tiles
def test_a_virtual_machine_with_less_than_its_core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the system says of the core counts, whatever LLVM thinks of its name."""
    assert tile_unit.granted()
    (tmp_path / "cpuinfo").write_text(tile_unit.CPUINFO.read_text().replace(tile_unit.FLAG, ""))
    monkeypatch.setattr(tile_unit, "CPUINFO", tmp_path / "cpuinfo")
    assert not tile_unit.granted()
