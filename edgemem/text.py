"""Words for people: suggestions, sizes, tables."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """' (did you mean …?)' with the closest known word, or nothing; `likeness` is 1 for equal words."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=likeness)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_line(error: BaseException) -> str:
    """What an error of another package says, in one line; its class where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def printable(text: str) -> str:
    """A text that a file may have written, safe for a terminal: control characters but line ends as escapes."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, word: str) -> str:
    """'1 state', '2 states'."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def human_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def hertz(count: float) -> str:
    """25_000_000 -> '25 MHz'."""
    return f"{count / 1e9:g} GHz" if count >= 1e9 else f"{count / 1e6:g} MHz"


def duration(seconds: float) -> str:
    """0.0154 -> '15.4 ms'; three digits."""
    units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
    unit, scale = next((u for u in units if abs(seconds) * u[1] >= 0.9995), units[-1])
    number = seconds * scale
    return f"{number:,.0f} {unit}" if abs(number) >= 999.5 else f"{number:.3g} {unit}"


def row_text(row: dict[str, object]) -> str:
    """One result of a stream as a line: time, then what came out."""
    start, end = row["t_start"], row["t_end"]
    if "label" in row:
        return f"{start:8.2f} – {end:6.2f} s  {row['label']:<10}  {row['score']:.2f}"
    values = row["values"]
    shown = (
        ", ".join(f"{v:.4g}" for v in values[:8]) if isinstance(values, list) and _flat(values) else str(values)[:80]
    )
    return f"{start:8} – {end:8}  {shown}"


def _flat(values: list[object]) -> bool:
    return all(isinstance(value, int | float) for value in values)
