"""What `edgemem models` shows of each model, without making its weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from edgemem.models import specs


def listing() -> list[dict[str, Any]]:
    """One JSON-able row per model, at its default configuration; state bytes are of one stream."""
    import torch

    from edgemem.module import declared_states

    rows = []
    for spec in specs().values():
        config = spec.config()
        with torch.device("meta"):
            module = spec.build(config)
        states = declared_states(module).values()
        rows.append(
            {
                "name": spec.name,
                "family": spec.family,
                "paper": spec.paper,
                "summary": spec.summary,
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "state_bytes": sum(math.prod(s.shape) * np.dtype(s.dtype).itemsize for s in states),
                "chunk_unit": module.unit,
                "trained": bool(spec.trained()),
                "config": dataclasses.asdict(config),
            }
        )
    return rows
