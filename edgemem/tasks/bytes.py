"""Byte-level language modelling: what a byte of Python source costs, streamed. Plain NumPy.

evaluate  bits per byte over the packaged excerpt: the first 8 KiB of source files that no training saw

Every file is streamed from the start state, after a byte 0 that is not scored: the model says every byte of the file
in advance, from those before it. The excerpt is of the Python standard library, under the PSF licence
(bytes_excerpt.md beside it).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.tasks import Score, Tick, quiet

if TYPE_CHECKING:
    from edgemem.contract import Contract
    from edgemem.program import Program
    from edgemem.stream import Stream

Array = np.ndarray[Any, np.dtype[Any]]

BYTES = 256
BEGIN = 0  # the byte before every file
BLOCK = 1024  # bytes that are pushed at once
EARLY = 1024  # bytes at the front of a file, whose cost is also told apart


def excerpt() -> tuple[Array, tuple[str, ...]]:
    """The packaged pieces [n, bytes] uint8, and the name of the file that each is from."""
    from edgemem.checkpoints import packaged

    with np.load(packaged("bytes_excerpt.npz"), allow_pickle=False) as file:
        return file["pieces"], tuple(str(name) for name in file["names"])


def refusal(contract: Contract) -> str | None:
    """What byte-level language modelling wants and the model of this contract has not."""
    source, output = contract.inputs[0], contract.outputs[0]
    wanted = f"bytes in and logits of the next byte [{BYTES}] out were wanted"
    if source.role != "tokens" or source.range is None or source.range[1] < BYTES - 1 or source.encoding != "bytes":
        kind = "tokens that are no bytes" if source.role == "tokens" else f"{source.dtype}{list(source.shape[2:])}"
        return f"{wanted}, it takes {source.name}: {kind}"
    if output.role != "logits" or tuple(output.shape[2:]) != (BYTES,):
        return f"{wanted}, it gives {output.name}: {output.role} {list(output.shape[2:])}"
    return None


def costs(logits: Array, following: Array) -> Array:
    """Bits that each token of `following` [time] cost under the logits [time, tokens] that came before it."""
    scores = np.asarray(logits, dtype=np.float64)
    top = scores.max(axis=1, keepdims=True)
    total = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0]
    bits: Array = (total - scores[np.arange(len(following)), following]) / math.log(2.0)
    return bits


def streamed(stream: Stream, text: Array) -> Array:
    """Bits [bytes] that every byte of a file, `text` [bytes] uint8, cost; the stream starts anew."""
    stream.reset()
    given = np.concatenate([[BEGIN], text[:-1]])  # the last byte is followed by nothing that is scored
    found, at = [], 0
    for begin in range(0, len(given) + BLOCK, BLOCK):
        rows = stream.push(given[begin : begin + BLOCK]) if begin < len(given) else stream.flush()
        found.append(costs(rows.values, text[at : at + len(rows)]))
        at += len(rows)
    return np.concatenate(found)


def evaluate(program: Program, limit: int | None = None, tick: Tick = quiet) -> Score:
    """Bits per byte over the excerpt; `limit` takes only that many of its pieces, the first ones."""
    pieces, names = excerpt()
    pieces, stream = pieces[:limit], program.stream()
    bits = []
    for index, piece in enumerate(pieces):
        bits.append(streamed(stream, piece))
        tick((index + 1) / len(pieces))
    table = np.stack(bits)
    return Score(
        "bits_per_byte",
        float(table.mean()),
        {
            "bytes": int(table.size),
            "pieces": len(pieces),
            "early": float(table[:, :EARLY].mean()),
            "later": float(table[:, EARLY:].mean()),
            "by_piece": {name: float(row.mean()) for name, row in zip(names, table, strict=False)},
        },
    )
