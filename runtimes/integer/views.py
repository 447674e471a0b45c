"""Elements of buffers as loops: where the next one lies along every axis, and pieces for which that is one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemem.runtimes.integer.values import BUFFER_BITS, MASK, Array

MOST_PIECES = 64


@dataclass(frozen=True)
class View:
    """Elements of one buffer: the first, and for every axis how far apart they lie (0 where they repeat)."""

    buffer: int
    start: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A part of an array of elements: its corner there, its extents, and the elements."""

    corner: tuple[int, ...]
    shape: tuple[int, ...]
    view: View


def view(places: Array) -> View | None:
    """The elements as one view, if they are one."""
    first, strides = int(places.reshape(-1)[0]), []
    for axis, extent in enumerate(places.shape):
        second = tuple(int(axis == other) for other in range(places.ndim))
        strides.append(int(places[second]) - first if extent > 1 else 0)
    if any(abs(stride) > MASK // 2 for stride in strides):
        return None  # from one buffer to another
    wanted: Array = np.full((1,) * places.ndim, first)
    for axis, (extent, stride) in enumerate(zip(places.shape, strides, strict=True)):
        shape = [extent if other == axis else 1 for other in range(places.ndim)]
        wanted = wanted + (np.arange(extent, dtype=np.int64) * stride).reshape(shape)
    if not np.array_equal(wanted, places):
        return None
    return View(first >> BUFFER_BITS, first & MASK, tuple(strides))


def pieces(places: Array, corner: tuple[int, ...] | None = None) -> list[Piece] | None:
    """The elements as few views, cut along the axes; None if it takes more than `MOST_PIECES`."""
    corner = corner or (0,) * places.ndim
    whole = view(places)
    if whole is not None:
        return [Piece(corner, tuple(places.shape), whole)]
    cuts = {axis: breaks(places, axis) for axis in range(places.ndim)}
    axes = [axis for axis, where in cuts.items() if where]
    if not axes:
        return None
    axis = min(axes, key=lambda a: len(cuts[a]))
    found: list[Piece] = []
    for start, end in zip([0, *cuts[axis]], [*cuts[axis], places.shape[axis]], strict=True):
        at = tuple(place + start * (other == axis) for other, place in enumerate(corner))
        part = pieces(places[(slice(None),) * axis + (slice(start, end),)], at)
        if part is None or len(found) + len(part) > MOST_PIECES:
            return None
        found += part
    return found


def breaks(places: Array, axis: int) -> list[int]:
    """Where the way from one slice to the next is not the way that it was before."""
    if places.shape[axis] == 1:
        return []
    ways = np.moveaxis(np.diff(places, axis=axis), axis, 0).reshape(places.shape[axis] - 1, -1)
    found, way = [], None
    for index, row in enumerate(ways):
        steady = int(row[0]) if (row == row[0]).all() and abs(int(row[0])) <= MASK // 2 else None
        if steady is None or (way is not None and steady != way):
            found.append(index + 1)
            way = None
        else:
            way = steady
    return found


def loops(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[tuple[int, tuple[int, ...]]]:
    """The fewest nested loops over an array: extent, and the stride of every operand, the outermost first.

    `strides` has those of each operand, by axis.
    """
    found: list[tuple[int, tuple[int, ...]]] = []
    for extent, steps in zip(shape, zip(*strides, strict=True), strict=True):
        if extent == 1:
            continue
        if found and all(outer == inner * extent for outer, inner in zip(found[-1][1], steps, strict=True)):
            found[-1] = (found[-1][0] * extent, steps)
        else:
            found.append((extent, steps))
    return found or [(1, (0,) * len(strides))]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """How far apart the elements of a whole buffer lie, by axis."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
