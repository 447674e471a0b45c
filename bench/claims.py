"""What a paper claims, and what the same thing measured here: the rows of the results page.

A recipe tells its part of the page in `bench/tasks/NAME/page.py`:

    def section(result: dict) -> Section        `result` is bench/results/NAME.json, as the recipe wrote it

Every number of a section comes from the result; only the papers' own numbers are written down in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """One row: what the paper says, how it was measured here, what came out, and a sentence about the difference."""

    model: str
    paper: str
    claim: str
    setup: str
    measured: str
    verdict: str
    headline: bool = True  # also in the table at the head of the page


@dataclass(frozen=True)
class Table:
    """Rows of text under their heads."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A task's part of the page. `pictures` are names of files in bench/results."""

    title: str
    text: str
    claims: Sequence[Claim] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()
    recipe: str | None = None  # the module that measures it; None: that of the task


def ratio(ours: float, theirs: float) -> str:
    """'as the paper', or how far from it: `ours` and `theirs` are factors, larger is better."""
    if ours >= theirs:
        return "reached"
    if ours <= 0:
        return "not reached at all"
    return f"short by a factor of {theirs / ours:.2g}"


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar or a line break inside a cell is written so that it stays in its cell."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
