"""What quantization calibrates word recognisers on: sequences of the kind that they are trained on, by training voices.

    python -m bench.tasks.words.calibration         some 1 440 strings are spoken anew: two minutes on two cores

writes `edgemem/tasks/data/words_calibration.npz`: `features` [320, 79, 240] float16, each sequence 4.8 s of strings,
in rooms and noise, in steps of a half (log-mels have a standard deviation of about 3), so that the file packs well.
"""

from __future__ import annotations

import argparse
import io

import numpy as np

from bench.tasks.kws import synthesis, wordset
from bench.tasks.kws.voices import DRAWN
from bench.tasks.words import compose, data
from bench.tasks.words.strings import recipe
from edgemem.checkpoints import packaged
from edgemem.errors import ConfigError
from edgemem.files import atomic_write

EVERY = 13  # string of the training split
SEQUENCES = 320  # a multiple of compose.BATCH
SEED = 5
STEPS_PER_UNIT = 2
LARGEST_BYTES = 3_500_000


def sequences(workers: int) -> np.ndarray:
    """[SEQUENCES, rows, width] float16"""
    synthesis.check_tools()
    asked = recipe("train", DRAWN["train"])[::EVERY]
    composer = compose.Composer(
        wordset.gathered(synthesis.all_spoken(asked, workers, data.said)), compose.LONG_SECONDS, SEED
    )
    features = np.concatenate([composer.batch()[0] for _ in range(SEQUENCES // compose.BATCH)])
    return (np.rint(features * STEPS_PER_UNIT) / STEPS_PER_UNIT).astype(np.float16)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="synthesiser processes at a time")
    features = sequences(parser.parse_args().workers)
    path = packaged("words_calibration.npz")
    packed = io.BytesIO()
    np.savez_compressed(packed, features=features)
    size = packed.tell()
    if size > LARGEST_BYTES:
        raise ConfigError(
            f"{path} would have {size:,} bytes, {LARGEST_BYTES:,} fit into the package; take fewer SEQUENCES"
        )
    with atomic_write(path) as file:
        file.write(packed.getvalue())
    print(f"{path}: {list(features.shape)}, {size} bytes")


if __name__ == "__main__":
    main()
