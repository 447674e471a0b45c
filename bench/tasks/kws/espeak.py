"""espeak-ng through its library: a word takes a millisecond, where a process of its own takes thirty.

The synthesiser keeps a little state from word to word (the phase of its flutter, its noise), so that the bytes of a
word depend on those before it: who wants the same bytes again says the same words in the same order, in a new process.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.errors import InputError, MissingDependency

Array = np.ndarray[Any, np.dtype[Any]]

SYNCHRONOUS = 2  # of espeak_AUDIO_OUTPUT: no thread, no sound card
RATE, PITCH = 1, 3  # of espeak_PARAMETER
CHARACTER, UTF8 = 1, 1  # a position is counted in characters; the text is UTF-8
SOUNDS = ("phontab", "phonindex", "phondata", "intonations", "en_dict")
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@cache
def library() -> ctypes.CDLL:
    """The shared library.

    Raises:
        MissingDependency: it is not installed.
    """
    name = ctypes.util.find_library("espeak-ng")
    if name is None:
        raise MissingDependency(
            "the library espeak-ng not found; apt-get install espeak-ng, or run this with --install"
        )
    return ctypes.CDLL(name)


class Synthesizer:
    """espeak-ng with its own variants and further ones: the lines of each by its name. One in a process."""

    def __init__(self, variants: Mapping[str, Sequence[str]]) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="espeak-")
        with_variants(Path(self._data.name), variants)
        self.rate = library().espeak_Initialize(SYNCHRONOUS, 0, self._data.name.encode(), 0)
        if self.rate <= 0:
            raise MissingDependency("espeak-ng does not start; install espeak-ng 1.51 anew")
        self._pieces: list[bytes] = []
        self._callback = CALLBACK(self._take)  # kept, since the library holds only its address
        library().espeak_SetSynthCallback(self._callback)

    def _take(self, wave: Any, count: int, events: int | None) -> int:
        if wave and count > 0:
            self._pieces.append(ctypes.string_at(wave, 2 * count))
        return 0

    def say(self, text: str, voice: str, words_per_minute: int, pitch: int) -> Array:
        """[samples] float32 at `rate`; `voice` is ACCENT or ACCENT+VARIANT.

        Raises:
            InputError: the library refuses the voice or the text.
        """
        self._pieces.clear()
        data = text.encode() + b"\0"
        spoke = library()
        failed = (
            spoke.espeak_SetVoiceByName(voice.encode())
            or spoke.espeak_SetParameter(RATE, words_per_minute, 0)
            or spoke.espeak_SetParameter(PITCH, pitch, 0)
            or spoke.espeak_Synth(data, len(data), 0, CHARACTER, 0, UTF8, None, None)
        )
        if failed:
            raise InputError(f"espeak-ng refuses {text!r} by {voice} (error {failed})")
        return np.frombuffer(b"".join(self._pieces), "<i2").astype(np.float32) / np.float32(32_768)


def data_folder() -> Path:
    """Where the installed voices, dictionaries and phonemes are."""
    path = ctypes.c_char_p()
    library().espeak_Initialize(SYNCHRONOUS, 0, None, 0)
    library().espeak_Info(ctypes.byref(path))
    library().espeak_Terminate()
    return Path((path.value or b"").decode())


def with_variants(folder: Path, variants: Mapping[str, Sequence[str]]) -> None:
    """Make `folder`/espeak-ng-data: links to the installed English, and up to 200 further variants."""
    installed, copy = data_folder(), folder / "espeak-ng-data"
    copy.mkdir()
    for part in (*SOUNDS, "voices/!v", "lang/gmw"):
        (copy / part).parent.mkdir(exist_ok=True)
        if (installed / part).is_dir():
            (copy / part).mkdir()
            for file in (installed / part).iterdir():
                (copy / part / file.name).symlink_to(file)
        else:
            (copy / part).symlink_to(installed / part)
    for name, lines in variants.items():
        (copy / "voices/!v" / name).write_text("\n".join(lines) + "\n")
