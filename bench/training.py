"""What the recipes that train share: masks, rates and averages; one thread, checkpoints, errors as sentences."""

from __future__ import annotations

import copy
import ctypes
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgemem.errors import EdgememError
from edgemem.files import atomic_path

Array = np.ndarray[Any, np.dtype[Any]]

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


class Masks(Protocol):
    """What `masked` reads of a recipe: how many spans, and how long the longest may be."""

    @property
    def time_masks(self) -> int: ...
    @property
    def time_mask_rows(self) -> int: ...
    @property
    def band_masks(self) -> int: ...
    @property
    def band_mask_bands(self) -> int: ...


def masked(x: Tensor, fill: Tensor, stack: int, masks: Masks, draw: np.random.Generator) -> Tensor:
    """SpecAugment: some rows and some mel bands of x [batch, rows, stack * mels] replaced by `fill` [stack * mels]."""
    batch, rows, width = x.shape
    keep_rows = unmasked(batch, rows, masks.time_masks, masks.time_mask_rows, draw)
    keep_bands = np.tile(unmasked(batch, width // stack, masks.band_masks, masks.band_mask_bands, draw), stack)
    return torch.where(torch.from_numpy(keep_rows[:, :, None] & keep_bands[:, None, :]), x, fill)


def unmasked(batch: int, size: int, masks: int, widest: int, draw: np.random.Generator) -> Array:
    """[batch, size] bool, false inside of `masks` random spans per row."""
    width = draw.integers(0, widest + 1, (batch, masks, 1))
    first = draw.integers(0, size, (batch, masks, 1))
    place = np.arange(size)
    kept: Array = np.all((place < first) | (place >= first + width), axis=1)
    return kept


def normalise(model: nn.Module, x: Tensor, stack: int) -> None:
    """Set the model's `center` and `scale` from features x [batch, rows, stack * mels], alike for stacked frames."""
    bands = x.reshape(-1, stack, x.shape[-1] // stack).flatten(0, 1)
    model.center.copy_(bands.mean(dim=0).repeat(stack))
    model.scale.copy_((1.0 / bands.std(dim=0)).repeat(stack))


def rate_at(share: float, peak: float, warm_up: float) -> float:
    """Learning rate at `share` 0..1 of the training: linear warm-up, then half a cosine."""
    if share < warm_up:
        return peak * share / warm_up
    return peak * 0.5 * (1.0 + math.cos(math.pi * (share - warm_up) / (1.0 - warm_up)))


def adamw(
    module: nn.Module,
    rate: float,
    weight_decay: float,
    decays: Callable[[Tensor], bool] = lambda p: p.dim() > 1,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    """AdamW, where only the parameters that `decays` says decay: by default not biases and norms."""
    decaying = [p for p in module.parameters() if decays(p)]
    others = [p for p in module.parameters() if not decays(p)]
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=betas)


def blended(averaged: dict[str, Tensor], model: nn.Module, decay: float) -> dict[str, Tensor]:
    """The running average of the weights, one step on; starts at the weights themselves."""
    weights = model.state_dict()
    if not averaged:
        return {key: value.clone() for key, value in weights.items()}
    return {key: averaged[key].lerp(value, 1.0 - decay) for key, value in weights.items()}


def with_weights(model: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """A copy of the model that holds other weights, to be judged."""
    twin = copy.deepcopy(model)
    twin.load_state_dict(weights)
    return twin.eval()
