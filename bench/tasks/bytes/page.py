"""The byte language models' part of the results page: the headlines of Memformer and of RWKV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.claims import Claim, Section, Table, ratio

MEMFORMER, RWKV, XL, FULL = "lm-memformer", "lm-rwkv4", "lm-transformer-xl", "lm-transformer"
LESS_MEMORY, FASTER = 8.1, 3.2  # the Memformer paper's own numbers
COMPARABLE_BITS = 0.05  # a difference in bits per byte that we still call comparable
SHORT_TRAINING = ", likely helped by the short training, in which attention has yet to learn where to look"
CONSTANT = 1.25  # times differ by so much from one process to the next on a busy machine


def section(result: dict[str, Any]) -> Section:
    """What the four models reached on the same data with the same budget."""
    models = result["models"]
    trained = {name: found for name, found in models.items() if "test" in found}
    splits, any_model = result["splits"], next(iter(trained.values()))
    recipe = any_model["training"]["recipe"]
    budget = recipe["steps"] * recipe["batch"] * recipe["window"]
    claims = []
    if {MEMFORMER, XL} <= set(trained):
        claims.append(memformer(models, budget))
    if {RWKV, XL} <= set(trained) and FULL in models:
        claims.append(rwkv(models, budget))
    return Section(
        title="Byte-level language modelling",
        text=(
            f"The sources of the Python standard library ({splits['train']['bytes'] / 1e6:.1f} MB to train on, its "
            "tests and third-party packages left out, split by the digest of the file name). Every model is trained "
            f"on {budget / 1e6:.1f} MB of it with one recipe (AdamW, peak rate {recipe['rate']:g}, a state that is "
            "carried from window to window), none tuned by itself. Bits per byte are over the "
            f"{any_model['test']['files']} files of the test split ({any_model['test']['bytes'] / 1e3:.0f} kB), "
            "streamed from the start state with float16 weights; costs are onnxruntime's on one thread, in CPU time."
        ),
        claims=claims,
        tables=(quality(trained), cost_table(models)),
        pictures=("bytes.png",),
    )


def memformer(models: Mapping[str, Any], budget: int) -> Claim:
    """8.1 times less memory and 3.2 times faster than the baselines, at comparable quality."""
    ours, theirs = models[MEMFORMER], models[XL]
    less_state = theirs["state_bytes"] / ours["state_bytes"]
    less_peak = theirs["shipped"]["peak_bytes"] / ours["shipped"]["peak_bytes"]
    faster = speed(theirs["shipped"], ours["shipped"])
    worse = ours["test"]["bits_per_byte"] - theirs["test"]["bits_per_byte"]
    long = [f"{speed(far, near):.1f}x faster at {far['context'] // 1024} k" for far, near in paired(theirs, ours)]
    return Claim(
        model=MEMFORMER,
        paper="Wu et al. 2020",
        claim="8.1x less memory and 3.2x faster inference than Transformer-XL-like baselines, comparable quality",
        setup=(
            f"{millions(ours)} parameters, {ours['config']['slots']} slots, segments of {ours['config']['segment']} "
            f"bytes, against a Transformer-XL of {millions(theirs)} that keeps {theirs['config']['memory']} rows per "
            f"layer; {budget / 1e6:.1f} MB of Python source each (the paper: WikiText-103, larger models, GPU)"
        ),
        measured=(
            f"{bits(ours)} against {bits(theirs)} bits per byte; state {less_state:.1f}x smaller, peak memory with "
            f"weights {less_peak:.1f}x; {faster:.1f}x faster per byte as trained"
            + "".join(f", {text}" for text in long)
        ),
        verdict=(
            f"State: {ratio(less_state, LESS_MEMORY)}. Process with its weights, as trained: "
            f"{ratio(less_peak, LESS_MEMORY)}. Speed as trained: {ratio(faster, FASTER)}{faster_from(theirs, ours)}. "
            f"Quality: {compared(worse)}"
            + ("." if worse <= COMPARABLE_BITS else ": the first bytes of a segment have only the slots to look at.")
        ),
    )


def rwkv(models: Mapping[str, Any], budget: int) -> Claim:
    """Constant memory and time per token, on par with Transformers of its size."""
    ours, theirs = models[RWKV], models[FULL]
    rival = FULL if "test" in theirs else XL  # of the quality, where the Transformer has not been trained
    near, far = ours["contexts"][0], ours["contexts"][-1]
    slower = far["seconds_per_byte"] / near["seconds_per_byte"]
    grown = theirs["contexts"][-1]["seconds_per_byte"] / theirs["contexts"][0]["seconds_per_byte"]
    worse = ours["test"]["bits_per_byte"] - models[rival]["test"]["bits_per_byte"]
    same_state = len({row["state_bytes"] for row in ours["contexts"]}) == 1
    constant = same_state and slower <= CONSTANT
    span = f"{near['context'] // 1024} k to {far['context'] // 1024} k"
    return Claim(
        model=RWKV,
        paper="Peng et al. 2023",
        claim="Constant memory and computation per token, on par with Transformers of its size",
        setup=(
            f"{millions(ours)} parameters beside `{FULL}` ({millions(theirs)}, full attention"
            + (f"; quality beside `{rival}`" if rival != FULL else "")
            + f"), trained on the same {budget / 1e6:.1f} MB of Python source (the paper: the Pile, 0.17 to 14 billion "
            "parameters)"
        ),
        measured=(
            f"{bits(ours)} against {bits(models[rival])} bits per byte; state {kib(near)} at every context, time per "
            f"byte {slower:.2f}x from {span} bytes of past (the Transformer's cache grows from "
            f"{kib(theirs['contexts'][0])} to {kib(theirs['contexts'][-1])}, its time {grown:.0f}x)"
        ),
        verdict=(
            f"{'Reached' if constant else 'Not constant as measured'}. Quality: {compared(worse)}"
            + (SHORT_TRAINING if worse < -COMPARABLE_BITS else "")
            + ("." if rival == FULL else "; the full-attention Transformer itself has not been trained here.")
        ),
    )


def paired(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """The costs of two models at the same contexts."""
    mine = {row["context"]: row for row in ours["contexts"]}
    return [(row, mine[row["context"]]) for row in theirs["contexts"] if row["context"] in mine]


def speed(slow: Mapping[str, Any], fast: Mapping[str, Any]) -> float:
    """How many times faster the second is."""
    return float(slow["seconds_per_byte"] / fast["seconds_per_byte"])


def faster_from(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """From which context on the paper's factor is there."""
    reached = [far["context"] for far, near in paired(theirs, ours) if speed(far, near) >= FASTER]
    return (
        f"; there from a memory of {reached[0] // 1024} k rows on" if reached else "; at no context that was measured"
    )


