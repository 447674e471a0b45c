"""A picture of the arena over the calls of a step: which tensors share which bytes, as SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgemem.runtimes.aot.plan import Plan

WIDTH, HEIGHT, LEFT, TOP = 900, 420, 80, 40  # of the drawing, and its margins
NOTE_HEIGHT, NOTE_CHARACTERS = 18, 140  # of a line of notes
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377")  # of Paul Tol, told apart by all


def arena_rows(plan: Plan) -> list[dict[str, Any]]:
    """Every tensor and scratch buffer of the arena: first and last call that need it, where it lies, its bytes."""
    rows = []
    for first, last, nbytes, (kind, number, place) in plan.requests:
        slot = plan.arena[number] if kind == "tensor" else plan.calls[number].work[place]
        rows.append({"kind": kind, "first": first, "last": last, "offset": slot.offset, "bytes": nbytes})
    return sorted(rows, key=lambda row: (row["first"], row["offset"]))


def svg(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    calls: Sequence[Mapping[str, Any]],
    sizes: Mapping[str, int],
    notes: Sequence[str] = (),
) -> str:
    """Calls from left to right, bytes from bottom to top; a line where no plan could do with less; `notes` below.

    Pointing at a box tells which call made it, the shape, and the last call that reads it.
    """
    arena = max(1, sizes["arena"])
    x, y = WIDTH / max(1, len(calls)), HEIGHT / arena
    boxes = []
    for index, row in enumerate(rows):
        left, top = LEFT + max(0, row["first"]) * x, TOP + HEIGHT - (row["offset"] + row["bytes"]) * y
        wide, high = (row["last"] - max(0, row["first"]) + 1) * x, row["bytes"] * y
        boxes.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" '
            f'fill="{COLOURS[index % len(COLOURS)]}" stroke="white" stroke-width="0.5">'
            f"<title>{escape(tooltip(row, calls))}</title></rect>"
        )
    lines = [line for note in notes for line in textwrap.wrap(note.strip(), NOTE_CHARACTERS)]
    below = [
        f'<text x="{LEFT}" y="{TOP + HEIGHT + 48 + index * NOTE_HEIGHT}" font-size="12">{escape(line)}</text>'
        for index, line in enumerate(lines)
    ]
    height = TOP + HEIGHT + 50 + NOTE_HEIGHT * len(lines)
    bound = TOP + HEIGHT - sizes["arena_lower_bound"] * y
    ratio = arena / max(1, sizes["arena_lower_bound"])
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 20}" height="{height}"
     font-family="sans-serif">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="24" font-size="15">{name}: arena {arena} bytes, {ratio:.2f} × its lower bound</text>
{chr(10).join(boxes)}
<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{bound:.1f}" y2="{bound:.1f}" stroke="black" stroke-dasharray="6 4"/>
<text x="{LEFT - 8}" y="{TOP + 12}" font-size="12" text-anchor="end">{arena} B</text>
<text x="{LEFT - 8}" y="{TOP + HEIGHT}" font-size="12" text-anchor="end">0</text>
<text x="{LEFT}" y="{TOP + HEIGHT + 24}" font-size="12">call 0</text>
<text x="{LEFT + WIDTH}" y="{TOP + HEIGHT + 24}" font-size="12" text-anchor="end">call {len(calls) - 1}</text>
{chr(10).join(below)}
</svg>
"""


def tooltip(row: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> str:
    """Whose bytes a box shows: of a tensor the call that makes it, its shape, and the call that reads it last."""
    place = f"{row['bytes']} bytes at {row['offset']}"
    if row["first"] < 0:  # brought in before the first call
        return f"input, {place}; last read by {call_name(row['last'], calls)}"
    if row["kind"] != "tensor":
        return f"scratch of {call_name(row['first'], calls)}, {place}"
    shapes = " ".join("×".join(map(str, shape)) for shape in calls[row["first"]]["result"])
    return f"{shapes} of {call_name(row['first'], calls)}, {place}; last read by {call_name(row['last'], calls)}"


def call_name(index: int, calls: Sequence[Mapping[str, Any]]) -> str:
    """`call 3, NAME_k02_matmul`; what is read after the last call goes to the caller, an input may be read by none."""
    if index < 0:
        return "no call"
    return f"call {index}, {calls[index]['symbol']}" if index < len(calls) else "the end of the step"
