"""The README's examples, as they stand there."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch

from tests.readme import DOCS, examples


def test_the_python_examples_run_and_a_model_of_your_own_is_short(tmp_path: Path) -> None:
    streaming, own, many = examples("python")
    assert "nn.Module" in own and len([line for line in own.splitlines() if line.strip()]) < 25
    settled = "assert outputs[0].shape == (16,) and abs(outputs[-1] - outputs[-2]).max() < 1e-3"
    script = "\n".join((streaming, "assert len(saved) > 5000", own, settled, many))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.onnx").exists()


def test_the_shell_examples_run_in_order(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "speech.wav", np.random.default_rng(0).normal(size=16000) * 0.05, 16000)
    environment = with_commands(tmp_path)
    foreign = util.find_spec("silero_vad")
    if foreign is not None and foreign.origin is not None:
        shutil.copy(Path(foreign.origin).parent / "data" / "silero_vad.onnx", tmp_path)
    firmware = all(shutil.which(tool) for tool in ("arm-none-eabi-gcc", "qemu-system-arm", "make"))
    for example in examples("sh"):
        if "mps2_" in example and not firmware:
            continue  # make boards installs what it needs; test_firmware.py says so
        if "silero_vad" in example and foreign is None:
            continue  # the package of the file; test_adopt_silero.py says so
        shell(example, tmp_path, environment)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_worked_examples_go_the_whole_way(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("tvm", reason="pip install 'edgemem[tvm]'")
    script = "\n".join(examples("python", page))
    assert all(stage in page.read_text() for stage in ("to_onnx(", "verify(", "quantize", "compile"))
    with contextlib.chdir(tmp_path), torch.random.fork_rng(devices=[]):
        exec(compile(script, str(page), "exec"), {"__name__": page.stem})
    for example in examples("sh", page):
        shell(example, tmp_path, with_commands(tmp_path))


def shell(example: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a block of commands; all of them must succeed."""
    done = subprocess.run(["sh", "-e", "-c", example], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{example}\n{done.stderr}"


def with_commands(folder: Path) -> dict[str, str]:
    """The environment, with `edgemem` and `python` those of this process."""
    found = folder / "bin"
    found.mkdir(exist_ok=True)
    for name, arguments in (("edgemem", "-m edgemem"), ("python", "")):
        command = found / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        command.chmod(0o755)
    return {**os.environ, "PATH": f"{found}:{os.environ['PATH']}"}
