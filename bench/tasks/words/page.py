"""Connected words' part of the results page."""

from __future__ import annotations

from typing import Any

from bench.claims import Claim, Section, Table

BASE = "n1"
FOLDED = {
    "n2-attention": "attention's projections folded by 2",
    "n2-wide": "all projections folded by 2, 176 features for 128",
}
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
            "in the same order, and the same settings, which were chosen on n1; one seed each. At the width of n2-wide "
            "the layers multiply as often as those of n1. `Endless` is all of a voice's strings in one stream without "
            "a reset. `Known after` counts from the end of a string to the moment its last word is known, without "
            "computing; a word may be known before it ends."
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
        folded_by(row["config"]),
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


def folded_by(config: dict[str, Any]) -> str:
    """N, and what is folded if it is not all."""
    partly = config.get("ffn_fold", 0) not in (0, config["fold"])
    return f"{config['fold']} (attention)" if partly else str(config["fold"])


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def claim(result: dict[str, Any]) -> Claim:
    """The paper's headline beside the folded models that make no more multiplications than the one without folding."""
    rows = {row["model"]: row for row in result["rows"]}
    base = rows[BASE]
    folded = {name: said for name, said in FOLDED.items() if name in rows}
    return Claim(
        model="asr-folding",
        paper=PAPER,
        claim="model up to 24 % smaller, no loss of accuracy, no extra computation",
        setup=(
            f"{base['config']['layers']} layers, CTC over 20 words, synthesised speech, {base['parameters']:,} "
            f"parameters without folding; {'; '.join(f'`{name}`: {said}' for name, said in folded.items())}; "
            "the paper: LibriSpeech and data of its own, far larger models"
        ),
        measured="; ".join(f"`{name}`: {measured(base, rows[name])}" for name in folded),
        verdict="; ".join(f"`{name}`: {verdict(base, rows[name])}" for name in folded),
    )


def errors(row: dict[str, Any]) -> float:
    """The token error rate on clean strings."""
    return float(row["levels"]["clean"]["token_error_rate"])


def measured(base: dict[str, Any], folded: dict[str, Any]) -> str:
    """Size, errors and multiplications of a folded model."""
    saving = 1.0 - folded["checkpoint_bytes"] / base["checkpoint_bytes"]
    return (
        f"{100 * saving:.0f} % smaller, token errors {percent(errors(base))} to {percent(errors(folded))}, "
        f"{folded['macs_per_step'] / base['macs_per_step']:.2f} times the multiply-accumulates"
    )


def verdict(base: dict[str, Any], folded: dict[str, Any]) -> str:
    """How that compares. Two rates over as many words scatter against each other by two standard errors."""
    rate, words = errors(base), base["levels"]["clean"]["words"]
    more, scatter = errors(folded) - rate, 2.0 * (2.0 * rate * (1.0 - rate) / words) ** 0.5
    saving = 1.0 - folded["checkpoint_bytes"] / base["checkpoint_bytes"]
    size = "saves as much as the paper" if saving >= CLAIMED_SAVING - 0.005 else "saves less than the paper"
    if more > scatter:
        loss = f"but {100 * more:.1f} points more errors, beyond the scatter of {100 * scatter:.1f}"
    elif more < -scatter:
        loss = f"and {100 * -more:.1f} points fewer errors, beyond the scatter of {100 * scatter:.1f}"
    else:
        loss = f"accuracy alike within the scatter of {100 * scatter:.1f} points"
    return f"{size}, {loss}"
