"""Whole test sets through one model file, streamed: every sequence from the start state.

bytes    the test split of the standard library, files packed into the rows of a batched program
kws      the 1,440 clean clips of the recipe, where `python -m bench.tasks.kws.data` has written them
words    the 690 strings of the recipe, clean, where `python -m bench.tasks.words.data` has written them

Where a set has not been written, the packaged excerpt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.tasks.bytes.data import files
from bench.tasks.kws import clip_sets
from bench.tasks.kws.data import FOLDER
from bench.tasks.words import data as strings_data
from bench.tasks.words import evaluate as recognised
from edgemem.audio import PCM16_FULL_SCALE
from edgemem.checkpoints import packaged
from edgemem.evaluation import evaluate
from edgemem.program import Program, load
from edgemem.runner import softmax
from edgemem.tasks import bytes as byte_task
from edgemem.tasks import kws

if TYPE_CHECKING:
    from edgemem.program import StateBlock

Array = np.ndarray[Any, np.dtype[Any]]


def judged(path: Path, task: str, whole: bool = True) -> dict[str, Any]:
    """The task's metric of a file, and of how much; with `whole` false, of the packaged excerpt."""
    if task == "bytes":
        return bits(load(path), texts(whole))
    if whole and task == "kws" and spoken() is not None:
        return spotted(load(path), spoken())
    if whole and task == "words" and strings():
        found = recognised.judged(load(path), strings())
        return {"metric": "token_error_rate", "quality": found["token_error_rate"], "of": f"{len(strings())} strings"}
    score = evaluate(path, task).score
    return {"metric": score.metric, "quality": score.value, "of": "excerpt"}


def digest(task: str, whole: bool) -> str:
    """SHA-256 of what `judged` judges by."""
    total = hashlib.sha256(task.encode())
    if task == "bytes":
        arrays = texts(whole)
    elif whole and task == "kws" and spoken() is not None:
        arrays = [spoken().clips, spoken().labels]
    elif whole and task == "words" and strings():
        arrays = [array for clip in strings() for array in (clip.sound, np.array(clip.words))]
    else:
        arrays = [np.frombuffer(packaged(f"{task}_excerpt.npz").read_bytes(), np.uint8)]
    for array in arrays:
        total.update(f"{array.dtype} {array.shape};".encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


@cache
def texts(whole: bool) -> list[Array]:
    """Files of the standard library's test split, or the packaged excerpt."""
    found = [np.frombuffer(file.read_bytes(), np.uint8) for _, file in files("test")] if whole else []
    return [text for text in found if len(text)] or list(byte_task.excerpt()[0])


@cache
def spoken() -> clip_sets.Clips | None:
    """The test clips of the spotters, if they have been written."""
    return clip_sets.load(FOLDER, "clean") if (FOLDER / "test_clean.npz").is_file() else None


@cache
def strings() -> list[recognised.Clip]:
    """The clean test strings of the recognisers; none where they have not been written."""
    if not (strings_data.FOLDER / "test.npz").is_file():
        return []
    return recognised.clips(strings_data.load("test"), None, recognised.TEST_SEED)


def spotted(program: Program, clips: clip_sets.Clips) -> dict[str, Any]:
    """Accuracy on clips, each from the start state."""
    stream, names = program.stream(), program.contract.outputs[0].labels or kws.LABELS
    right = 0
    for sound, label in zip(clips.clips, clips.labels, strict=True):
        stream.reset()
        samples = sound.astype(np.float32) / np.float32(PCM16_FULL_SCALE)
        rows = np.concatenate([stream.push_samples(samples).values, stream.flush().values])
        right += kws.clip_decision(softmax(rows), names)[0] == kws.LABELS[label]
    return {"metric": "accuracy", "quality": right / len(clips.labels), "of": f"{len(clips.labels)} clips"}


# --- bytes -------------------------------------------------------------------------------------------------------


def bits(program: Program, texts: Sequence[Array]) -> dict[str, Any]:
    """Bits per byte over all texts: each starts in a row of the batch as soon as the one before it has ended."""
    port, output = program.contract.inputs[0], program.contract.outputs[0].name
    batch, frames = program.contract.batch, program.contract.chunk.frames
    rows = [chunks(texts, mine, frames) for mine in packed([-(-len(text) // frames) for text in texts], batch)]
    state, start = program.new_state(), program.new_state().get()
    constant = {p.name: np.full(p.shape, frames, p.dtype) for p in program.contract.inputs if p.role == "valid"}
    total = count = 0.0
    idle = (False, np.zeros(frames, np.uint8), np.zeros(0, np.uint8))
    while any(now := [next(row, None) for row in rows]):
        parts = [idle if part is None else part for part in now]
        begin_anew(state, start, [row for row, (begins, _, _) in enumerate(parts) if begins])
        tokens = np.stack([given for _, given, _ in parts]).astype(port.dtype)
        logits = program.step({port.name: tokens.reshape(port.shape), **constant}, state)[output]
        for row, (_, _, wanted) in enumerate(parts):
            if len(wanted):
                total += float(byte_task.costs(logits[row, : len(wanted)], wanted).sum())
                count += len(wanted)
    return {"metric": "bits_per_byte", "quality": total / count, "of": f"{int(count):,} bytes"}


def packed(sizes: Sequence[int], rows: int) -> list[list[int]]:
    """Indices for each row, so that the rows are about equally long: the largest first, to the emptiest row."""
    found: list[list[int]] = [[] for _ in range(rows)]
    loads = [0] * rows
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = loads.index(min(loads))
        found[row].append(index)
        loads[row] += sizes[index]
    return found


def chunks(texts: Sequence[Array], chosen: Sequence[int], frames: int) -> Iterator[tuple[bool, Array, Array]]:
    """Of one text after another: whether it begins, the bytes that go in [frames], those that are to be said."""
    for index in chosen:
        text = texts[index]
        given = np.concatenate([[byte_task.BEGIN], text[:-1]]).astype(np.uint8)
        for at in range(0, len(text), frames):
            piece = given[at : at + frames]
            yield at == 0, np.pad(piece, (0, frames - len(piece))), text[at : at + frames]


def begin_anew(state: StateBlock, start: dict[str, Array], rows: list[int]) -> None:
    """Reset some rows of a batch."""
    if rows:
        values = state.get()
        for name, value in values.items():
            value[rows] = start[name][rows]
        state.set(values)
