"""Steps with narrow weights beside other engines' own narrow forms: what `bench.compiled` measures besides float32.

Each group is one model in several schemes. The peers of a scheme quantize the same float32 model as their makers advise
for as many bits; some also run our file. All of a group take turns in one run, so that schemes compare with each other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import Table
from edgemem.measure import measure

CERTIFIED_STEPS = 8  # of each comparison, at export and when it is quantized; `bench.quant_table` has quality
CALIBRATED = 512  # frames or tokens of each of two sequences
INT8 = ("onnxruntime-int8", "onnxruntime-blocks8", "openvino-int8", "litert-int8")
INT4 = ("onnxruntime-int4", "openvino-int4", "litert-int4")
OWN = ("onnxruntime", "openvino")  # these also read our file


@dataclass(frozen=True)
class Group:
    """A model of the zoo and its schemes, each with its peers, all on as many threads."""

    name: str
    model: str
    settings: Mapping[str, object]
    schemes: Mapping[str, Sequence[str]]
    rounds: int = 30
    threads: int = 1


VQ = "vq:dim=4,codes=256"
MIRRORED = f"{VQ},mirror=1"
GROUPS: Mapping[str, Group] = {
    "kws-narrow": Group(
        "the shipped keyword spotter", "kws-lmuformer", {}, {"w8a8": (*OWN, *INT8), "w8a8-dynamic": ()}
    ),
    "mid-narrow": Group(
        "RWKV-4, 8 layers of 512",
        "rwkv4",
        {"layers": 8, "width": 512, "vocab": 4096},
        {"w8": INT8, "w8a8-dynamic": (), "w4g32": (*OWN, *INT4), VQ: (), MIRRORED: ()},
    ),
    "base-narrow": Group(
        "RWKV-4, 12 layers of 768, 50,277 tokens",
        "rwkv4",
        {"layers": 12, "width": 768, "vocab": 50277},
        {"w8": INT8, "w8a8-dynamic": (), "w4g32": INT4},
        rounds=15,
    ),
    "segment-narrow": Group(
        "Memformer, 4 layers of 256, 64 rows a step",
        "memformer",
        {"layers": 4, "width": 256, "heads": 4, "slots": 16, "segment": 64},
        {"w8a8": (*OWN, *INT8), "w8a8-dynamic": ()},
    ),
}
TWO = replace(GROUPS["base-narrow"], name=f"{GROUPS['base-narrow'].name}, two threads", threads=2)
GROUPS = {**GROUPS, "base-narrow-2": TWO}
# group, scheme, against (a scheme, an engine, the best engine with as many bits, or the roofline), at most
GOALS: Sequence[tuple[str, str, str, float]] = (
    ("kws-narrow", "w8a8", "litert-int8", 0.6),
    ("kws-narrow", "w8a8", "best peer", 1.0),
    ("mid-narrow", "w8", "best peer", 0.85),
    ("mid-narrow", "w8a8-dynamic", "best peer", 0.85),
    ("mid-narrow", "w4g32", "best peer", 0.8),
    ("mid-narrow", "w4g32", "w8", 1.0),
    ("mid-narrow", "w4g32", "w8a8-dynamic", 1.0),
    ("mid-narrow", VQ, "w4g32", 1.0),
    ("mid-narrow", MIRRORED, "w4g32", 1.0),
    ("base-narrow", "w8", "best peer", 0.85),
    ("base-narrow", "w8a8-dynamic", "best peer", 0.85),
    ("base-narrow", "w4g32", "best peer", 0.8),
    ("base-narrow", "w4g32", "w8", 1.0),
    ("base-narrow-2", "w8", "best peer", 0.85),
    ("base-narrow-2", "w8a8-dynamic", "best peer", 0.85),
    ("base-narrow-2", "w4g32", "best peer", 0.8),
    ("base-narrow-2", "w4g32", "w8", 1.0),
    ("segment-narrow", "w8a8", "roofline", 1 / 0.7),
    ("segment-narrow", "w8a8", "best peer", 1.0),
    ("segment-narrow", "w8a8-dynamic", "roofline", 1 / 0.7),
)
HEADS = (
    "step",
    "scheme",
    "bits",
    "weights and state",
    "engine",
    "p50 µs",
    "spread",
    "best µs",
    "first µs",
    "from C µs",
    "x roofline",
)
MB = 1e6


def peer_bits(scheme: str) -> int:
    """Bits of a weight in the peers that a scheme is compared with: 4 beside `vq` too, as no peer has its 2."""
    return 8 if scheme.startswith("w8") else 4


def measured(label: str, folder: Path, engines: Sequence[str], rounds: int) -> dict[str, Any]:
    """The rows of a group; `engines` are those that may take part. `file` of each row is the scheme."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    group = GROUPS[label]
    original = folder / "float.onnx"
    export_model(group.model, original, group.settings, certified_steps=CERTIFIED_STEPS)
    calibrate = calibration(original)  # `vq` would use them too, and take long
    files, seconds = {}, {}
    for index, scheme in enumerate(group.schemes):
        begin = time.perf_counter()
        files[scheme] = folder / f"{index}.onnx"
        quantize(
            original, files[scheme], scheme, calibrate=calibrate if scheme == "w8a8" else None, steps=CERTIFIED_STEPS
        )
        seconds[scheme] = round(time.perf_counter() - begin, 1)
    peers = {
        files[scheme]: [name for name in names if name.partition("-")[0] in engines]
        for scheme, names in group.schemes.items()
    }
    found = measure(
        list(files.values()),
        ("aot",),
        group.threads,
        rounds,
        against=peers,
        originals=dict.fromkeys(files.values(), original),
    )
    schemes = {str(path): scheme for scheme, path in files.items()}
    return {
        "rounds": rounds,
        "quantize_s": seconds,
        "peers": found.get("peers", {}),
        "rows": [row | {"file": schemes[row["file"]]} for row in found["rows"]],
        "skipped": [peer | {"file": schemes[peer["file"]]} for peer in found.get("skipped", [])],
    }


