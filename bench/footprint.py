"""How long does `import edgemem` take, and how big is what a device installs?

python -m bench.footprint

writes bench/results/footprint.json: seconds that imports take, and bytes of edgemem and of what it needs to stream.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bench.timing import write

ROUNDS = 15
# Only what streaming a compiled program or a file needs: no torch, no ONNX library.
NEEDED = (
    "numpy",
    "onnxruntime",
    "safetensors",
    "pydantic",
    "pydantic_core",
    "click",
    "rich",
    "flatbuffers",
    "protobuf",
)
IMPORTS = {
    "nothing": "pass",
    "numpy": "import numpy",
    "edgemem": "import edgemem, numpy; edgemem.load, edgemem.Stream",
}


def import_seconds() -> dict[str, float]:
    """Wall time of a process that imports, less one that does nothing; medians of interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(ROUNDS):
        for name, code in IMPORTS.items():
            timer = f"import time; t = time.perf_counter(); exec({code!r}); print(time.perf_counter() - t)"
            out = subprocess.run([sys.executable, "-c", timer], capture_output=True, text=True, check=True).stdout
            times[name].append(float(out))
    return {name: statistics.median(values) for name, values in times.items()}


def installed_bytes(name: str) -> int:
    """Bytes of an installed distribution's files."""
    files = metadata.files(name) or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file())


def package_bytes() -> int:
    """Bytes of edgemem's own modules and data."""
    import edgemem
    import edgemem.devices
    import edgemem.export
    import edgemem.quant
    import edgemem.runtimes

    folders = {
        Path(str(m.__file__)).parent
        for m in (edgemem, edgemem.devices, edgemem.export, edgemem.quant, edgemem.runtimes)
    }
    return sum(f.stat().st_size for d in folders for f in d.rglob("*") if f.is_file() and "__pycache__" not in f.parts)


def main() -> None:
    seconds = import_seconds()
    sizes = {name: installed_bytes(name) for name in NEEDED}
    own = package_bytes()
    print(
        f"import edgemem with its stream: {seconds['edgemem']:.3f} s (numpy alone {seconds['numpy']:.3f} s), "
        f"median of {ROUNDS} processes"
    )
    total = own + sum(sizes.values())
    print(f"installed: edgemem {own / 1e6:.1f} MB; with what it needs to stream {total / 1e6:.0f} MB")
    write("footprint", {"import_seconds": seconds, "bytes": {"edgemem": own, **sizes}})


if __name__ == "__main__":
    main()
