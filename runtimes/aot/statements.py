"""What lowered programs are made of."""

from __future__ import annotations

import math
from typing import Any


def sequence(body: Any) -> list[Any]:
    """The statements of a body, one by one."""
    from tvm import tirx

    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def nbytes(buffer: Any) -> int:
    """Bytes of a buffer of constant shape."""
    from tvm import DataType

    kind = DataType(str(buffer.ty.dtype))
    elements: int = math.prod(int(extent) for extent in buffer.shape)
    return elements * max(8, int(kind.bits)) // 8 * int(kind.lanes)