def compared(worse: float) -> str:
    """A difference in bits per byte as a sentence."""
    if abs(worse) <= COMPARABLE_BITS:
        return f"comparable ({worse:+.2f} bits per byte)"
    return f"{abs(worse):.2f} bits per byte {'worse than' if worse > 0 else 'better than'} the baseline"


def bits(model: Mapping[str, Any]) -> str:
    return f"{model['test']['bits_per_byte']:.3f}"


def millions(model: Mapping[str, Any]) -> str:
    return f"{model['parameters'] / 1e6:.2f} M"


def kib(row: Mapping[str, Any]) -> str:
    """State bytes for people."""
    size = row["state_bytes"] / 1024
    return f"{size:.1f} KiB" if size < 1024 else f"{size / 1024:.1f} MiB"


def quality(models: Mapping[str, Any]) -> Table:
    """Bits per byte of every model, and what it took."""
    rows = [
        [
            name,
            millions(found),
            bits(found),
            f"{found['test']['later']:.3f}",
            f"{found['training']['curve'][-1]['valid_bits_per_byte']:.3f}",
            f"{found['training']['curve'][-1]['cpu_seconds'] / 60:.0f}",
            kib(found),
        ]
        for name, found in models.items()
    ]
    heads = ("model", "parameters", "bits per byte", "after the first KiB", "validation", "CPU minutes", "state")
    return Table("Quality on the test split", heads, rows)


def cost_table(models: Mapping[str, Any]) -> Table:
    """State, peak memory and time per byte at every context."""
    rows = []
    for name, found in models.items():
        for row in (found["shipped"], *found["contexts"]):
            context = f"{row['context']:,}" if row["context"] else "default"
            peak, time = f"{row['peak_bytes'] / 1e6:.0f} MB", f"{row['seconds_per_byte'] * 1e3:.3f} ms"
            rows.append([name, context, kib(row), peak, time])
    return Table("Costs over the context", ("model", "context, bytes", "state", "peak memory", "time per byte"), rows)
