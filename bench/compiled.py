"""How far are compiled steps from what the machine can do, and from other engines?

python -m bench.compiled [--peers onnxruntime,openvino,litert] [--only mid,mid-narrow] [--rounds 2]

writes bench/results/compiled.json: microseconds of a step in both runtimes and in other engines, on one thread or two,
called from Python and from C, and how often they hold the roofline of `edgemem.measure`; of the mid step also how long
a process takes to its first output, and its memory. Steps with narrow weights are in `bench.narrow`. Steps that were
not asked for stay as they were, with the machine that they were measured on; each is written as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import narrow
from bench.claims import Section, Table
from bench.timing import RESULTS, machine, write
from edgemem.measure import SECOND_CORE_SECONDS, WARM_SECONDS, measure
from edgemem.peers import RELATIVE

STEPS: Mapping[str, tuple[str, dict[str, object]]] = {
    "small": ("rwkv4", {"layers": 2, "width": 64, "vocab": 64}),
    "kws": ("kws-lmuformer", {}),
    "mid": ("rwkv4", {"layers": 8, "width": 512, "vocab": 4096}),
    "segment": ("memformer", {"layers": 4, "width": 256, "heads": 4, "slots": 16, "segment": 64}),
    "base": ("rwkv4", {"layers": 12, "width": 768, "vocab": 50277}),
    "ring": ("lm-transformer", {"layers": 2, "width": 256, "heads": 8, "context": 8192}),
    "folded": ("folding", {"layers": 2, "width": 128, "heads": 2, "left": 8192, "segment": 2, "look_ahead": 0}),
}
STEPS = {**STEPS, **{f"{label}-2": STEPS[label] for label in ("mid", "base")}}  # on two threads
CACHED = ("ring", "folded")  # each step of the proof at export moves their whole caches: a few must do
NAMES = {
    "small": "RWKV-4, 2 layers of 64",
    "kws": "the shipped keyword spotter",
    "mid": "RWKV-4, 8 layers of 512",
    "segment": "Memformer, 4 layers of 256, 64 rows a step",
    "base": "RWKV-4, 12 layers of 768, 50,277 tokens",
    "mid-2": "RWKV-4, 8 layers of 512, two threads",
    "base-2": "RWKV-4, 12 layers of 768, 50,277 tokens, two threads",
    "ring": "Transformer, 2 layers of 256, 8,192 tokens cached",
    "folded": "folding encoder, 2 layers of 128, 8,192 frames cached, 2 frames a step",
}
PEERS = ("onnxruntime", "openvino", "litert")
ROUNDS, STARTS = 30, 15
HEADS = (
    "step",
    "weights and state",
    "engine",
    "p50 µs",
    "spread",
    "best µs",
    "first µs",
    "from C µs",
    "x roofline",
    "best x",
    "aot takes",
    "at best",
)
MB = 1e6
SLACK_BYTES = 4e6  # of resident memory, beyond weights, state and arena
# what is asked of each step: the engine, whose time (from C, or through Python), against what, at most
GOALS: Sequence[tuple[str, str, str, float]] = (
    ("small", "p50_us", "onnxruntime", 0.13),
    ("small", "p50_us", "litert", 0.5),
    ("small", "c_roofline_ratio", "roofline", 2.0),
    ("kws", "p50_us", "litert", 0.6),
    ("kws", "c_roofline_ratio", "roofline", 1.3),
    ("mid", "roofline_ratio", "roofline", 1 / 0.9),
    ("mid", "p50_us", "best peer", 1.05),
    ("segment", "roofline_ratio", "roofline", 1 / 0.85),
    ("segment", "p50_us", "best peer", 1.0),
    ("base", "roofline_ratio", "roofline", 1 / 0.9),
    ("base", "p50_us", "best peer", 1.05),
    ("mid-2", "roofline_ratio", "roofline", 1 / 0.9),
    ("mid-2", "p50_us", "best peer", 1.05),
    ("base-2", "roofline_ratio", "roofline", 1 / 0.9),
    ("base-2", "p50_us", "best peer", 1.05),
    ("ring", "roofline_ratio", "roofline", 1 / 0.7),
    ("ring", "p50_us", "best peer", 1.0),
    ("folded", "roofline_ratio", "roofline", 1 / 0.7),
    ("folded", "p50_us", "best peer", 1.0),
)


def main() -> None:
    labels = [*STEPS, *narrow.GROUPS]
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(labels), metavar="STEPS", help=f"of {', '.join(labels)}")
    parser.add_argument("--peers", default=",".join(PEERS), help="engines beside it; empty: none")
    parser.add_argument("--rounds", type=int, help="fewer than a result needs, to see whether everything runs")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="FOLDER", help="of compiled.json")
    arguments = parser.parse_args()
    against = [name for name in arguments.peers.split(",") if name]
    wanted = arguments.only.split(",")
    if unknown := [label for label in wanted if label not in labels]:
        parser.error(f"--only: {', '.join(labels)} were wanted, {', '.join(unknown)} came")
    for label in wanted:
        begin = time.perf_counter()
        take = narrow_step if label in narrow.GROUPS else float_step
        with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
            stored(take(label, Path(folder), against, arguments.rounds), arguments.output)
        print(f"{label}: {time.perf_counter() - begin:.0f} s", flush=True)


def float_step(label: str, folder: Path, against: Sequence[str], rounds: int | None) -> dict[str, Any]:
    """What the result file is to hold of one step in float32."""
    found, program, seconds = measured(label, folder, against, rounds or ROUNDS)
    rows = [row | {"file": label} for row in found["rows"]]
    step = {"rows": rows, "compile_s": round(seconds, 2), "skipped": found.get("skipped", [])}
    for row in rows:
        print(line(row, rows), flush=True)
    for peer in step["skipped"]:
        print(f"{label}: {peer['runtime']} does not run: {peer['reason']}", flush=True)
    result: dict[str, Any] = {"rounds": rounds or ROUNDS, "steps": {label: step}, "peers": found.get("peers", {})}
    if label == "mid":
        result["start"] = start(program)
        print(f"mid: {result['start']}", flush=True)
    return result


def narrow_step(label: str, folder: Path, against: Sequence[str], rounds: int | None) -> dict[str, Any]:
    """The same of a group of narrow ones."""
    found = narrow.measured(label, folder, against, rounds or narrow.GROUPS[label].rounds)
    for row in found["rows"]:
        print(narrow.line(label, row), flush=True)
    for peer in found["skipped"]:
        print(f"{label}: {peer['runtime']} does not run: {peer['reason']}", flush=True)
    return {"narrow": {label: found}}


def stored(result: dict[str, Any], folder: Path = RESULTS) -> None:
    """Write what was measured; steps that were not measured now stay as they were. Each knows its machine."""
    path = folder / "compiled.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    earlier = kept.pop("machine", None)
    for part in ("steps", "narrow"):
        for step in kept.get(part, {}).values():
            step.setdefault("machine", earlier)
        measured_now = {label: step | {"machine": machine()} for label, step in result.get(part, {}).items()}
        result[part] = {**kept.get(part, {}), **measured_now}
    result["peers"] = {**kept.get("peers", {}), **result.get("peers", {})}
    write("compiled", {**kept, **result}, folder)


def measured(label: str, folder: Path, against: Sequence[str], rounds: int) -> tuple[dict[str, Any], Path, float]:
    """The rows of one step, the compiled folder, and the seconds that compiling took."""
    from edgemem.boards import board
    from edgemem.export import export_model
    from edgemem.export.exporter import CERTIFIED_STEPS
    from edgemem.runtimes.aot.compiler import compile_model

    model, settings = STEPS[label]
    path = folder / f"{label}.onnx"
    export_model(model, path, settings, certified_steps=4 if label in CACHED else CERTIFIED_STEPS)
    begin = time.perf_counter()
    compile_model(path, board("host"), folder / "program", name="measured")
    seconds = time.perf_counter() - begin
    threads = 2 if label.endswith("-2") else 1
    found = measure([path], ("ort", "aot"), threads, rounds, against=against)
    return found, folder / "program", seconds


def start(program: Path) -> dict[str, Any]:
    """Milliseconds from the start of a process to its first output, and the memory it then holds; medians.

    Modules are compiled once, as an installation has them, whatever this process may not write.
    """
    sizes = json.loads((program / "manifest.json").read_text())["bytes"]
    token = bytes(8)
    code = f"import edgemem; edgemem.load({str(program)!r}).stream().step([[0]])"
    commands = {
        "edgemem-run": [str(program / "edgemem-run")],
        "python": [sys.executable, "-c", code],
        "python, numpy alone": [sys.executable, "-c", "import numpy"],
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(program.parent / "bytecode")
    for arguments in commands.values():
        subprocess.run(arguments, check=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    times: dict[str, list[float]] = {command: [] for command in commands}
    resident = []
    for _ in range(STARTS):
        for command, arguments in commands.items():
            begin = time.perf_counter()
            if command != "edgemem-run":
                subprocess.run(arguments, check=True, env=environment)
                times[command].append((time.perf_counter() - begin) * 1e3)
                continue
            process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(token)
            process.stdin.flush()
            process.stdout.read(1)
            times[command].append((time.perf_counter() - begin) * 1e3)
            resident.append(resident_bytes(process.pid))
            process.communicate()
    return {
        "ms": {command: round(statistics.median(values), 1) for command, values in times.items()},
        "resident_bytes": max(resident),
        "planned_bytes": sizes["weights"] + sizes["state"] + sizes["arena"],
    }


def resident_bytes(pid: int) -> int:
    """The most memory that a process has held; `getrusage` would count the process that started it."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in status if row.startswith("VmHWM"))


