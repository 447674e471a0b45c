"""Sizes for every axis of every input, and constants for the inputs that never change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.export.adopt.axes import is_batch, is_time, symbols
from edgemem.export.adopt.build import Array, constant
from edgemem.export.adopt.request import Request
from edgemem.text import nearest

LARGEST = 1 << 24  # that an axis may be long, and elements that a constant may have
DIGITS = len(str(LARGEST))


def constants(graph: ir.Graph, sets: Mapping[str, str]) -> dict[str, Any]:
    """Take the inputs that `sets` names out of a graph, each with its value in its place; the values as JSON.

    Raises:
        UsageError: a value that does not fit the input.
    """
    found = {}
    for value in [value for value in graph.inputs if value.name in sets]:
        assert value.name is not None
        array = constant_of(value, sets[value.name])
        graph.inputs.remove(value)
        name = value.name
        value.name = f"{name}.replaced"
        value.replace_all_uses_with(constant(graph, name, array), replace_graph_outputs=True)
        found[name] = array.tolist()
    return found


def constant_of(value: ir.Value, text: str) -> Array:
    """The array that `--set INPUT=VALUE` means: one number for every element, or nested lists."""
    assert value.dtype is not None
    try:
        parsed = json.loads(text)
        array = np.asarray(parsed, value.dtype.numpy())
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--set {value.name}={text}: a number (or JSON lists of them) was wanted, of type "
            f"{value.dtype.name.lower()} ({error})"
        ) from error
    shape = tuple(size if isinstance(size, int) else None for size in value.shape or ())
    if array.ndim == 0 and None not in shape:
        if math.prod(size or 0 for size in shape) > LARGEST:
            raise UsageError(f"--set {value.name}={text}: {list(shape)} is more than the {LARGEST} elements allowed")
        return np.full(shape, array, value.dtype.numpy())  # type: ignore[arg-type]
    if array.ndim != len(shape) or any(w not in (None, c) for w, c in zip(shape, array.shape, strict=True)):
        raise UsageError(f"--set {value.name}={text}: shape {list(shape)} was wanted, {list(array.shape)} came")
    return array


def sizes(graph: ir.Graph, request: Request) -> dict[str, tuple[int, str]]:
    """Give every dynamic axis of a graph's inputs its size; what was decided, by symbol, and why.

    Raises:
        UsageError: an axis that nobody has said anything of, or an option that fits none.
    """
    decided: dict[str, tuple[int, str]] = {}
    used: set[str] = set()
    for value in graph.inputs:
        shape = []
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int):
                shape.append(size)
                continue
            symbol, place = symbols(value)[axis], f"{value.name}.{axis}"
            used |= {symbol, place} & set(request.sets)
            key = symbol or place
            if key not in decided:
                decided[key] = size_of(value, axis, symbol, place, request)
            shape.append(decided[key][0])
        value.shape = ir.Shape(shape)
    unknown = [name for name in request.sets if name not in used]
    if unknown:
        known = [*decided, *(value.name or "" for value in graph.inputs)]
        raise UsageError(
            f"--set {unknown[0]}={request.sets[unknown[0]]}: there is no dynamic axis or input of that name"
            f"{nearest(unknown[0], known)}; there are {', '.join(known)}"
        )
    return decided


def size_of(value: ir.Value, axis: int, symbol: str, place: str, request: Request) -> tuple[int, str]:
    """The size of one dynamic axis."""
    said = request.sets.get(place, request.sets.get(symbol))
    if said is not None:
        if not said.isdecimal() or len(said) > DIGITS or not 1 <= int(said) <= LARGEST:
            raise UsageError(f"--set {symbol or place}={said}: a size from 1 to {LARGEST} was wanted")
        return int(said), request.because("sets", place, symbol)
    letters = request.layouts.get(value.name or "", "")
    letter = letters[axis] if axis < len(letters) else ""
    if letter == "B" or is_batch(symbol):
        return 1, "one stream"
    if letter == "T" or is_time(symbol):
        frames = request.chunk or 1
        return frames + request.tails.get(value.name or "", 0), "--chunk" if request.chunk else "one frame"
    if not symbol and axis == 0 and len(value.shape or ()) > 1:
        return 1, "one stream"
    raise UsageError(question(value, axis, symbol, place))


def question(value: ir.Value, axis: int, symbol: str, place: str) -> str:
    """What only the user knows of a dynamic axis: how long it is, or that it is time."""
    shape, key = value.shape or (), symbol or place
    shown = ", ".join(str(n) if isinstance(n, int) else str(n.value or "?") for n in shape)
    time = "".join("T" if i == axis else "B" if i == int(axis == 0) else "F" for i in range(len(shape)))
    cache = f" (of a cache, the rows that it keeps: --set {key}=64)" if len(shape) > 3 else ""
    return (
        f"input {value.name} [{shown}]: how long is axis {axis}{f' ({symbol})' if symbol else ''}? it is dynamic, and "
        f"a step has fixed sizes; say --set {key}=N, for example --set {key}=16{cache}; or, if it is time, "
        f"--layout {value.name}={time} and --chunk N, the frames of a step"
    )
