"""The held-out text that travels with the package, so that `edgemem eval --task bytes` works wherever it is installed.

    python -m bench.tasks.bytes.excerpt

writes edgemem/tasks/data/bytes_excerpt.npz: the first 8 KiB of the files of the test split that are long enough. Files
of `encodings` are left out: most are one table with other numbers in it, which the training split is full of.

    pieces   [n, 8192] uint8     names   [n] str
"""

from __future__ import annotations

import numpy as np

from bench.tasks.bytes.data import files
from edgemem.checkpoints import packaged

PIECE_BYTES = 8192
PIECES = 12
LARGEST_BYTES = 200_000


def main() -> None:
    """Write the file and say what is in it."""
    texts = [(name, path.read_bytes()) for name, path in files("test") if not name.startswith("encodings/")]
    long = [(name, text[:PIECE_BYTES]) for name, text in texts if len(text) >= PIECE_BYTES][:PIECES]
    pieces = np.stack([np.frombuffer(text, np.uint8) for _, text in long])
    path = packaged("bytes_excerpt.npz")
    np.savez_compressed(path, pieces=pieces, names=np.array([name for name, _ in long]))
    assert pieces.size <= LARGEST_BYTES, f"{pieces.size} bytes, at most {LARGEST_BYTES} fit into the package"
    print(f"{path}: {len(long)} files, {pieces.size:,} bytes in {path.stat().st_size:,}")


if __name__ == "__main__":
    main()
