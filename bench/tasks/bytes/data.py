"""The corpus: the source files of the Python standard library that runs this, found with `sysconfig`.

    train    18 of 20 files        valid    1 of 20        test    1 of 20

A file's split is decided by the SHA-256 of its name, so it stays where it is from one Python to the next. Left out are
third-party packages and the library's own tests (folders `test`, `tests`, `idle_test`): half of all bytes, and much
of them data. A split is one array of bytes: files in the order of their digests, a 0 byte before each. The library is
under the PSF licence.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.errors import InputError
from edgemem.tasks.bytes import BEGIN

Array = np.ndarray[Any, np.dtype[Any]]

SPLITS = ("train", "valid", "test")
LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
PARTS = 20


def digest_of(name: str) -> int:
    """A number that depends on the file's name (`json/decoder.py`) alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def split_of(name: str) -> str:
    """The split of a file."""
    return {0: "test", 1: "valid"}.get(digest_of(name) % PARTS, "train")


@cache
def library() -> tuple[tuple[str, Path], ...]:
    """Names and paths of all files that are not left out, in the order of their digests.

    Raises:
        InputError: this Python has no standard library in source form.
    """
    root, found = Path(sysconfig.get_path("stdlib")), []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in LEFT_OUT]  # where not to descend
        found += [Path(folder) / name for name in names if name.endswith(".py")]
    if not found:
        raise InputError(f"{root}: Python source files were wanted, none are there; run a Python with its library")
    named = ((path.relative_to(root).as_posix(), path) for path in found)
    return tuple(sorted(named, key=lambda file: digest_of(file[0]) // PARTS))


def files(split: str) -> list[tuple[str, Path]]:
    """Names and paths of a split's files, in the order of their digests."""
    return [file for file in library() if split_of(file[0]) == split]


@cache
def corpus(split: str) -> Array:
    """A split's bytes [total] uint8: a 0, a file, a 0, a file, …"""
    joined = b"".join(bytes([BEGIN]) + path.read_bytes() for _, path in files(split))
    return np.frombuffer(joined, np.uint8)
