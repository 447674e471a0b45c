"""Questions about the blocks of a PrimFunc that is being scheduled."""

from __future__ import annotations

import math
from typing import Any

SIDE_BY_SIDE = 4  # partial results of a row, sums or extremes: one alone would wait for itself

REDUCE = 2  # tirx.IterVar.CommReduce
TRANSCENDENTAL = ("edgemem_", "T.exp", "T.log", "T.tanh", "T.sqrt", "T.rsqrt", "T.pow", "T.sin", "T.cos", "T.erf")


def blocks(sch: Any) -> list[Any]:
    """Every block under the root, in the order of the program."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def block_names(sch: Any) -> list[str]:
    return [str(sch.get(block).name_hint) for block in blocks(sch)]


def is_reduction(sch: Any, block: Any) -> bool:
    return any(int(axis.iter_type) == REDUCE for axis in sch.get(block).iter_vars)


def volume(sch: Any, block: Any) -> int:
    """How often the block's body runs."""
    count = 1
    for axis in sch.get(block).iter_vars:
        count *= int(axis.dom.extent)
    return count


def written(sch: Any, block: Any) -> int:
    """Elements of what the block writes."""
    return math.prod(int(extent) for extent in sch.get(block).writes[0].source.shape)


def is_costly(sch: Any, block: Any) -> bool:
    """Whether the body calls a function that takes many instructions."""
    text = str(sch.get(block).body)
    return any(name in text for name in TRANSCENDENTAL)


def is_output(sch: Any, block: Any) -> bool:
    """Whether the block writes what the kernel gives."""
    return not sch.get_consumers(block)
