"""Numbers too small to be normal: zero inside a compiled step, and nothing that the caller would notice."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

import edgemem
from edgemem.boards import board
from edgemem.export import to_onnx
from edgemem.quant import quantize
from edgemem.runtimes.aot import emit_flush
from edgemem.runtimes.aot.machine import machine
from tests.aot_programs import C_SOURCES, compiled, needs

WIDTH = 160  # panels enough for two threads
LEAST = np.finfo(np.float32).tiny
BOARDS = ("host", "rpi4", "stm32mp157d_dk1")


class Fading(nn.Module):
    """memory = memory / 2 + x; y = W memory, with weights that float16 holds, some of them as subnormal ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.mix.weight[::3] *= 2.0**-12
        self.state = (edgemem.StateTensor("memory", (WIDTH,)),)

    def step(self, x, state):  # type: ignore[no-untyped-def]
        memory = state["memory"] * 0.5 + x
        return self.mix(memory), {"memory": memory}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`fading.onnx`, and `host`: compiled for this machine."""
    path = tmp_path_factory.mktemp("subnormal")
    to_onnx(Fading(), torch.zeros(1, 1, WIDTH), path / "fading.onnx", certified_steps=4)
    compiled(path / "fading.onnx", path / "host")
    return path


def flushes() -> bool:
    return emit_flush.core_of(machine(board("host")).target) is not None


def test_a_state_that_fades_becomes_zero(folder: Path) -> None:
    """onnxruntime, beside it, holds subnormal numbers for some steps more, and so would the kernels by themselves."""
    manifest = json.loads((folder / "host" / "manifest.json").read_text())
    assert manifest["subnormal"] == ("zero" if flushes() else "kept")
    assert max(kernel["shares"] or 0 for kernel in manifest["kernels"]) > 1
    if not flushes():
        pytest.skip("this machine's core has no mode for it")
    x = np.full((1, 1, WIDTH), 64 * LEAST, np.float32)
    ort, aot, two = (
        edgemem.load(path, **options).stream()
        for path, options in ((folder / "fading.onnx", {}), (folder / "host", {}), (folder / "host", {"threads": 2}))
    )
    smallest = []
    for turn in range(12):
        wanted, came, shared = (stream.step(x * (turn == 0)) for stream in (ort, aot, two))
        memories = [stream.state["memory"] for stream in (ort, aot, two)]
        smallest.append(np.abs(memories[0]).min())
        for y, memory in ((came, memories[1]), (shared, memories[2])):  # of two threads each computes half of y
            assert all(((np.abs(v) >= LEAST) | (v == 0)).all() for v in (y, memory)), turn
            assert np.abs(y - wanted).max() < LEAST * WIDTH and np.abs(memory - memories[0]).max() < LEAST
    assert 0 < min(smallest) < LEAST and np.any((np.abs(wanted) < LEAST) & (wanted != 0))


@pytest.mark.parametrize("instruction", [True, False])
def test_half_precision_keeps_its_own_subnormal_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instruction: bool
) -> None:
    """They are normal as float32, and no way to widen them may lead past smaller numbers."""
    if not instruction:
        monkeypatch.setattr("edgemem.runtimes.aot.machine.has_half", lambda target: False)
    path = tmp_path / "half.onnx"
    quantize(folder / "fading.onnx", path, "f16", smallest=8, steps=4)
    compiled(path, tmp_path / "half")
    weight = Fading().mix.weight.detach().numpy().astype(np.float16)
    tiny = (weight != 0) & (np.abs(weight) < np.finfo(np.float16).tiny)
    assert tiny.sum() > WIDTH
    stream = edgemem.load(tmp_path / "half").stream()
    for column in range(0, WIDTH, 7):
        stream.reset()
        y = stream.step(np.eye(WIDTH, dtype=np.float32)[column][None, None])
        np.testing.assert_array_equal(np.ravel(y), weight[:, column].astype(np.float32))


@pytest.mark.parametrize("name", BOARDS)
def test_the_caller_s_mode_is_as_before(folder: Path, tmp_path: Path, name: str) -> None:
    """Rounding, marks of exceptions and subnormal numbers, behind a step and behind every refusal of one."""
    needs(name)
    target = board(name)
    if name == "host" and not flushes():
        pytest.skip("this machine's core has no mode for it")
    compiled(folder / "fading.onnx", tmp_path / "p", name)
    shutil.copy(C_SOURCES / "control.c", tmp_path / "p")
    sanitized = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if name == "host" else ["-static"]
    subprocess.run(
        [target.compiler, *target.compiler_flags, "-std=c11", "-O1", "-Wall", "-Werror", f"-DWIDTH={WIDTH}", *sanitized,
         "-o", "control", "control.c", "model.c", "model_kernels.o", "model_weights.S", "-lm"],
        cwd=tmp_path / "p", check=True,
    )  # fmt: skip
    done = subprocess.run([*target.emulator, "./control"], cwd=tmp_path / "p", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cores_without_such_a_mode_are_left_alone() -> None:
    cores = {name: emit_flush.core_of(machine(board(name)).target) for name in (*BOARDS[1:], "visionfive2", "bpi_f3")}
    assert cores == {"rpi4": "aarch64", "stm32mp157d_dk1": "arm", "visionfive2": None, "bpi_f3": None}
    assert emit_flush.functions(None) == "" and emit_flush.guarded(None, "run();") == "    run();"
