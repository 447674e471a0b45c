"""What all products of edgemem's own are emitted with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import relax, te

from edgemem.runtimes.aot.folding import shape_of
from edgemem.runtimes.aot.schedules import OPAQUE as OPAQUE
from edgemem.runtimes.aot.schedules import OUT_ELEMENTWISE

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any
FLOAT = "float32"


def constant(array: Array) -> Expr:
    return relax.const(np.ascontiguousarray(array), str(array.dtype))


def reshaped(builder: Any, x: Expr, shape: Sequence[int]) -> Expr:
    return x if shape_of(x) == tuple(shape) else builder.emit(relax.op.reshape(x, list(shape)))


def emitted(builder: Any, hint: str, form: Callable[..., Any], *args: Any, pattern: int = OUT_ELEMENTWISE) -> Expr:
    """One PrimFunc on tensors and constants."""
    expressions = [constant(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
    return builder.emit_te(form, *expressions, primfunc_name_hint=hint, primfunc_attrs={"op_pattern": pattern})


def trimmed(y: Any, shape: tuple[int, ...]) -> Any:
    """Without the padding of the last panel."""
    if tuple(int(n) for n in y.shape) == tuple(shape):
        return y
    return te.compute(shape, lambda *i: y(*i), name="packed_trim")
