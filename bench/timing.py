"""Ratios of medians from interleaved rounds: the machine's mood hits every candidate alike."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgemem.files import atomic_write
from edgemem.measure import machine, spread

__all__ = ["RESULTS", "interleaved", "machine", "spread", "write"]
RESULTS = Path(__file__).parent / "results"


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int, calls: int) -> dict[str, list[float]]:
    """Microseconds per call of every candidate, one value per round, the candidates taking turns."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():
        for _ in range(calls // 4 + 1):
            call()
    for _ in range(rounds):
        for name, call in candidates.items():
            begin = time.perf_counter()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter() - begin) / calls * 1e6)
    return times


def write(name: str, result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Store a result under bench/results, or another folder, with the machine's description."""
    path = folder / f"{name}.json"
    with atomic_write(path) as file:
        file.write(json.dumps({"machine": machine(), **result}, indent=1, sort_keys=True).encode() + b"\n")
    return path
