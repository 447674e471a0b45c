"""The held-out clips that travel with the package, so that `edgemem eval --task kws` works wherever it is installed.

    python -m bench.tasks.kws.excerpt

writes edgemem/tasks/data/kws_excerpt.npz: clean clips of one second by the test voices, as many of every label.

    clips   [n, 16000] int16     labels [n] int64, index into LABELS     words [n] str     voices [n] str
"""

from __future__ import annotations

import numpy as np

from bench.tasks.kws import clip_sets
from bench.tasks.kws.data import load
from edgemem.checkpoints import packaged
from edgemem.tasks.kws import LABELS

SEED = 4  # another choice than the evaluation sets'
PER_LABEL = 15
LARGEST_BYTES = 2_500_000


def main() -> None:
    """Write the file and say what is in it."""
    path = packaged("kws_excerpt.npz")
    clips = clip_sets.evaluation_set(load("test"), None, PER_LABEL, SEED)
    clips.save(path)
    size = path.stat().st_size
    assert size <= LARGEST_BYTES, f"{path} has {size} bytes, at most {LARGEST_BYTES} fit into the package"
    counts = np.bincount(clips.labels, minlength=len(LABELS))
    print(f"{path}: {len(clips.labels)} clips, {size / 1e6:.2f} MB, {len(set(clips.voices) - {''})} voices")
    print(", ".join(f"{label} {count}" for label, count in zip(LABELS, counts, strict=True)))


if __name__ == "__main__":
    main()
