"""The README's examples, as they stand there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import pytest
import torch

from edgemem.audio import PCM16_FULL_SCALE
from edgemem.tasks.kws import Detection, Detector
from tests.readme import DOCS, README, examples


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
    if firmware:
        assert any(near(hearing(tmp_path / "spotter8.onnx"), line) for line in HEARD.findall(README.read_text()))


HEARD = re.compile(r"`(\d+\.\d\d) s (\w+) ([01]\.\d\d)`")  # a line of the firmware's example, as the README shows it


def near(detections: Sequence[Detection], line: tuple[str, str, str]) -> bool:
    """Whether one of them is what a line says, as near as calibration on another processor leaves it."""
    time, label, score = float(line[0]), line[1], float(line[2])
    return any(d.label == label and abs(d.time - time) < 0.05 and abs(d.score - score) < 0.05 for d in detections)


def hearing(model: Path) -> Sequence[Detection]:
    """What an integer spotter hears in the words that its firmware brings."""
    import numpy as np

    from edgemem.runner import softmax
    from edgemem.runtimes.firmware.sound import clip
    from edgemem.runtimes.integer.reference import IntegerProgram

    stream = IntegerProgram(model).stream()
    pieces = [stream.push_samples(clip(stream.sample_rate) / np.float32(PCM16_FULL_SCALE)), stream.flush()]
    logits, times = (np.concatenate([getattr(rows, name) for rows in pieces]) for name in ("values", "t_end"))
    return Detector(stream.contract.outputs[0].labels or ()).push(softmax(logits), times)


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
