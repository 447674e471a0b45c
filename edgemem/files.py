"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edgemem.errors import UsageError


def check_output(path: Path, *inputs: Path | None) -> None:
    """See whether a file can be written at `path`, before the work that it is to hold.

    Raises:
        UsageError: `path` is a folder, lies in no folder that can be written to, or is one of the `inputs`.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of the file to write")
    for source in inputs:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path} is read and would be written over; give another name for the output")
    check_place(path)


def check_place(path: Path) -> None:
    """See whether something new can be made beside `path`, in a folder that is there or will be.

    Raises:
        UsageError: it cannot.
    """
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{path} cannot be written: {folder} is a file, not a folder; give another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: {folder} is not yours to write to; give another place")
    try:
        # Rights are not all that it takes: there are /proc, and full disks.
        Path(tempfile.mkdtemp(prefix=".edgemem-", dir=folder)).rmdir()
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {folder} takes no new files ({error.strerror}); give another place"
        ) from error


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner may read
        temporary.replace(path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends well, and leaves no trace otherwise."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        yield file
