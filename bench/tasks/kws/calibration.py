"""The speech that quantization calibrates on: training words, never those that models are judged by.

    python -m bench.tasks.kws.calibration

writes `edgemem/tasks/data/speech_calibration.npz`: `clips` [12, 32000] int16, each two seconds of training words at a
level between -30 and -6 dBFS, a third of them in noise.
"""

from __future__ import annotations

import numpy as np

from bench.tasks.kws import data
from edgemem.checkpoints import packaged
from edgemem.files import atomic_write

CLIPS, SAMPLES, WORDS = 12, 32_000, 3
SEED = 41
NOISE_SHARE = 3  # one clip of three


def clip(words: data.WordSet, rng: np.random.Generator, noisy: bool) -> np.ndarray:
    """Two seconds: a few words at random places, one level for all, int16."""
    sound = np.zeros(SAMPLES)
    for index in rng.integers(len(words), size=WORDS):
        word = np.asarray(words[int(index)].sound, np.float64)[: SAMPLES // 2]
        at = int(rng.integers(SAMPLES - len(word)))
        sound[at : at + len(word)] += word / max(float(np.abs(word).max()), 1e-9)
    level = 10 ** (rng.uniform(-30, -6) / 20)
    sound *= level / max(float(np.abs(sound).max()), 1e-9)
    if noisy:
        sound += rng.standard_normal(SAMPLES) * level * 10 ** (-rng.uniform(10, 25) / 20)
    return np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)


def main() -> None:
    """Write the excerpt."""
    rng, words = np.random.default_rng(SEED), data.load("train")
    clips = np.stack([clip(words, rng, index % NOISE_SHARE == 0) for index in range(CLIPS)])
    path = packaged("speech_calibration.npz")
    with atomic_write(path) as file:
        np.savez_compressed(file, clips=clips)
    print(f"{path}: {clips.shape} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
