"""What the recipes that train share: one thread, memory that is used again, checkpoints, errors as sentences."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgemem.errors import EdgememError
from edgemem.files import atomic_path

M_TRIM_THRESHOLD, M_MMAP_MAX, LARGEST_INT = -1, -4, 2**31 - 1  # of glibc's malloc.h


def as_command(run: Callable[[], None]) -> None:
    """Run a recipe on one thread; what is wrong with its inputs ends it with a sentence and the error's exit code."""
    torch.set_num_threads(1)
    keep_freed_buffers()
    try:
        run()
    except EdgememError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def keep_freed_buffers() -> None:
    """Have glibc keep what is freed; another C library stays as it is.

    By default it maps every large tensor anew and the system clears its pages, a third of the time that a training
    step of attention takes.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def weights(module: nn.Module, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """The module's tensors as a checkpoint holds them."""
    found = {name: tensor.detach().to(dtype).contiguous() for name, tensor in module.state_dict().items()}
    assert all(torch.isfinite(tensor).all() for tensor in found.values())
    return found


def save(
    module: nn.Module, path: Path, dtype: torch.dtype = torch.float16, facts: dict[str, str] | None = None
) -> None:
    """Write a module's weights as they are shipped, whole or not at all; `facts` become the file's metadata."""
    with atomic_path(path) as temporary:
        save_file(weights(module, dtype), temporary, dict(facts) if facts else None)
