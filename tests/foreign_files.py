"""What tests of adoption share: small ONNX files as others write them, and a refusal that writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgemem.errors import EdgememError
from edgemem.export.adopt import Adopted, Request, adopt

FLOAT = TensorProto.FLOAT


def written(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    constants: dict[str, np.ndarray] | None = None,
    types: dict[str, int] | None = None,
    opset: int = 17,
) -> Path:
    """An ONNX file of these nodes."""
    kind = types or {}
    graph = helper.make_graph(
        nodes, "foreign",
        [helper.make_tensor_value_info(n, kind.get(n, FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind.get(n, FLOAT), s) for n, s in outputs.items()],
        [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def states(found: Adopted) -> dict[str, str]:
    """How sure each state is."""
    return {d.what.removeprefix("state "): d.certainty for d in found.decisions if d.what.startswith("state ")}


def refused(path: Path, kind: type[EdgememError], match: str, request: Request | None = None) -> None:
    """Adoption fails with this message, and leaves nothing behind."""
    before = sorted(path.parent.iterdir())
    with pytest.raises(kind, match=match):
        adopt(path, path.parent / "out.onnx", request, steps=8)
    assert sorted(path.parent.iterdir()) == before
