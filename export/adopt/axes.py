"""Which axis of a foreign tensor is the batch, and which is time: a letter for each, B, T or F (anything else).

said        --layout x=TBF
by name     a symbolic axis called batch, N, ... or time, seq, frames, ...
by reader   the first LSTM, GRU or RNN takes [time, batch, f] (layout 1: [batch, time, f]), a Conv [batch, f, time]
by rank     [batch, f]; integers [batch, time]; [batch, time, f]; more axes: [batch, f, ...], one frame a step
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.export.adopt.build import sizes
from edgemem.export.adopt.flow import attribute_ints
from edgemem.text import nearest

BATCH = r"(^|_)(batch|batch_size|batchsize|bs|n|b)($|_)|batch"
# Rows that were, or that there may be at most, are no steps of a stream, whatever else the name says.
STORED = r"past|cache|kv|total|max|mem|context|encoder|source|src"
TIME = r"(^|_)(time|seq|sequence|frames?|steps?|len|length|t|l|samples?)($|_)|time|seq|frame"


@dataclass(frozen=True)
class Axes:
    """The letters, and why."""

    letters: str
    certainty: str
    reason: str


def symbols(value: ir.Value) -> tuple[str, ...]:
    """The name of every axis; '' for a number or nothing."""
    return tuple(str(size.value or "") if isinstance(size, ir.SymbolicDim) else "" for size in (value.shape or ()))


def is_batch(symbol: str) -> bool:
    return bool(symbol) and re.search(BATCH, symbol.lower()) is not None


def is_time(symbol: str) -> bool:
    plain = symbol.lower()
    return bool(symbol) and not is_batch(symbol) and not re.search(STORED, plain) and bool(re.search(TIME, plain))


def check_said(said: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse `--layout` with unknown names or letters."""
    for name, letters in said.items():
        if name not in known:
            raise UsageError(f"--layout {name}={letters}: no input or output {name}{nearest(name, known)}")
        if not re.fullmatch(r"[BTF]*", letters) or letters.count("B") > 1 or letters.count("T") > 1:
            raise UsageError(
                f"--layout {name}={letters}: a letter for each axis was wanted: B batch and T time, once at most, and F"
            )


def port_axes(value: ir.Value, names: Sequence[str], said: str | None, streaming: bool = False) -> Axes:
    """The axes of an input or output; `names` are what they were called before their sizes were fixed.

    Where a file takes whole sequences (`streaming`), even two axes are time and something.
    """
    rank = len(sizes(value))
    if said is not None:
        if len(said) != rank:
            raise UsageError(f"--layout {value.name}={said}: {rank} letters were wanted, for {list(sizes(value))}")
        return Axes(said, "sure", "--layout")
    batch = [i for i, name in enumerate(names) if is_batch(name)]
    time = [i for i, name in enumerate(names) if is_time(name)]
    floating = value.dtype is not None and value.dtype.is_floating_point()
    if len(time) == 1 and (rank > 2 or streaming or not floating) and len(batch) <= 1:
        at = batch[0] if batch else (0 if time[0] != 0 or rank == 1 else 1)
        if at != time[0]:
            return Axes(letters_for(rank, at, time[0]), "sure", "names of its axes")
    reader = read_by(value)
    if reader is not None:
        return reader
    if rank == 0:
        return Axes("", "likely", "one number")
    if rank == 1:
        return Axes("B" if sizes(value)[0] == 1 else "F", "likely", "its rank")
    if rank == 2:
        return Axes("BF" if floating else "BT", "likely", "its rank")
    return Axes("BTF" if rank == 3 else "B" + "F" * (rank - 1), "likely", "its rank")


def letters_for(rank: int, batch: int, time: int) -> str:
    return "".join("B" if i == batch else "T" if i == time else "F" for i in range(rank))


def read_by(value: ir.Value) -> Axes | None:
    """What the first operator that cares about axes takes, through transposes."""
    rank = len(sizes(value))
    order = list(range(rank))
    while rank == 3:
        readers = [node for node, index in value.uses() if index == 0]
        if len(readers) != 1:
            return None
        node = readers[0]
        if node.op_type == "Transpose":
            perm = attribute_ints(node, "perm", range(rank)[::-1])
            order = [order[i] for i in perm]
            value = node.outputs[0]
            continue
        letters = {"Conv": "BFT", "LSTM": "TBF", "GRU": "TBF", "RNN": "TBF"}.get(node.op_type)
        if letters is None:
            return None
        layout = node.attributes.get("layout")
        letters = "BTF" if layout is not None and layout.as_int() == 1 else letters
        found = [""] * 3
        for place, axis in enumerate(order):
            found[axis] = letters[place]
        return Axes("".join(found), "sure", f"its {node.op_type}")
    return None


def output_axes(value: ir.Value, names: Sequence[str], said: str | None, frames: int, batch: int) -> Axes:
    """As `port_axes`, of an output: one without `frames` along its time axis has none."""
    found = port_axes(value, names, said)
    if said is not None or found.certainty == "sure":
        return found
    shape = sizes(value)
    places = [i for i, size in enumerate(shape) if size == frames]
    if found.letters.startswith("BT") and shape[:2] != (batch, frames):
        if len(shape) == 3 and (shape[1], shape[0]) == (batch, frames):
            return Axes("TBF", "likely", "its sizes")
        if len(shape) == 3 and shape[0] == batch and shape[2] == frames and frames > 1:
            return Axes("BFT", "likely", "its sizes")
        return Axes("B" + "F" * (len(shape) - 1), "likely", "its sizes")
    if found.letters == "BF" and frames > 1 and 1 in places:
        return Axes("BT", "likely", "its sizes")
    return found


def state_axes(value: ir.Value, names: Sequence[str], said: str | None, batch: int) -> Axes:
    """The batch axis of a state, the others F; without one where the batch is 1 and no axis is.

    Raises:
        UsageError: a batch of several streams, and no axis or more than one of its size.
    """
    rank = len(sizes(value))
    if said is not None:
        if len(said) != rank or "T" in said:
            raise UsageError(f"--layout {value.name}={said}: {rank} letters B or F were wanted, for a state")
        return Axes(said, "sure", "--layout")
    named = [i for i, name in enumerate(names) if is_batch(name)]
    if len(named) == 1:
        return Axes(letters_for(rank, named[0], -1), "sure", "names of its axes")
    places = [i for i, size in enumerate(sizes(value)) if size == batch]
    if not places and batch == 1:
        return Axes("F" * rank, "likely", "no axis of one stream")
    if batch > 1 and len(places) != 1:
        raise UsageError(
            f"state {value.name} {list(sizes(value))}: which axis is the batch of {batch}? say --layout "
            f"{value.name}=AXES, B for it and F for the others"
        )
    return Axes(letters_for(rank, places[0], -1), "likely", "its sizes")
