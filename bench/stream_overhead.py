"""What does `stream.step()` cost over onnxruntime's own loop? On the small RWKV-4 step, where it shows most.

python -m bench.stream_overhead

writes bench/results/stream_overhead.json: microseconds of both loops, one thread, taking turns.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np

from bench.timing import interleaved, spread, write

SETTINGS = {"layers": 2, "width": 64, "vocab": 64}
ROUNDS, CALLS = 30, 500


def main() -> None:
    import onnxruntime

    import edgemem
    from edgemem.export import export_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.onnx"
        export_model("rwkv4", path, SETTINGS, seed=0)
        program = edgemem.load(path)
        stream, token = program.stream(), np.array([[3]])
        bare = program.new_state()
        turn = iter(())

        def loop() -> None:  # ping-pong as any careful user would write it
            nonlocal turn
            binding = next(turn, None)
            if binding is None:
                turn = iter(bare.bindings)
                binding = next(turn)
            session.run_with_iobinding(binding)

        session = program._session
        times = interleaved({"run_with_iobinding": loop, "stream.step": lambda: stream.step(token)}, ROUNDS, CALLS)
    base = statistics.median(times["run_with_iobinding"])
    engine = f"onnxruntime {onnxruntime.__version__}, 1 thread"
    print(f"RWKV-4 small step {SETTINGS} | {engine} | {ROUNDS} rounds x {CALLS} steps")
    print(f"{'loop':<22}{'p50 us':>8}{'spread':>9}")
    rows = {}
    for name, values in times.items():
        p50 = statistics.median(values)
        rows[name] = {"p50_us": round(p50, 2), "spread": round(spread(values), 4), "ratio": round(p50 / base, 3)}
        print(f"{name:<22}{p50:>8.1f}{spread(values):>9.1%}     ratio {p50 / base:.2f}")
    write("stream_overhead", {"settings": SETTINGS, "rows": rows, "onnxruntime": onnxruntime.__version__})


if __name__ == "__main__":
    main()
