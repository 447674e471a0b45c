"""Sound in: audio files, raw PCM and the microphone, as float32 mono in [-1, 1].

    sound = read_audio("speech.flac")                 [samples] at 16 kHz, whatever the file's rate and channels
    for block in read_pcm16(sys.stdin.buffer, 1600)   [<= 1600] each, as they come
    for block in microphone()                         [320] each, until the caller stops

`FrontEnd`, which turns samples into features, is in `edgemem.frontend` and can be imported from here too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

from edgemem.errors import InputError, MissingDependency
from edgemem.frontend import FrontEnd, FrontEndStream

__all__ = ["SAMPLE_RATE", "FrontEnd", "FrontEndStream", "microphone", "read_audio", "read_pcm16"]

Array = np.ndarray[Any, np.dtype[Any]]

SAMPLE_RATE = 16_000
PCM16_FULL_SCALE = 32_768.0
PCM16_BYTES = 2
MICROPHONE_BLOCK_SAMPLES = 320  # 20 ms at 16 kHz
RESAMPLING_QUALITY = "HQ"

log = logging.getLogger(__name__)


def read_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Array:
    """A WAV, FLAC or OGG file as float32 mono [samples] at `sample_rate`.

    Channels are averaged; another rate is resampled.

    Raises:
        InputError: the file is missing, empty, not audio, or holds NaN or infinity.
        MissingDependency: soundfile is not installed, or soxr where the file has another rate.
    """
    path = Path(path)
    if not path.is_file():
        came = "a folder" if path.is_dir() else "nothing"
        raise InputError(f"{path}: an audio file was wanted, {came} is there; give a .wav, .flac or .ogg file")
    soundfile = audio_package("soundfile")
    try:
        channels, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: a WAV, FLAC or OGG file was wanted, this cannot be read as one ({error}); convert it first"
        ) from error
    if not np.isfinite(channels).all():
        first = int(np.flatnonzero(~np.isfinite(channels).all(axis=1))[0])
        raise InputError(f"{path}: finite samples were wanted, NaN or infinity came at sample {first}; clean the file")
    sound: Array = channels.mean(axis=1, dtype=np.float32)
    if rate != sample_rate and len(sound):
        sound = audio_package("soxr").resample(sound, rate, sample_rate, quality=RESAMPLING_QUALITY)
    if not len(sound):
        raise InputError(f"{path}: at least one sample was wanted, the file has none; record it again")
    return sound


def read_pcm16(stream: BinaryIO, block: int) -> Iterator[Array]:
    """Blocks of float32 [<= block] from raw 16-bit little-endian mono PCM, to the end of the stream.

    Raises:
        InputError: half a sample at the end; the whole samples before it have been given.
    """
    odd = b""
    while data := stream.read(block * PCM16_BYTES - len(odd)):
        data = odd + data
        whole = len(data) - len(data) % PCM16_BYTES
        odd = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(PCM16_FULL_SCALE)
    if odd:
        raise InputError(
            "standard input: 16-bit PCM, two bytes per sample, was wanted, an odd number of bytes came; "
            "convert it, for example with `ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -`"
        )


def microphone(
    sample_rate: int = SAMPLE_RATE, block: int = MICROPHONE_BLOCK_SAMPLES, device: int | str | None = None
) -> Iterator[Array]:
    """Blocks of float32 [block] from a microphone, without an end; the default one unless `device` names another.

    Sound that was lost because the caller was too slow is logged as a warning.

    Raises:
        MissingDependency: sounddevice or the PortAudio library is not installed.
        InputError: there is no such microphone, or it does not record at this rate.
    """
    sounddevice = audio_package("sounddevice", extra="mic")
    try:
        source = sounddevice.InputStream(
            samplerate=sample_rate, blocksize=block, device=device, channels=1, dtype="float32"
        )
    except (sounddevice.PortAudioError, ValueError) as error:
        raise InputError(
            f"microphone {device or 'default'}: mono at {sample_rate} Hz was wanted ({error}); "
            "`python -m sounddevice` lists the devices"
        ) from error
    with source:
        while True:
            samples, overflowed = source.read(block)
            if overflowed:
                log.warning("microphone: sound was lost, the program is too slow for it")
            yield samples[:, 0].copy()


def audio_package(name: str, extra: str = "audio") -> ModuleType:
    """An optional package.

    Raises:
        MissingDependency: with the command that installs it.
    """
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependency(f"{name} is not installed; pip install 'edgemem[{extra}]'") from error
    except OSError as error:  # the package is there, the library that it loads is not
        raise MissingDependency(
            f"{name} is installed, its system library is not ({error}); install it, "
            "for example with `apt install libportaudio2 libsndfile1`"
        ) from error
