"""Connected words: the labels, how rows of logits become a transcript, and how good a recogniser is. Plain NumPy.

Connectionist temporal classification (CTC): of every row the best label; a label that is repeated from row to row is
one word, and blanks, which stand between, are left out.

    rows   <blank> seven seven <blank> go left left <blank> left
    words          seven               go left              left

The token error rate is the number of words put in, left out or exchanged, for each word spoken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import InputError
from edgemem.tasks import Score, Tick, quiet, speech_refusal

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.program import Program

Array = np.ndarray[Any, np.dtype[Any]]

BLANK = "<blank>"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
LABELS = (BLANK, *DIGITS, *COMMANDS)
COMPANDING = 255.0


@dataclass(frozen=True)
class Heard:
    """A word, and the time at which it was first known: the end of the row that decided, in seconds."""

    label: str
    time: float


class Transcriber:
    """Turns rows of logits into words, whatever pieces they come in."""

    def __init__(self, labels: Sequence[str] = LABELS) -> None:
        self.labels = tuple(labels)
        self.reset()

    def reset(self) -> None:
        """Forget what came before."""
        self._last = BLANK

    def push(self, logits: Array, times: Array) -> list[Heard]:
        """The words that begin in further rows: logits [rows, labels] with the `times` [rows] of each, in seconds.

        Raises:
            InputError: another number of labels, or not one time per row.
        """
        values, ends = np.asarray(logits), np.asarray(times, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.labels) or ends.shape != values.shape[:1]:
            raise InputError(
                f"logits must be [rows, {len(self.labels)}] with one time per row, "
                f"got {list(values.shape)} and {list(ends.shape)}"
            )
        found = []
        for best, end in zip(values.argmax(axis=1), ends, strict=True):
            label = self.labels[int(best)]
            if label not in (BLANK, self._last):
                found.append(Heard(label, float(end)))
            self._last = label
        return found


def transcript(logits: Array, labels: Sequence[str] = LABELS) -> tuple[str, ...]:
    """The words in logits [rows, labels].

    Raises:
        InputError: another number of labels.
    """
    return tuple(word.label for word in Transcriber(labels).push(logits, np.arange(len(logits))))


def token_errors(spoken: Sequence[str], heard: Sequence[str]) -> int:
    """The fewest words to put in, leave out or exchange that make `heard` of `spoken` (Levenshtein)."""
    costs = list(range(len(heard) + 1))
    for row, word in enumerate(spoken, start=1):
        diagonal, costs[0] = costs[0], row
        for column, other in enumerate(heard, start=1):
            exchange = diagonal + (word != other)
            diagonal = costs[column]
            costs[column] = min(exchange, diagonal + 1, costs[column - 1] + 1)
    return costs[-1]


def companded(samples: Array) -> Array:
    """Samples in [-1, 1] as 8 bits each on a logarithmic scale (µ = 255), which hears as 13 bits do: uint8."""
    scaled = np.log1p(COMPANDING * np.abs(samples)) / math.log1p(COMPANDING)
    codes: Array = (np.round(127.0 * np.sign(samples) * scaled) + 128.0).astype(np.uint8)
    return codes


def expanded(codes: Array) -> Array:
    """The inverse of `companded`, to within 2 % of each sample: float32."""
    scaled = (codes.astype(np.float64) - 128.0) / 127.0
    samples = np.sign(scaled) * np.expm1(np.abs(scaled) * math.log1p(COMPANDING)) / COMPANDING
    return samples.astype(np.float32)


def excerpt() -> list[tuple[Array, tuple[str, ...]]]:
    """The packaged strings: sound [samples] float32 at 16 kHz, clean, and the words in it."""
    from edgemem.checkpoints import packaged

    with np.load(packaged("words_excerpt.npz"), allow_pickle=False) as file:
        sound, edges = expanded(file["codes"]), file["offsets"]
        spoken = [tuple(str(text).split()) for text in file["strings"]]
    return [(sound[a:b], words) for a, b, words in zip(edges[:-1], edges[1:], spoken, strict=True)]


def refusal(contract: Contract) -> str | None:
    """What word recognition wants and the model of this contract has not."""
    wanted = f"16 kHz audio in and logits of {BLANK} and the words {', '.join(LABELS[1:])} out were wanted"
    return speech_refusal(contract, LABELS, wanted)


def evaluate(program: Program, limit: int | None = None, tick: Tick = quiet) -> Score:
    """Token error rate on clean strings by held-out voices, each streamed from the start state.

    `limit` takes that many strings, spread evenly over the excerpt, which is in the order of its voices.
    """
    strings = excerpt()
    chosen = range(len(strings)) if limit is None else np.linspace(0, len(strings) - 1, limit).round().astype(int)
    labels = program.contract.outputs[0].labels or LABELS
    stream, wrong, right, count = program.stream(), 0, 0, 0
    for done, index in enumerate(chosen, 1):
        sound, words = strings[index]
        stream.reset()
        rows = np.concatenate([stream.push_samples(sound).values, stream.flush().values])
        errors = token_errors(words, transcript(rows, labels))
        wrong, right, count = wrong + errors, right + (errors == 0), count + len(words)
        tick(done / len(chosen))
    details = {"strings": len(chosen), "words": count, "errors": wrong, "strings_right": right / len(chosen)}
    return Score("token_error_rate", wrong / count, details)
