"""A graph with sizes, conditions and trip counts that are only known when it runs -> a straight line of static nodes.

Every node is looked at once, in order, when all that it reads is known as far as it ever will be:

    before                              after
    Shape(x), Size(x)                   a constant: every size is a number once the inputs' are
    any node of constants               a constant
    Identity(x), Dropout(x)             x
    If(constant condition)              the nodes of the branch that is taken
    an operator with a rewrite          what the rewrite puts in its place (`rewrite/`): loops are unrolled, for example

What is left has a static shape for each of its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgemem.errors import ExportError
from edgemem.export.adopt import build
from edgemem.export.adopt.bounds import MOST_ELEMENTS
from edgemem.export.adopt.build import Array, constant, known, replace
from edgemem.export.graph import REFUSED
from edgemem.text import first_line

LARGEST = 1 << 24  # elements that a node may give beyond the constants that it reads
MOST_FOLDED = 1 << 29  # elements of all constants that are computed
PASSED = 4096  # elements up to which a constant's values decide on shapes
IR_VERSION = 10  # the first with int4
RANDOM = frozenset(name for name in REFUSED if name.startswith(("Random", "Bernoulli", "Multinomial")))
STORED = frozenset({"DequantizeLinear"})  # weights in few bits stay so
GROWING = frozenset(  # what takes the size of its result from numbers that it reads
    {"AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "Expand", "HammingWindow",
     "HannWindow", "MaxUnpool", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"}
)  # fmt: skip
# The inputs whose numbers, not whose sizes, decide how large a result is.
SIZED: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "Compress": (1,),
    "ConstantOfShape": (0,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1), "NonMaxSuppression": (0, 1, 2, 3, 4), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,),
    "TopK": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum")},
    "ReduceSumSquare": (1,),
}  # fmt: skip
STANDARD = ("", "ai.onnx")
UNFIT = (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError)
Rewrite = Callable[["Freezer", ir.Node], None]


def where(node: ir.Node) -> str:
    """A node, in words for messages."""
    return f"{node.op_type} ({node.name or node.outputs[0].name or 'unnamed'})"


def kind_of(node: ir.Node) -> tuple[str, str]:
    """Domain and operator, the standard domain as ''."""
    return ("" if node.domain in STANDARD else node.domain), node.op_type


class Freezer:
    """One walk over a model. `rewrites`, by domain and operator, put other nodes in a node's place and visit them."""

    def __init__(self, model: ir.Model, rewrites: Mapping[tuple[str, str], Rewrite]) -> None:
        self.model, self.graph, self.rewrites = model, model.graph, rewrites
        self.opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
        self.ir_version = model.ir_version
        self.written_out = 0  # operators, by loops, nested ones included
        self.folded = 0  # elements of constants that were computed

    @property
    def version(self) -> int:
        """Of the standard's operators."""
        opsets = self.model.opset_imports
        return opsets.get("", opsets.get("ai.onnx", 0))

    def raise_version(self, least: int) -> None:
        """Let the model use operators of this version; those of version 20 mean the same in 21."""
        self.model.opset_imports[""] = max(least, self.version)
        self.opsets = [onnx.helper.make_opsetid(d, version) for d, version in self.model.opset_imports.items()]
        self.ir_version = self.model.ir_version = max(self.ir_version or 0, IR_VERSION)

    def run(self) -> None:
        """Freeze the whole graph.

        Raises:
            ExportError: a size, condition or trip count that depends on the data; its node is named.
        """
        self.visit(list(self.graph))

    def visit(self, nodes: Iterable[ir.Node]) -> None:
        """Freeze some nodes of the graph, in order."""
        for node in nodes:
            self.one(node)

    def one(self, node: ir.Node) -> None:
        """Freeze one node.

        Raises:
            ExportError: what it reads does not fit its operator, or each other.
        """
        try:
            self.frozen(node)
        except UNFIT as error:  # sizes and counts that the standard does not describe, found in whatever way
            raise ExportError(
                f"{where(node)}: its inputs and attributes do not fit each other ({first_line(error)}); the file is "
                "malformed, export it again"
            ) from error

    def frozen(self, node: ir.Node) -> None:
        if self.is_copy(node):
            assert node.inputs[0] is not None
            self.become(node, [node.inputs[0]])
        elif node.op_type == "If":
            self.take_branch(node)
        elif self.folds(node):
            self.become(node, [self.stored(v.name, a) for v, a in zip(node.outputs, self.value(node), strict=True)])
        elif kind_of(node) in self.rewrites:
            self.rewrites[kind_of(node)](self, node)
        else:
            self.infer(node)

    def is_copy(self, node: ir.Node) -> bool:
        """Whether a node gives what it is given."""
        same_type = node.op_type == "Cast" and node.inputs[0] is not None and known(node.inputs[0]) is None
        if same_type and node.inputs[0] is not None and node.inputs[0].dtype == node.attributes["to"].as_int():
            return True
        return node.op_type == "Identity" or (node.op_type == "Dropout" and self.inference(node))

    def inference(self, node: ir.Node) -> bool:
        """Whether a Dropout drops nothing."""
        flag = known(node.inputs[2]) if len(node.inputs) > 2 else None
        unused = len(node.outputs) == 1 or not node.outputs[1].uses()
        return unused and (len(node.inputs) < 3 or (flag is not None and not flag.any()))

    def become(self, node: ir.Node, values: Iterable[ir.Value]) -> None:
        """Put `values` in the place of a node's results."""
        for old, new in zip(node.outputs, values, strict=False):
            replace(old, new)
        self.graph.remove(node, safe=True)

    def stored(self, name: str | None, array: Array) -> ir.Value:
        return constant(self.graph, name or "constant", array)

    # --- control flow ------------------------------------------------------------------------------------------

    def take_branch(self, node: ir.Node) -> None:
        """Put the nodes of the branch that is always taken in the place of an If."""
        condition = known(node.inputs[0])
        if condition is None:
            raise ExportError(
                f"{where(node)}: its condition depends on the data of a step, so it has no static form; make the "
                "input that decides constant by --set INPUT=VALUE, or export the model without the choice"
            )
        branch = node.attributes["then_branch" if condition.all() else "else_branch"].as_graph()
        self.become(node, self.inlined(branch, node))

    def inlined(self, body: ir.Graph, before: ir.Node) -> list[ir.Value]:
        """Move the nodes of a body in front of a node, and freeze them; the body's results."""
        copied_out(body)
        for name, value in list(body.initializers.items()):
            del body.initializers[name]
            assert value.const_value is not None
            value.replace_all_uses_with(self.stored(name, value.const_value.numpy()), replace_graph_outputs=True)
        nodes, results = list(body), list(body.outputs)
        body.outputs.clear()
        body.remove(nodes)
        anchors = self.placeholders(results, before)
        self.graph.insert_before(anchors, nodes)
        self.visit(nodes)
        found = [value for value in anchors.inputs if value is not None]
        self.graph.remove(anchors, safe=True)
        return found

    def placeholders(self, results: list[ir.Value], before: ir.Node) -> ir.Node:
        """A node that reads the results of a body, so that it follows whatever takes their place."""
        node = ir.Node("edgemem", "Results", results, num_outputs=0)
        self.graph.insert_before(before, node)
        return node

    # --- constants ---------------------------------------------------------------------------------------------

    def folds(self, node: ir.Node) -> bool:
        """Whether a node always gives the same."""
        if node.domain not in STANDARD or node.op_type in RANDOM | STORED:
            return False
        if node.op_type in ("Shape", "Size"):
            return node.inputs[0] is not None and static(node.inputs[0])
        has_body = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        return not has_body and all(value is None or known(value) is not None for value in node.inputs)

    def value(self, node: ir.Node) -> list[Array]:
        """What a node of constants gives.

        Raises:
            ExportError: it cannot be computed, or is too large.
        """
        if node.op_type in ("Shape", "Size"):
            return [shape_of(node)]
        self.check_size(node, self.single(node))
        try:
            return self.evaluated(node)
        except Exception as error:  # the evaluators raise whatever NumPy or onnxruntime do
            raise ExportError(f"{where(node)} of constants cannot be computed ({first_line(error)})") from error

    def check_size(self, node: ir.Node, model: onnx.ModelProto) -> None:
        """Refuse a node that would give too much, before it does; `model` has it alone.

        Where onnx does not know the size of what an operator gives, the numbers that it reads are what could be one.

        Raises:
            ExportError: more than LARGEST elements beyond the constants that it reads, or no valid operator.
        """
        arrays = [array for value in node.inputs if (array := known(value)) is not None]
        read = sum(array.size for array in arrays)
        kinds = self.kinds(node, model).values()
        given = sum(math.prod(d.dim_value for d in kind.tensor_type.shape.dim) for kind in kinds if whole(kind))
        if node.op_type in GROWING and (len(kinds) < len(model.graph.output) or not all(map(whole, kinds))):
            numbers = [abs(float(n)) for array in arrays if array.dtype.kind in "iuf" for n in array.flat[:PASSED]]
            all_read = sum(math.prod(build.sizes(value)) for value in node.inputs if value is not None)
            given = max(given, int(all_read * max(filter(math.isfinite, numbers), default=1.0)))
        if given > LARGEST + read:
            raise ExportError(f"{where(node)} gives {given} elements, {LARGEST} are the limit")
        self.folded += given
        if self.folded > MOST_FOLDED:
            raise ExportError(
                f"{where(node)}: with it the file's constants come to more than {MOST_FOLDED} elements, computed from "
                "others; export the model with its constants folded"
            )

    def evaluated(self, node: ir.Node) -> list[Array]:
        """One node of constants."""
        proto, places = alone(node)
        feeds = {name: array for name, value in places.items() if (array := known(value)) is not None}
        inputs = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ]
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output]
        graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
        model = onnx.helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)
        return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, feeds)]

    # --- shapes ------------------------------------------------------------------------------------------------

    def infer(self, node: ir.Node) -> None:
        """Write type and shape of a node's results into them.

        Raises:
            ExportError: a size that depends on the data of a step.
        """
        for value, kind in zip(node.outputs, self.inferred(node), strict=True):
            if kind is None:  # an output that is left out
                continue
            found = [d.dim_value for d in kind.tensor_type.shape.dim]
            if min(found, default=0) < 0 or math.prod(found) > MOST_ELEMENTS:
                raise ExportError(
                    f"{where(node)} gives {found} elements in a step, {MOST_ELEMENTS} are the limit; choose a shorter "
                    "step by --chunk or --set, or export the model with one"
                )
            value.dtype, value.shape = ir.DataType(kind.tensor_type.elem_type), ir.Shape(found)

    def inferred(self, node: ir.Node) -> list[Any]:
        """The TypeProtos of a node's results, from onnx's shape inference."""
        sized = [node.inputs[i] for i in SIZED.get(node.op_type, ()) if i < len(node.inputs)]
        if any(value is not None and known(value) is None for value in sized):
            raise ExportError(depends_on_data(node))
        model, results = self.single(node), []
        kinds = self.kinds(node, model)
        for name, value in zip(model.graph.node[0].output, node.outputs, strict=True):
            kind = kinds.get(name)
            if value.name and (kind is None or not whole(kind)):
                kind = self.tried(node, model, name)
            results.append(kind if value.name else None)
        return results

    def kinds(self, node: ir.Node, model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
        """What onnx knows of the types of a model of one node, by its results' names."""
        try:
            found = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        except Exception as error:  # onnx raises its own private kinds
            raise ExportError(f"{where(node)}: its shape cannot be known ({first_line(error)})") from error
        return {value.name: value.type for value in found.graph.output}

    def tried(self, node: ir.Node, model: onnx.ModelProto, name: str) -> Any:
        """The type of a result as it is on zeros, of operators that onnx knows too little of."""
        if node.op_type in REFUSED:
            raise ExportError(depends_on_data(node))
        self.check_size(node, model)
        wanted = sum(math.prod(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input)
        if wanted > LARGEST + sum(array.size for value in node.inputs if (array := known(value)) is not None):
            raise ExportError(f"{where(node)} reads {wanted} elements, {LARGEST} are the limit")
        feeds = {v.name: np.zeros([d.dim_value for d in v.type.tensor_type.shape.dim],
                                  onnx.helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type))
                 for v in model.graph.input}  # fmt: skip
        from edgemem.onnxsession import session

        try:
            array = session(model.SerializeToString()).run([name], feeds)[0]
        except Exception as error:
            raise ExportError(f"{where(node)}: its shape cannot be known ({first_line(error)})") from error
        return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    def single(self, node: ir.Node) -> onnx.ModelProto:
        """A model of one node: small constants by value, everything else by type."""
        inputs, stored = [], []
        proto, places = alone(node)
        for name, value in places.items():
            array = known(value)
            assert value.dtype is not None, where(node)
            if array is not None and array.size <= PASSED:
                stored.append(onnx.numpy_helper.from_array(array, name))
            else:
                shape = array.shape if array is not None else build.sizes(value)
                inputs.append(onnx.helper.make_tensor_value_info(name, value.dtype.value, shape))
        outputs = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name]
        graph = onnx.helper.make_graph([proto], "one", inputs, outputs, stored)
        return onnx.helper.make_model(graph, opset_imports=self.opsets, ir_version=self.ir_version)


