"""The held-out strings that travel with the package, so that `edgemem eval --task words` works on an installed copy.

    python -m bench.tasks.words.excerpt

writes edgemem/tasks/data/words_excerpt.npz: clean strings by all test voices.

    codes    [total] uint8     every sound, companded (`edgemem.tasks.words.expanded` turns it into samples)
    offsets  [n + 1] int64     string i is codes[offsets[i]:offsets[i + 1]]
    strings  [n] str           what is said           voices [n] str
"""

from __future__ import annotations

import numpy as np

from bench.tasks.words import data, evaluate
from edgemem.checkpoints import packaged
from edgemem.files import atomic_write
from edgemem.tasks.words import companded

SEED = 4  # another choice of silences than the evaluation's
COUNT = 57  # three by each voice
AFTER_SECONDS = 0.3
LARGEST_BYTES = 1_500_000


def main() -> None:
    """Write the file and say what is in it."""
    path = packaged("words_excerpt.npz")
    made = evaluate.clips(data.load("test"), None, SEED, COUNT, AFTER_SECONDS)
    sounds = [companded(clip.sound) for clip in made]
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            codes=np.concatenate(sounds),
            offsets=np.cumsum([0, *map(len, sounds)], dtype=np.int64),
            strings=np.array([" ".join(clip.words) for clip in made]),
            voices=np.array([clip.voice for clip in made]),
        )
    size, words = path.stat().st_size, sum(len(clip.words) for clip in made)
    assert size <= LARGEST_BYTES, f"{path} has {size} bytes, at most {LARGEST_BYTES} fit into the package"
    print(f"{path}: {len(made)} strings, {words} words, {len({c.voice for c in made})} voices, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
