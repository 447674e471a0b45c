"""Connected words' part of the results page."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from bench.claims import Claim, Section, Table

BASE = "n1"
FOLDED = {
    "n2-attention": "attention's projections folded by 2",
    "n2-wide": "all projections folded by 2, 176 features for 128",
}
PAPER = "Li et al. 2023, folding attention"
CLAIMED_SAVING = 0.24
LEVELS = {"clean": " clean", "10db": " at 10 dB", "0db": " at 0 dB"}
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
            "in the same order, and the same settings, which were chosen on n1; one seed each. At the width of n2-wide "
            "the layers multiply as often as those of n1. `Endless` is all of a voice's strings in one stream without "
            "a reset. `Known after` counts from the end of a string to the moment its last word is known, without "
            "computing; a word may be known before it ends. ± is twice the standard error over the voices; the scatter "
            "between trainings is not in it."
        ),
        claims=(claim(result),),
        tables=(Table("Fold factors", HEADS, [cells(row, result) for row in rows]), course(rows)),
        pictures=("words.png",),
    )


def cells(row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """A row of the table."""
    known = row["levels"]["clean"]["latency_seconds"]
    return [
        row["model"],
        folded_by(row["config"]),
        str(row["config"]["width"]),
        str(row["seed"]),
        f"{row['parameters']:,}",
        f"{row['checkpoint_bytes']:,}",
        f"{row['macs_per_step']:,}",
        f"{result['step'][row['model']]['ratio']:.2f}",
        *(percent(row["levels"][level]["token_error_rate"]) for level in LEVELS),
        percent(row["streams"]["token_error_rate"]),
        f"{wait(row)} ({known['p95']:.2f} s)" if known["median"] is not None else "-",
    ]


def folded_by(config: dict[str, Any]) -> str:
    """N, and what is folded if it is not all."""
    partly = config.get("ffn_fold", 0) not in (0, config["fold"])
    return f"{config['fold']} (attention)" if partly else str(config["fold"])


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def claim(result: dict[str, Any]) -> Claim:
    """The paper's headline beside the folded models that make no more multiplications than the one without folding."""
    rows = {row["model"]: row for row in result["rows"]}
    base = rows[BASE]
    folded = {name: said for name, said in FOLDED.items() if name in rows}
    return Claim(
        model="asr-folding",
        paper=PAPER,
        claim=f"model up to {100 * CLAIMED_SAVING:.0f} % smaller, no loss of accuracy, no extra computation",
        setup=(
            f"{base['config']['layers']} layers, CTC over 20 words, synthesised speech, {base['parameters']:,} "
            f"parameters without folding; {'; '.join(f'`{name}`: {said}' for name, said in folded.items())}; "
            "the paper: LibriSpeech and data of its own, far larger models"
        ),
        measured="; ".join(
            f"`{name}`: {measured(base, rows[name])}, {result['step'][name]['ratio']:.2f} times the time of a step"
            for name in folded
        ),
        verdict="; ".join(f"`{name}`: {verdict(base, rows[name])}" for name in folded),
    )


def measured(base: dict[str, Any], folded: dict[str, Any]) -> str:
    """Size, errors, latency and multiplications of a folded model."""
    before, after = (row["checkpoint_bytes"] for row in (base, folded))
    rates = [[percent(row["levels"][level]["token_error_rate"]) for row in (base, folded)] for level in LEVELS]
    return (
        f"{percent(1.0 - after / before, 0)} smaller ({before:,} to {after:,} bytes), token errors "
        + ", ".join(f"{first} to {second}{said}" for (first, second), said in zip(rates, LEVELS.values(), strict=True))
        + f", last word known after {wait(base)} to {wait(folded)}"
        + f", {folded['macs_per_step'] / base['macs_per_step']:.2f} times the multiply-accumulates"
    )


def wait(row: dict[str, Any]) -> str:
    """The median latency of last words, clean."""
    median = row["levels"]["clean"]["latency_seconds"]["median"]
    return "-" if median is None else f"{median:.2f} s"


def verdict(base: dict[str, Any], folded: dict[str, Any]) -> str:
    """How that compares, level by level, and why where it falls short."""
    saving = 1.0 - folded["checkpoint_bytes"] / base["checkpoint_bytes"]
    found = {level: by_voice(base["levels"][level], folded["levels"][level]) for level in LEVELS}
    kinds = {
        "more errors than without folding": [level for level, (more, scatter) in found.items() if more > scatter],
        "fewer errors than without folding": [level for level, (more, scatter) in found.items() if more < -scatter],
        "accuracy alike": [level for level, (more, scatter) in found.items() if abs(more) <= scatter],
    }
    points = [f"{100 * more:+.1f} ± {100 * scatter:.1f}{LEVELS[level]}" for level, (more, scatter) in found.items()]
    looks = [percent(row["course"][-1]["validation"]) for row in (base, folded)]
    return "; ".join(
        (
            "saves as much as the paper" if saving >= CLAIMED_SAVING - 0.005 else "saves less than the paper",
            *(said + " and".join(LEVELS[level] for level in levels) for said, levels in kinds.items() if levels),
            f"{', '.join(points)} points by voice, on the validation voices {looks[0]} to {looks[1]}",
            *([reason(base, folded)] if kinds["more errors than without folding"] else []),
        )
    )


def reason(base: dict[str, Any], folded: dict[str, Any]) -> str:
    """Why a folded model may err more: whether it fits what it was trained on as well, on the same last batch."""
    before, after = (row["course"][-1]["loss"] for row in (base, folded))
    told = f"training loss at the end {before:.2f} to {after:.2f}"
    if after <= before:
        return f"it fits its training strings as well ({told}), so it is new voices that it knows less well"
    return f"likely too few weights, as it fits its training strings less well too ({told})"


def by_voice(base: dict[str, Any], folded: dict[str, Any]) -> tuple[float, float]:
    """The mean over the voices of how much more the folded model errs, and twice its standard error."""
    more = [rate - base["by_voice"][voice] for voice, rate in folded["by_voice"].items()]
    return fmean(more), 2.0 * stdev(more) / len(more) ** 0.5


def course(rows: list[dict[str, Any]]) -> Table:
    """How the errors on the validation voices went down."""
    steps = [str(look["step"]) for look in rows[0]["course"]]
    return Table(
        "Token errors on the validation voices, half of the clips with noise, by step",
        ("model", *steps, "CPU minutes"),
        [
            [
                row["model"],
                *(percent(look["validation"]) for look in row["course"]),
                f"{row['course'][-1]['cpu_minutes']:.0f}",
            ]
            for row in rows
        ],
    )
