"""The C text of states that slide (`edgemem.runtimes.aot.rings`): where their windows start, and how they move on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgemem.runtimes.aot.plan import RingSlot, StateSlot

if TYPE_CHECKING:
    from edgemem.runtimes.aot.emit_calls import Source


def ring_slots(source: Source) -> list[tuple[StateSlot, RingSlot]]:
    """All rings of a step in the order of their numbers."""
    found = [(slot, slot.ring) for slot in source.plan.states.values() if slot.ring is not None]
    return sorted(found, key=lambda pair: pair[1].number)


def header_fields(source: Source) -> str:
    """Members of the state block's header."""
    count = len(ring_slots(source))
    return (
        f"    uint64_t touched;\n    uint64_t at[{count}]; /* the row where the window of a ring starts */\n"
        if count
        else ""
    )


def slide_text(source: Source) -> str:
    """The table of rings, and `slide`, which ends a step."""
    rows = "\n".join(
        f"    {{{slot.first.offset}, {ring.row_bytes}, {ring.rows}, {ring.period}, {ring.kept}}}, /* {slot.name} */"
        for slot, ring in ring_slots(source)
    )
    if not rows:
        return ""
    return f"""
/* A cache of which a step adds `kept` rows and forgets as many: every row lies in two places, `period` rows apart, so
 * that the window of the last `rows` rows is in one piece wherever it starts, and moves on without being copied. */
typedef struct {{
    size_t offset, row_bytes, rows, period, kept;
}} ring;

static const ring rings[] = {{
{rows}
}};

/* Writes `count` rows from `first` on to their second places. */
static void doubled(const ring *r, unsigned char *room, size_t first, size_t count)
{{
    const size_t row = r->row_bytes;
    const size_t low = first >= r->period ? 0 : r->period - first < count ? r->period - first : count;
    memcpy(room + (first + r->period) * row, room + first * row, low * row);
    first += low;
    if (low < count) memcpy(room + (first - r->period) * row, room + first * row, (count - low) * row);
}}

/* The new rows of every ring become part of its window. */
static void slide(unsigned char *s, header *h)
{{
    size_t i;
    for (i = 0; i < sizeof rings / sizeof rings[0]; ++i) {{
        const ring *const r = &rings[i];
        doubled(r, s + r->offset, (size_t)h->at[i] + r->rows, r->kept);
        h->at[i] = (h->at[i] + r->kept) % r->period;
    }}
}}
"""


def settle_text(source: Source) -> str:
    """`settle`, for the first step after somebody was given a state's place, where it may have been written."""
    if not ring_slots(source):
        return ""
    return """
/* The windows may have been written from outside: their rows to their second places. */
static void settle(unsigned char *s)
{
    header *const h = (header *)(void *)s;
    size_t i;
    if (!h->touched) return;
    for (i = 0; i < sizeof rings / sizeof rings[0]; ++i)
        doubled(&rings[i], s + rings[i].offset, (size_t)h->at[i], rings[i].rows);
    h->touched = 0;
}
"""


def window_text(source: Source) -> list[str]:
    """C lines that name the windows of a step."""
    return [
        f"    unsigned char *const ring{ring.number} = s + {slot.first.offset} + (size_t)h->at[{ring.number}] * "
        f"{ring.row_bytes}; /* {slot.name} */"
        for slot, ring in ring_slots(source)
    ]
