"""Checkpoints as files: safetensors, or a .pth that holds tensors and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def packaged(name: str) -> Path:
    """Path of a file that ships with edgemem: a checkpoint, its card, or an excerpt of a task's data."""
    return Path(str(resources.files("edgemem.tasks") / "data" / name))


def read(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a checkpoint by name, and the SHA-256 of the file. Pickled code is never run.

    Raises:
        CheckpointError: the file is missing, malformed or holds more than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; give the path of a .safetensors or .pth file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), digest
        except (SafetensorError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} is not a valid safetensors file ({error}); copy it again") from error
    return read_pth(path), digest


def read_pth(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .pth file, through torch's loader that refuses anything but tensors and containers.

    Raises:
        CheckpointError: the file holds anything else, or no dict of tensors by name.
    """
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip, runtime and end-of-file errors here
        raise CheckpointError(
            f"{path} is not a .pth file of tensors alone ({type(error).__name__}); "
            "convert it to .safetensors on a machine that trusts it"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} must be a dict of tensors by name; save module.state_dict()")
    return tensors
