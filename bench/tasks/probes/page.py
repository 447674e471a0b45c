"""The memory probes' part of the results page."""

from __future__ import annotations

from typing import Any

from bench.claims import Claim, Section, Table
from bench.tasks.probes.table import ordered

LMU_PAPER = "Voelker, Kajić & Eliasmith 2019"


def section(result: dict[str, Any]) -> Section:
    """The table model x probe, the long delays, and LMU's classical tasks beside a GRU of the same size."""
    result = ordered(result)
    rows, names = result["models"], list(result["probes"])
    sizes = [found["parameters"] for model in rows.values() for found in model.values()]
    return Section(
        title="Memory probes",
        text=(
            f"Generated tasks that each ask one question of a memory; one small model per family and probe "
            f"({min(sizes):,} to {max(sizes):,} parameters), trained on the same batches for as many steps at "
            f"the same rates, judged by streaming its step form over fresh episodes, checkpoints in float16. Score: "
            f"accuracy, or 1 - NRMSE for the signals. `probe-folding` sees {result['window']} frames at most: beside "
            f"every score stands what a perfect memory of just those would score, and what guessing would. The value "
            f"of `edgemem eval MODEL --task probes` is the mean of a row.\n\n{reading(result)}"
        ),
        claims=claims(rows),
        tables=(
            Table("Scores", ("model", *names, "mean"), [*scores(result), *references(result, names)]),
            Table(
                f"Long delays (trained up to {result['delay_trained_to']} frames)",
                ("model", *result["probes"]["delay"]["bounded_levels"]),
                delays(result),
            ),
            Table("Recall, by pairs told", ("model", *result["probes"]["recall"]["bounded_levels"]), levels(result)),
        ),
        pictures=("probes.png",),
    )


def scores(result: dict[str, Any]) -> list[list[str]]:
    """A row per model."""
    lines = []
    for model, found in result["models"].items():
        values = [found[name]["score"] if name in found else None for name in result["probes"]]
        known = [value for value in values if value is not None]
        lines.append([f"`{model}`", *map(shown, values), shown(sum(known) / len(known))])
    return lines


def references(result: dict[str, Any], names: list[str]) -> list[list[str]]:
    """What is there to compare with."""
    bounded = [shown(result["probes"][name]["bounded"]) for name in names]
    chance = [shown(result["probes"][name]["chance"]) for name in names]
    return [[f"perfect over {result['window']} frames", *bounded, ""], ["guessing", *chance, ""]]


def shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def delays(result: dict[str, Any]) -> list[list[str]]:
    return by_level(result, "delay")


def levels(result: dict[str, Any]) -> list[list[str]]:
    return by_level(result, "recall")


def by_level(result: dict[str, Any], name: str) -> list[list[str]]:
    """A row per model that has the probe, a column per level, what is there to compare with below."""
    facts = result["probes"][name]
    lines = [
        [f"`{model}`", *map(shown, found[name]["levels"].values())]
        for model, found in result["models"].items()
        if name in found
    ]
    lines.append([f"perfect over {result['window']} frames", *map(shown, facts["bounded_levels"].values())])
    return lines


def reading(result: dict[str, Any]) -> str:
    """Which models hold a needle beyond what they were trained on, and what its window does not explain."""
    far: list[tuple[str, str | None]] = []
    near: list[tuple[str, str | None]] = []
    for model, found in result["models"].items():
        values = list(found["delay"]["levels"].values())
        (far if values[-1] >= 0.9 else near).append((model, reach(found["delay"]["levels"])))
    text = f"Delays, at an accuracy of 0.9: {listed([model for model, _ in far]) or 'no model'} held the longest. "
    text += " ".join(
        f"`{model}` {f'held up to {distance}' if distance else 'did not hold the shortest'}."
        for model, distance in near
    )
    text += " A distance has 32 episodes, the longest 16: an answer is worth 3 to 6 points."
    below = [
        name
        for name, facts in result["probes"].items()
        if facts["bounded"] is not None and result["models"]["probe-folding"][name]["score"] < 0.9 * facts["bounded"]
    ]
    if below:
        text += (
            f" `probe-folding` stays below what its window allows ({', '.join(below)}): there the short training is "
            "the limit, not the memory, and so it may be for the other models of attention."
        )
    return text


def reach(found: dict[str, float]) -> str | None:
    """The last level up to which all scores are at least 0.9."""
    last = None
    for level, value in found.items():
        if value < 0.9:
            break
        last = level
    return last


def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def claims(rows: dict[str, Any]) -> tuple[Claim, ...]:
    """LMU's classical tasks."""
    lmu, gru = rows["probe-lmu"], rows["probe-gru"]
    setup = "{lmu:,} parameters beside a GRU's {gru:,}, both trained on the same windows for {steps} steps"
    made = []
    for name, claim in (
        ("mackey-glass", "outperforms equally sized LSTMs at predicting a chaotic time series, 15 frames ahead"),
        ("narma", "(not in the paper; a customary test of such memories)"),
    ):
        sizes = {"lmu": lmu[name]["parameters"], "gru": gru[name]["parameters"]}
        errors = {key: 1.0 - found[name]["score"] for key, found in (("lmu", lmu), ("gru", gru))}
        made.append(
            Claim(
                model="`probe-lmu`",
                paper=LMU_PAPER,
                claim=claim,
                setup=f"{name}: " + setup.format(**sizes, steps=f"{lmu[name]['training']['steps']:,}"),
                measured=f"NRMSE {errors['lmu']:.4f}, GRU {errors['gru']:.4f}",
                verdict=better(errors["lmu"], errors["gru"]),
                headline=False,
            )
        )
    pixels = {key: found["digits-permuted"]["score"] for key, found in (("lmu", lmu), ("gru", gru))}
    made.append(
        Claim(
            model="`probe-lmu`",
            paper=LMU_PAPER,
            claim="97.15 % on permuted sequential MNIST (784 pixels), above other recurrent networks",
            setup="64 pixels of scikit-learn's digits, permuted, 360 held-out images by the same writers",
            measured=f"{100 * pixels['lmu']:.1f} %, GRU {100 * pixels['gru']:.1f} %",
            verdict=better(1.0 - pixels["lmu"], 1.0 - pixels["gru"]) + "; a smaller task, the numbers do not compare",
            headline=False,
        )
    )
    return tuple(made)


def better(ours: float, theirs: float) -> str:
    """How two errors compare."""
    if ours <= theirs:
        return f"{theirs / max(ours, 1e-9):.1f} times less error than the GRU"
    return f"falls short: {ours / max(theirs, 1e-9):.1f} times the error of the GRU"
