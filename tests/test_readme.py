"""The README's examples, as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.readme import python_examples, shell_examples


def test_the_python_example_runs_and_is_short(tmp_path: Path) -> None:
    example = python_examples()[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 25
    script = example + "\nassert len(outputs) == 100 and outputs[0].shape == (16,), outputs[0].shape\n"
    script += "assert abs(outputs[-1] - outputs[-2]).max() < 1e-3  # the recurrence has settled\n"
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
    for example in shell_examples():
        done = subprocess.run(
            ["sh", "-e", "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{example}\n{done.stderr}"
