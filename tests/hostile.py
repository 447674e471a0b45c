"""What tests of adopted files that ask for too much share: small graphs, a refusal that allocates next to nothing."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemem.errors import EdgememError
from edgemem.export.adopt import Request, adopt

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
HUGE = 10**12
SMALL = 64 << 20  # bytes; a single array of HUGE bytes could not even be asked for within it


def written(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    shape: tuple[Any, ...] = (1, 4),
) -> Path:
    """A file of these nodes with an input x, a state s -> s_out, and an output y."""
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info(n, FLOAT, shape) for n in ("x", "s")],
        [helper.make_tensor_value_info(n, FLOAT, shape) for n in ("y", "s_out")],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


ADD, TANH = helper.make_node("Add", ["s", "x"], ["s_out"]), helper.make_node("Tanh", ["s_out"], ["y"])


def refused(path: Path, kind: type[EdgememError], match: str, request: Request | None = None) -> None:
    """Adoption fails with this message, and allocates next to nothing."""
    tracemalloc.start()
    try:
        with pytest.raises(kind, match=match):
            adopt(path, path.parent / "out.onnx", request, steps=8)
        assert tracemalloc.get_traced_memory()[1] < SMALL
    finally:
        tracemalloc.stop()
    assert not (path.parent / "out.onnx").exists()
