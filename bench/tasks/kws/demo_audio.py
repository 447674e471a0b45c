"""The sentence of `edgemem demo`: keywords among other words, in noise, by a voice that training never hears.

    python -m bench.tasks.kws.demo_audio

writes edgemem/tasks/data/demo.wav and demo.json. The words are spoken one by one and joined, so that their times are
known:

    {"voice": "flite:rms", "snr_db": 15.0, "words": [{"word": "hello", "start": 0.4, "end": 0.9}, ...]}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.tasks.kws import synthesis, wordset
from bench.tasks.kws.augment import in_noise
from bench.tasks.kws.data import FOLDER
from bench.tasks.kws.excerpt import DATA
from bench.tasks.kws.noise import NoiseBank
from bench.tasks.kws.wordset import SAMPLE_RATE, Spoken

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 7
VOICE = "rms"
# A comma keeps the voice up, a full stop lets it fall. Times are of the pause before each word.
SENTENCE = (
    ("hello", ",", 0.40), ("computer", ",", 0.12), ("please", "", 0.35), ("go", ".", 0.10), ("left", ".", 0.25),
    ("then", "", 0.35), ("stop", ".", 0.12), ("turn", "", 0.40), ("the", "", 0.06), ("music", "", 0.06),
    ("off", ".", 0.10),
)  # fmt: skip
LAST_PAUSE_SECONDS = 0.6
SNR_DB = 15.0
GAIN = 1.6  # of the whole, so that it is comfortable to listen to


def spoken_sentence() -> tuple[Array, list[dict[str, Any]]]:
    """The sentence without noise [samples], and the times of its words in seconds."""
    parts: list[tuple[int, Spoken]] = []
    at = 0
    for word, ending, pause in SENTENCE:
        said = synthesis.spoken(synthesis.Rendition(word, "flite", VOICE, ending=ending))
        at += round(pause * SAMPLE_RATE)
        parts.append((at, said))
        at += said.end - said.start
    sound = np.zeros(at + round(LAST_PAUSE_SECONDS * SAMPLE_RATE), np.float32)
    words = []
    for start, said in parts:
        first = start - said.start
        sound[first : first + len(said.sound)] += said.sound
        end = start + said.end - said.start
        words.append({"word": said.word, "start": round(start / SAMPLE_RATE, 3), "end": round(end / SAMPLE_RATE, 3)})
    return sound, words


def main() -> None:
    """Write both files."""
    import soundfile

    synthesis.check_tools()
    sound, words = spoken_sentence()
    random = np.random.default_rng(SEED)
    noise = NoiseBank(wordset.read(FOLDER, "test"), SEED)
    noisy = in_noise(sound, noise.mixed({"pink": 1.0, "babble": 0.7, "hum": 0.3}, len(sound), random), SNR_DB)
    path = DATA / "demo.wav"
    soundfile.write(path, np.clip(GAIN * noisy, -1.0, 1.0), SAMPLE_RATE, subtype="PCM_16")
    facts = {"voice": f"flite:{VOICE}", "snr_db": SNR_DB, "words": words}
    Path(DATA / "demo.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{path}: {len(sound) / SAMPLE_RATE:.1f} s, {path.stat().st_size / 1024:.0f} KiB")
    print(" ".join(f"{word['word']}@{word['start']:.2f}" for word in words))


if __name__ == "__main__":
    main()
