"""The README's examples, as they stand there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.readme import examples


def test_the_python_examples_run_and_a_model_of_your_own_is_short(tmp_path: Path) -> None:
    streaming, own = examples("python")
    assert "nn.Module" in own and len([line for line in own.splitlines() if line.strip()]) < 25
    settled = "assert outputs[0].shape == (16,) and abs(outputs[-1] - outputs[-2]).max() < 1e-3"
    script = "\n".join((streaming, "assert len(saved) > 5000", own, settled))
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.onnx").exists()


def test_the_shell_examples_run_in_order(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "speech.wav", np.random.default_rng(0).normal(size=16000) * 0.05, 16000)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    command = bin_folder / "edgemem"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgemem "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    firmware = all(shutil.which(tool) for tool in ("arm-none-eabi-gcc", "qemu-system-arm", "make"))
    for example in examples("sh"):
        if "mps2_" in example and not firmware:
            continue  # make boards installs what it needs; test_firmware.py says so
        done = subprocess.run(
            ["sh", "-e", "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{example}\n{done.stderr}"
