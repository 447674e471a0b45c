"""What `edgemem models` shows of each model, without making its weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgemem.models import specs


def listing() -> list[dict[str, Any]]:
    """One JSON-able row per model, at its default configuration; state bytes are of one stream."""
    import torch

    from edgemem.module import state_bytes

    rows = []
    for spec in specs().values():
        config = spec.config()
        with torch.device("meta"):
            module = spec.build(config)
        rows.append(
            {
                "name": spec.name,
                "family": spec.family,
                "paper": spec.paper,
                "summary": spec.summary,
                "parameters": sum(parameter.numel() for parameter in module.parameters()),
                "state_bytes": state_bytes(module),
                "chunk_unit": module.unit,
                "trained": bool(spec.trained()),
                "config": dataclasses.asdict(config),
            }
        )
    return rows