def depends_on_data(node: ir.Node) -> str:
    return f"{where(node)} has no static form: what it gives has a size that depends on the data of a step"


def alone(node: ir.Node) -> tuple[onnx.NodeProto, dict[str, ir.Value]]:
    """A node under names of its own, and what it reads by them: copies of a body's values share theirs."""
    names: dict[ir.Value, str] = {}
    proto = ir.serde.serialize_node(node)
    for index, value in enumerate(node.inputs):
        if value is not None:
            proto.input[index] = names.setdefault(value, f"in{len(names)}")
    for index, value in enumerate(node.outputs):
        proto.output[index] = f"out{index}" if value.name else ""
    return proto, {name: value for value, name in names.items()}


def copied_out(body: ir.Graph) -> None:
    """Let a node give every result of a body, those that are its inputs or constants too: they are taken out of it."""
    for index, value in enumerate(body.outputs):
        if value.producer() is None:
            copy = ir.node("Identity", [value])
            body.append(copy)
            body.outputs[index] = copy.outputs[0]


def static(value: ir.Value) -> bool:
    """Whether type and every size of a value are known."""
    return value.dtype is not None and value.shape is not None and all(isinstance(size, int) for size in value.shape)


def whole(kind: onnx.TypeProto) -> bool:
    """Whether a type has an element type and a number for each size."""
    tensor = kind.tensor_type
    return bool(
        tensor.elem_type and tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)
    )


def shape_of(node: ir.Node) -> Array:
    """What Shape (of a part of the axes, too) or Size gives."""
    assert node.inputs[0] is not None and node.inputs[0].shape is not None
    shape = list(build.sizes(node.inputs[0]))
    if node.op_type == "Size":
        return np.array(int(np.prod(shape, dtype=np.int64)), np.int64)
    start, end = node.attributes.get("start"), node.attributes.get("end")
    part = slice(start.as_int() if start else None, end.as_int() if end else None)
    return np.array(shape[part], np.int64)
