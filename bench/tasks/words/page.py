"""Connected words' part of the results page."""

from __future__ import annotations

from typing import Any

from bench.claims import Claim, Section, Table

BASE, FOLDED = "n1", "n2-wide"
PAPER = "Li et al. 2023, folding attention"
CLAIMED_SAVING = 0.24
HEADS = (
    "model", "N", "width", "seed", "parameters", "bytes (float16)", "MACs per step", "step against n1",
    "errors, clean", "10 dB", "0 dB", "endless, clean", "known after, median (95 %)",
)  # fmt: skip


def section(result: dict[str, Any]) -> Section:
    """The sweep of fold factors, and the paper's headline."""
    rows = result["rows"]
    clean, recipe = rows[0]["levels"]["clean"], rows[0]["recipe"]
    return Section(
        title="Connected words",
        text=(
            "Strings of digits and short commands (20 words, one token each), synthesised as a whole by espeak-ng and "
            f"flite; {clean['strings']} strings with {clean['words']} words by {len(clean['by_voice'])} voices that no "
            "training heard, streamed through the exported file; value: token error rate. Segments of "
            f"{1000 * result['seconds_per_step']:.0f} ms, {1000 * result['look_ahead_seconds']:.0f} ms of look-ahead. "
            f"All models had the same {recipe['short_steps'] + recipe['steps']} steps of {recipe['batch']} sequences "
            "in the same order, and the same settings, which were chosen on n1. The `wide` ones have so many more "
            "features that their layers multiply as often as those of n1. `Endless` is all of a voice's strings in one "
            "stream without a reset. `Known after` counts from the end of a string to the moment its last word is "
            "known, without computing."
        ),
        claims=(claim(result),),
        tables=(Table("Fold factors", HEADS, [cells(row, result) for row in rows]),),
        pictures=("words.png",),
    )


def cells(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    wait = row["levels"]["clean"]["latency_seconds"]
    return [
        row["model"],
        str(row["config"]["fold"]),
        str(row["config"]["width"]),
        str(row["seed"]),
        f"{row['parameters']:,}",
        f"{row['checkpoint_bytes']:,}",
        f"{row['macs_per_step']:,}",
        f"{result['step'][row['model']]['ratio']:.2f}",
        *(percent(row["levels"][level]["token_error_rate"]) for level in ("clean", "10db", "0db")),
        percent(row["streams"]["token_error_rate"]),
        f"{wait['median']:.2f} s ({wait['p95']:.2f} s)" if wait["median"] is not None else "-",
    ]


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def claim(result: dict[str, Any]) -> Claim:
    """The paper's headline beside the folded model of as many multiplications."""
    base, folded = (next(row for row in result["rows"] if row["model"] == name) for name in (BASE, FOLDED))
    saving = 1.0 - folded["checkpoint_bytes"] / base["checkpoint_bytes"]
    macs = folded["macs_per_step"] / base["macs_per_step"]
    errors = [row["levels"]["clean"]["token_error_rate"] for row in (base, folded)]
    return Claim(
        model="asr-folding",
        paper=PAPER,
        claim="model up to 24 % smaller, no loss of accuracy, no extra computation",
        setup=(
            f"{base['config']['layers']} layers, every projection folded by 2, {base['config']['width']} features to "
            f"{folded['config']['width']}; CTC over 20 words, synthesised speech"
        ),
        measured=(
            f"{100 * saving:.0f} % smaller, token errors {percent(errors[0])} to {percent(errors[1])}, "
            f"{macs:.2f} times the multiply-accumulates"
        ),
        verdict=verdict(saving, macs, errors[1] - errors[0], base["levels"]["clean"]["words"], errors[0]),
    )


def verdict(saving: float, macs: float, more: float, words: int, rate: float) -> str:
    """How that compares. Two rates over `words` words scatter against each other by two standard errors."""
    scatter = 2.0 * (2.0 * rate * (1.0 - rate) / words) ** 0.5
    size = "more than the paper's size" if saving >= CLAIMED_SAVING else "less than the paper's size"
    if more > scatter:
        loss = f"{percent(more)} more errors than without folding, beyond the scatter of {percent(scatter)}"
    elif more < -scatter:
        loss = f"{percent(-more)} fewer errors, beyond the scatter of {percent(scatter)}"
    else:
        loss = f"accuracy alike within the scatter of {percent(scatter)}"
    return f"{size} is saved; {loss}; {'no' if macs <= 1.02 else f'{100 * (macs - 1):.0f} %'} extra multiplications"
