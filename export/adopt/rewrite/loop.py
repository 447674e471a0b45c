"""Loop with a constant trip count -> its body, once for each turn.

Loop(M, condition, v...)    body(turn, condition, v...) -> (condition', v'..., outputs...)
M and every condition are constants; the outputs of all turns are stacked along a new first axis
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import known
from edgemem.export.adopt.freeze import Freezer, where
from edgemem.export.adopt.rewrite.turns import check_size, stacked, turn

MOST_TURNS = 4096


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put all turns in a loop's place.

    Raises:
        ExportError: when it ends depends on the data of a step.
    """
    body = node.attributes["body"].as_graph()
    count, condition = known(node.inputs[0]), known(node.inputs[1]) if len(node.inputs) > 1 else None
    if (node.inputs[0] is not None and count is None) or (
        len(node.inputs) > 1 and node.inputs[1] is not None and condition is None
    ):
        raise ExportError(depends(node))
    most = MOST_TURNS if count is None else int(count.item())
    carried = [value for value in node.inputs[2:] if value is not None]
    go = condition is None or bool(condition.item())
    if go and count is not None and goes_on(body):
        check_size(freezer, node, body, most, ahead=True)
    seen: list[list[ir.Value]] = []
    while go and len(seen) < most:
        check_size(freezer, node, body, 1)
        index = freezer.stored("turn", np.array(len(seen), np.int64))
        results = turn(freezer, node, body, [index, freezer.stored("go", np.array(True)), *carried])
        again = known(results[0])
        if again is None:
            raise ExportError(depends(node))
        go, carried = bool(again.item()), results[1 : len(carried) + 1]
        seen.append(results[len(carried) + 1 :])
    if count is None and go:
        raise ExportError(f"{where(node)}: it does not end within {MOST_TURNS} turns; export the model without it")
    if not seen and len(node.outputs) > len(carried):
        raise ExportError(f"{where(node)}: it makes no turn, so its outputs are empty; export the model without it")
    outputs = [stacked(freezer, node, list(values), 0) for values in zip(*seen, strict=True)]
    freezer.become(node, [*carried, *outputs])


def goes_on(body: ir.Graph) -> bool:
    """Whether a body hands its condition through, so that a loop makes all of its turns."""
    value = body.outputs[0]
    while (producer := value.producer()) is not None and producer.op_type == "Identity":
        if producer.inputs[0] is None:
            break
        value = producer.inputs[0]
    return value is body.inputs[1]


def depends(node: ir.Node) -> str:
    return (
        f"{where(node)}: how often it turns depends on the data of a step, so it has no static form; make it constant "
        "by --set, or export the model with a fixed number of turns"
    )