def engine(rows: Sequence[Mapping[str, Any]], name: str, key: str) -> float | None:
    """Microseconds of an engine, or of the best of all others."""
    peers = {row["runtime"]: float(row[key]) for row in rows if row["runtime"] not in ("aot", "ort")}
    return min(peers.values(), default=None) if name == "best peer" else peers.get(name)


def line(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """One row for people."""
    bare = f"{row['c_p50_us']:.1f}" if "c_p50_us" in row else ""
    own = next(r["p50_us"] for r in rows if r["runtime"] == "aot")
    return (
        f"{row['file']:<9}{row['runtime']:<12}{row['p50_us']:>10.1f}{bare:>12}{row['roofline_ratio']:>13.2f}"
        f"{own / row['p50_us']:>12.2f}"
    )


def section(result: Mapping[str, Any]) -> Section:
    """The part of the results page."""
    steps = result["steps"]
    peers = ", ".join(f"{package} {version}" for found in result["peers"].values() for package, version in found.items()
                      if package in ("onnxruntime", "openvino", "ai-edge-litert"))  # fmt: skip
    began = result["start"]
    return Section(
        title="Compiled steps",
        text=(
            f"One step on one thread (or two, where it says so) of {processors(result)}, float32 weights; all "
            f"engines in turn in {result['rounds']} rounds, each in a process and an environment of its own ({peers}), "
            "bound to its buffers, once its outputs agree. The roofline, max(bytes / read bandwidth at that footprint, "
            "multiply-accumulates / peak), is measured in the same rounds. `ort` and `aot` are timed through "
            f"`stream.step`, which checks and copies. Every engine's turn begins with {WARM_SECONDS * 1e3:.0f} ms that "
            f"do not count, on two threads {SECOND_CORE_SECONDS * 1e3:.0f}, in which the second core wakes: "
            "the `first` step after all others had theirs finds the caches full of what they read, and "
            "takes up to twice as long; the roofline and steps from C, which repeat, do not meet that. The shortest "
            "call (`best`, beside the shortest roofline) stands beside the median, which other processes on the "
            "machine lengthen.\n\n"
            "What was tried where a goal is missed: the spotter's products read as fast as the second cache "
            "gives; a tenth of its step are nine layer norms of 64 numbers, whose sums are chains that wait for "
            "themselves. Weights of `mid` and more come from a cache that other tenants of the machine share, or "
            "from memory: a step then takes up to half as long again from one minute to the next, and the probe, "
            "which reads the same bytes at once again, does not; `best` tells that from a slow kernel. Asked for "
            "ahead, weights that many rows share (a segment) come a fifth faster, weights that are read once up "
            "to a third slower. Of the folding encoder's step three quarters are keys and values read at the "
            "memory's speed, the rest masks and exponentials.\n\n"
            "Narrow weights: of as many bits, each engine has its own quantization of the same float32 model "
            "(`-int8`: products of bytes on activations that it rounds in every step; `-blocks8`, `-int4`: groups of "
            "32 weights with a scale; OpenVINO's by NNCF, LiteRT's by its quantizer, one scale per output), and two "
            "also run our file. Their errors are their own, and are bounded only so that nothing else than the model "
            f"is timed: over a few steps by {RELATIVE['int8']} of its largest output in 8 bits, by "
            f"{RELATIVE['int4']} in 4.\n\n"
            "The roofline's peak of bytes is that of vectors (VNNI): products of many rows by a core's matrix unit "
            "(AMX), which `compile` names, are faster, and a step may take less than the roofline says.\n\n"
            "What was tried there: `w8` of the base model is bounded by memory on one thread, as LiteRT is; with "
            "numbers of three bytes a core has fewer reads under way than with `w8a8-dynamic`, and reading ahead, "
            "several places at once or large pages do not make it faster. Plain vector codes are bounded by the "
            "core: 64 of them take 12 permutations of bytes, at most one a cycle, and every four inputs tables of "
            "256 entries, which a narrow product makes for few outputs; mirrored codebooks take half of both. Two "
            "bytes of an entry in place of three would leave an error of 2^-15 of the largest term, more than the "
            "tolerance."
        ),
        tables=[
            Table("Steps", HEADS, [cells(label, row, steps[label]["rows"]) for label in STEPS if label in steps
                                   for row in steps[label]["rows"]]),
            Table("What is asked of aot", ("step", "from", "against", "at most", "measured", "at best", ""),
                  goals(steps)),
            Table("Start and memory of the mid step, compiled in "
                  f"{steps['mid']['compile_s']:.0f} s", ("what", "wanted", "measured", ""), starts(began)),
            *(narrow.tables(result["narrow"]) if result.get("narrow") else []),
        ],
        recipe="bench.compiled",
    )  # fmt: skip


def processors(result: Mapping[str, Any]) -> str:
    """The processor that all steps were measured on, or which step was measured on which."""
    steps: dict[str, list[str]] = {}
    for label, step in {**result["steps"], **result.get("narrow", {})}.items():
        steps.setdefault(step.get("machine", result["machine"])["cpu"], []).append(label)
    if len(steps) == 1:
        return next(iter(steps))
    return "several machines (" + "; ".join(f"{cpu}: {', '.join(labels)}" for cpu, labels in steps.items()) + ")"


def cells(label: str, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row of the first table."""
    own = next(other for other in rows if other["runtime"] == "aot")
    bare = f"{row['c_p50_us']:,.1f}" if "c_p50_us" in row else ""
    first = f"{row['first_us']:,.1f}" if "first_us" in row else ""
    return [NAMES[label], f"{row['bytes_per_step'] / MB:.2f} MB", f"`{row['runtime']}`", f"{row['p50_us']:,.1f}",
            f"{row['spread']:.1%}", f"{row['best_us']:,.1f}", first, bare, f"{row['roofline_ratio']:.2f}",
            f"{row['best_roofline_ratio']:.2f}", f"{own['p50_us'] / row['p50_us']:.2f}",
            f"{own['best_us'] / row['best_us']:.2f}"]  # fmt: skip


def goals(steps: Mapping[str, Any]) -> list[list[str]]:
    """What was wanted of each step, beside what came: by the medians, and by the shortest calls."""
    lines = []
    for label, key, against, most in GOALS:
        if label not in steps:
            continue
        rows = steps[label]["rows"]
        own = next(row for row in rows if row["runtime"] == "aot")
        if against == "roofline":
            found = [own[key], own["best_roofline_ratio"] if key == "roofline_ratio" else None]
        else:
            found = [
                own[column] / other if (other := engine(rows, against, column)) else None
                for column in ("p50_us", "best_us")
            ]
        shown = ["–" if value is None else f"{value:.2f}" for value in found]
        verdict = "not run" if found[0] is None else "reached" if found[0] <= most else "missed"
        lines.append([NAMES[label], "C" if key.startswith("c_") else "Python", against, f"{most:.2f}", *shown, verdict])
    return lines


def starts(began: Mapping[str, Any]) -> list[list[str]]:
    """Start-up and resident memory, beside what was wanted."""
    ms = began["ms"]
    above = ms["python"] - ms["python, numpy alone"]
    beyond = began["resident_bytes"] - began["planned_bytes"]
    rows = [
        ("`edgemem-run`, start to first output", "30 ms", f"{ms['edgemem-run']:.1f} ms", ms["edgemem-run"] <= 30),
        ("Python, start to end, beyond `import numpy`", "60 ms", f"{above:.1f} ms", above <= 60),
        ("`edgemem-run`, resident beyond weights, state and arena", f"{SLACK_BYTES / MB:.0f} MB",
         f"{beyond / MB:.1f} MB", beyond <= SLACK_BYTES),
    ]  # fmt: skip
    return [[what, wanted, came, "reached" if holds else "missed"] for what, wanted, came, holds in rows]


if __name__ == "__main__":
    main()