def calibration(original: Path) -> Path | None:
    """Random inputs to calibrate a model of random weights with; None for sound, of which data ships."""
    from edgemem.modelfile import open_model

    port = open_model(original).contract.inputs[0]
    if port.frontend is not None:
        return None
    rng = np.random.default_rng(0)
    if port.range is None:
        drawn = rng.standard_normal((2, CALIBRATED, *port.shape[2:])).astype(port.dtype)
    else:
        drawn = rng.integers(*port.range, (2, CALIBRATED))
    np.save(original.with_suffix(".npy"), drawn)
    return original.with_suffix(".npy")


def line(label: str, row: Mapping[str, Any]) -> str:
    """One row for people."""
    bare = f"{row['c_p50_us']:.1f}" if "c_p50_us" in row else ""
    times = f"{row['p50_us']:>10.1f}{bare:>12}{row['roofline_ratio']:>10.2f}"
    return f"{label:<15}{row['file']:<20}{row['runtime']:<22}{times}"


def tables(groups: Mapping[str, Any]) -> list[Table]:
    """The parts of the results page, of what has been measured."""
    rows = [cells(label, row) for label in GROUPS if label in groups for row in groups[label]["rows"]]
    missing = [
        [GROUPS[label].name, f"`{peer['file']}`", f"`{peer['runtime']}`", peer["reason"]]
        for label in GROUPS if label in groups for peer in groups[label]["skipped"]
    ]  # fmt: skip
    found = [Table("Steps with narrow weights", HEADS, rows), Table(
        "What is asked of aot with narrow weights", ("step", "scheme", "against", "at most", "measured", "at best", ""),
        goals(groups),
    )]  # fmt: skip
    return (
        [*found, Table("Engines that do not run", ("step", "beside", "engine", "reason"), missing)]
        if missing
        else found
    )


def cells(label: str, row: Mapping[str, Any]) -> list[str]:
    """A row of the first table."""
    ours = row["runtime"] == "aot"
    return [
        GROUPS[label].name,
        f"`{row['file']}`" if ours else "",
        str(2 if row["file"].startswith(VQ) else peer_bits(row["file"])),
        f"{row['bytes_per_step'] / MB:.2f} MB" if ours else "",
        f"`{row['runtime']}`",
        f"{row['p50_us']:,.1f}",
        f"{row['spread']:.1%}",
        f"{row['best_us']:,.1f}",
        f"{row['first_us']:,.1f}" if "first_us" in row else "",
        f"{row['c_p50_us']:,.1f}" if "c_p50_us" in row else "",
        f"{row['roofline_ratio']:.2f}" if ours else "",
    ]


def goals(groups: Mapping[str, Any]) -> list[list[str]]:
    """What was wanted of each scheme, beside what came: by the medians, and by the shortest calls."""
    lines = []
    for label, scheme, against, most in GOALS:
        if label not in groups:
            continue
        found = [compared(groups[label]["rows"], scheme, against, key) for key in ("p50_us", "best_us")]
        shown = ["–" if value is None else f"{value:.2f}" for value in found]
        verdict = "not run" if found[0] is None else "reached" if found[0] <= most else "missed"
        lines.append([GROUPS[label].name, f"`{scheme}`", against, f"{most:.2f}", *shown, verdict])
    return lines


def compared(rows: Sequence[Mapping[str, Any]], scheme: str, against: str, key: str) -> float | None:
    """How many times another's time, or the roofline's, our step takes; None where the other did not run."""
    ours = {row["file"]: row for row in rows if row["runtime"] == "aot"}
    own = ours.get(scheme)
    if own is None:
        return None
    if against == "roofline":
        return float(own["roofline_ratio" if key == "p50_us" else "best_roofline_ratio"])
    if against in ours:
        return float(own[key]) / float(ours[against][key])
    others = [row for row in rows if row["runtime"] != "aot" and peer_bits(row["file"]) == peer_bits(scheme)]
    times = [float(row[key]) for row in others if against in ("best peer", row["runtime"])]
    return float(own[key]) / min(times) if times else None
