"""Times of single launches, put together by kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def by_kernel(
    manifest: Mapping[str, Any], launches: Sequence[str], times_us: Sequence[float], touched: Sequence[int]
) -> dict[str, Any]:
    """`total_us` of a step, and a row for each of its kernels, the costliest first.

    `launches` are kernels by name in the order of a step, with the time of each, and the bytes that it may read and
    write.
    """
    total = sum(times_us) or 1.0
    rows = []
    for kernel in manifest["kernels"]:
        own = [index for index, name in enumerate(launches) if name == kernel["kernel"]]
        spent, count = sum(times_us[index] for index in own), sum(touched[index] for index in own)
        rows.append(
            {
                "kernel": kernel["kernel"],
                "primfunc": kernel["primfunc"],
                "schedule": kernel["schedule"],
                "calls": len(own),
                "us": round(spent, 3),
                "share": round(spent / total, 4),
                "bytes": count,
                "gb_per_s": round(count / spent / 1e3, 2) if spent else None,
            }
        )
    return {"total_us": round(sum(times_us), 3), "kernels": sorted(rows, key=lambda row: -float(row["us"]))}
