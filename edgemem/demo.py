"""The whole way on real audio: torch, ONNX + contract, int8, compiled C, detections, each stage checked and timed.

export      the shipped keyword spotter
verify      the file against torch
quantize    weights and activations to int8
compile     to a program for this machine, where TVM is installed
stream      a sentence in noise, spoken by a voice that the spotter was not trained on
snapshot    taken in the middle of the file and resumed in another stream: bit-identical outputs
picture     waveform and posteriors
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.checkpoints import packaged
from edgemem.errors import CheckFailed
from edgemem.files import atomic_path

if TYPE_CHECKING:
    from edgemem.program import Program
    from edgemem.tasks.kws import Detection

Array = np.ndarray[Any, np.dtype[Any]]
MODEL = "kws-lmuformer"
BLOCK_SAMPLES = 320  # 20 ms, as a sound card would deliver them
VERIFY_STEPS = 1000
SCHEME = "w8a8"
TIMED_FRAMES, WARM_FRAMES = 300, 20


@dataclass(frozen=True)
class Listening:
    """What one pass over a sound [samples] gave: probabilities [rows, labels] with their times, and detections."""

    sound: Array
    words: list[dict[str, Any]]  # spoken: word, start, end
    sample_rate: int
    probabilities: Array
    t_end: Array
    detections: list[Detection]
    wall_seconds: float
    state_bytes: int

    @property
    def real_time_factor(self) -> float:
        """Wall time over the duration of the sound."""
        return self.wall_seconds / (len(self.sound) / self.sample_rate)

    def to_json(self) -> dict[str, Any]:
        return {
            "spoken": self.words,
            "detections": [asdict(detection) for detection in self.detections],
            "real_time_factor": self.real_time_factor,
            "state_bytes": self.state_bytes,
        }


def sentence() -> tuple[Array, list[dict[str, Any]]]:
    """The shipped sentence [samples] at 16 kHz, and the words that were spoken with their times."""
    from edgemem.audio import read_audio

    words: list[dict[str, Any]] = json.loads(packaged("demo.json").read_text())["words"]
    return read_audio(packaged("demo.wav")), words


def frame_us(program: Program) -> float:
    """Microseconds that a step of one frame takes through `Stream`: the median of many, on random frames."""
    port, stream = program.contract.inputs[0], program.stream()
    frames = np.random.default_rng(0).standard_normal((TIMED_FRAMES, *port.shape)).astype(port.dtype)
    for frame in frames[:WARM_FRAMES]:
        stream.step(frame)
    times = []
    for frame in frames:
        begin = time.perf_counter()
        stream.step(frame)
        times.append(time.perf_counter() - begin)
    return float(np.median(times)) * 1e6 / program.contract.chunk.frames


def in_torch(file: Path) -> Program:
    """The module that a file was exported from, rebuilt with the file's weights, step by step in torch."""
    from edgemem.modelfile import open_model
    from edgemem.reference import rebuilt
    from edgemem.weights import stored_tensors

    model = open_model(file)
    return rebuilt(model, stored_tensors(model))


def listen(
    program: Program, sound: Array, words: list[dict[str, Any]], heard: Callable[[Detection], None]
) -> Listening:
    """Stream the sound block by block; `heard` is called for each detection as it happens."""
    from edgemem.runner import softmax
    from edgemem.tasks.kws import Detector

    stream = program.stream()
    detector = Detector(program.contract.outputs[0].labels or ())
    begin = time.perf_counter()
    probabilities, ends, detections = [], [], []
    for rows in stream_blocks(stream, sound):
        probabilities.append(softmax(rows.values))
        ends.append(rows.t_end)
        for detection in detector.push(probabilities[-1], rows.t_end):
            detections.append(detection)
            heard(detection)
    return Listening(
        sound=sound,
        words=words,
        sample_rate=stream.sample_rate,
        probabilities=np.concatenate(probabilities),
        t_end=np.concatenate(ends),
        detections=detections,
        wall_seconds=time.perf_counter() - begin,
        state_bytes=sum(array.nbytes for array in stream.state.values()),
    )


def stream_blocks(stream: Any, sound: Array) -> Iterator[Any]:
    """Push the sound in small blocks, then flush."""
    for at in range(0, len(sound), BLOCK_SAMPLES):
        yield stream.push_samples(sound[at : at + BLOCK_SAMPLES])
    yield stream.flush()


def check_snapshot(program: Program, sound: Array, path: Path) -> int:
    """Stop in the middle of the file, go on in another stream from the snapshot; returns the snapshot's bytes.

    Raises:
        CheckFailed: an output of the resumed stream differs in any bit.
    """
    half = len(sound) // 2
    whole, first, second = program.stream(), program.stream(), program.stream()
    whole.push_samples(sound[:half])
    wanted = whole.push_samples(sound[half:]).values
    first.push_samples(sound[:half])
    first.snapshot(path)
    second.restore(path)
    came = second.push_samples(sound[half:]).values
    if wanted.tobytes() != came.tobytes():
        raise CheckFailed(
            f"the stream resumed from {path} differs by {np.abs(wanted - came).max():.2e}; report this bug"
        )
    return path.stat().st_size


def picture(heard: Listening, labels: tuple[str, ...], path: Path) -> None:
    """Waveform with the spoken words, and the posterior of every keyword, as a PNG."""
    from matplotlib.figure import Figure

    from edgemem.tasks.kws import QUIET

    figure = Figure(figsize=(11, 5), layout="constrained")
    wave, curves = figure.subplots(2, 1, sharex=True)
    wave.plot(np.arange(len(heard.sound)) / heard.sample_rate, heard.sound, linewidth=0.4, color="0.4")
    for word in heard.words:
        wave.axvspan(word["start"], word["end"], color="tab:blue", alpha=0.12)
        wave.text(word["start"], 0.95, word["word"], transform=wave.get_xaxis_transform(), va="top", fontsize=8)
    wave.set_ylabel("waveform")
    for index, label in enumerate(labels):
        if label not in QUIET and heard.probabilities[:, index].max() > 0.3:
            curves.plot(heard.t_end, heard.probabilities[:, index], label=label)
    curves.set(xlabel="seconds", ylabel="posterior", ylim=(0, 1.02))
    if curves.lines:
        curves.legend(loc="upper right", ncols=5, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
