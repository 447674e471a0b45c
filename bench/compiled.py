"""How far are compiled steps from what the machine can do, and from onnxruntime?

python -m bench.compiled [--mid]

writes bench/results/compiled.json: microseconds of a step in both runtimes, called from Python and from C, on one
thread, and how often they hold the roofline of `edgemem.measure`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench.timing import write
from edgemem.measure import measure

STEPS = {
    "small rwkv4": ("rwkv4", {"layers": 2, "width": 64, "vocab": 64}),
    "keyword spotter": ("kws-lmuformer", {}),
}
MID = {"mid rwkv4": ("rwkv4", {"layers": 8, "width": 512, "vocab": 4096})}
ROUNDS = 30


def main() -> None:
    from edgemem.export import export_model

    parser = argparse.ArgumentParser()
    parser.add_argument("--mid", action="store_true", help="also the 29-million-parameter step, which takes minutes")
    steps: dict[str, tuple[str, dict[str, object]]] = STEPS | (MID if parser.parse_args().mid else {})
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for label, (model, settings) in steps.items():
            path = Path(folder) / f"{label.replace(' ', '_')}.onnx"
            export_model(model, path, settings)
            found = measure([path], ("ort", "aot"), rounds=ROUNDS)
            rows += [{**row, "file": label} for row in found["rows"]]
    print(f"{found['machine']['cpu']}, {found['machine']['cores']} cores | 1 thread | {ROUNDS} rounds")
    print(f"{'step':<16}{'runtime':<8}{'p50 us':>8}{'from C us':>12}{'x roofline':>13}{'x onnxruntime':>16}")
    for row in rows:
        print(line(row, next(r["p50_us"] for r in rows if r["file"] == row["file"] and r["runtime"] == "ort")))
    write("compiled", {"rounds": ROUNDS, "rows": rows})


def line(row: dict[str, Any], base_us: float) -> str:
    """One row for people."""
    bare = f"{row['c_p50_us']:.1f}" if "c_p50_us" in row else ""
    return (
        f"{row['file']:<16}{row['runtime']:<8}{row['p50_us']:>8.1f}{bare:>12}{row['roofline_ratio']:>13.2f}"
        f"{row['p50_us'] / base_us:>16.2f}"
    )


if __name__ == "__main__":
    main()
