"""Step graphs as onnx-ir objects, and the few edits that every scheme makes.

Weights are looked at in one way, whatever reads them: a matrix with a row for every output.

    reader                                    stored               rows = outputs
    MatMul(x, W), Gemm(x, W)                  W [inputs, outputs]  W transposed
    MatMul(W, x), Transpose(W), Gather(W, i)  W [outputs, inputs]  W as it is
    Conv(x, W)                                W [outputs, ...]     W flattened after its first axis
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.program import Array

OPSET = 21  # the first with int4 and int16 in QuantizeLinear and DequantizeLinear
IR_VERSION = 10
FLOAT = ir.DataType.FLOAT
TINY, HUGE = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)  # normal numbers of float16
NAMES = "edgemem.names"  # in the model's meta store
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN"})
INDEX_ELEMENTS = 64  # index tables from this size on are stored as int32


@dataclass(frozen=True)
class Weight:
    """A constant float32 matrix and what reads it.

    `by_row` says whether the stored tensor has its outputs on the first axis; `gathers` and `others` are its readers.
    """

    value: ir.Value
    by_row: bool
    gathers: tuple[ir.Node, ...]
    others: tuple[tuple[ir.Node, int], ...]  # with the input that reads it

    @property
    def name(self) -> str:
        assert self.value.name is not None
        return self.value.name

    @property
    def array(self) -> Array:
        return numpy_of(self.value)

    @property
    def rows(self) -> Array:
        """[outputs, inputs]"""
        stored = self.array
        return stored.reshape(len(stored), -1) if self.by_row else stored.T

    def stored(self, rows: Array) -> Array:
        """A matrix [outputs, inputs] in the layout of the stored tensor."""
        return rows.reshape(self.array.shape) if self.by_row else rows.T

    @property
    def output_axis(self) -> int:
        return 0 if self.by_row else 1

    @property
    def is_plain(self) -> bool:
        """Whether every reader is `MatMul(x, W)`."""
        return not self.by_row and not self.gathers


def numpy_of(value: ir.Value) -> Array:
    """The array of an initializer."""
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def weights(model: ir.Model, smallest: int) -> list[Weight]:
    """The float32 matrices of at least `smallest` elements that products, convolutions and lookups read, by name."""
    found = [as_weight(value) for _, value in sorted(model.graph.initializers.items())]
    return [weight for weight in found if weight is not None and weight.array.size >= smallest]


def as_weight(value: ir.Value) -> Weight | None:
    """The weight that an initializer is, if all of its readers agree on where its outputs lie."""
    if value.dtype != FLOAT or value.const_value is None or value.is_graph_output() or len(value.const_value.shape) < 2:
        return None
    uses = sorted(value.uses(), key=lambda use: (use[0].name or "", use[1]))
    layouts = {by_row(node, index, len(value.const_value.shape)) for node, index in uses}
    if len(layouts) != 1 or None in layouts:
        return None
    gathers = tuple(node for node, _ in uses if node.op_type == "Gather")
    others = tuple((node, index) for node, index in uses if node.op_type != "Gather")
    return Weight(value, bool(layouts.pop()), gathers, others)


def by_row(node: ir.Node, index: int, rank: int) -> bool | None:
    """Whether this reader takes outputs from the first axis; None if it is no product or lookup of a matrix."""
    kind = (node.op_type, index)
    if kind in {("MatMul", 1), ("MatMul", 0)} and rank == 2:
        return index == 0
    if kind == ("Gemm", 1):
        return bool(integer(node, "transB", 0))
    if kind == ("Transpose", 0) and rank == 2 and list(node.attributes["perm"].as_ints()) == [1, 0]:
        return True
    if kind == ("Gather", 0) and rank == 2 and integer(node, "axis", 0) == 0 and not constant_index(node):
        return True
    return True if kind == ("Conv", 1) else None


def constant_index(node: ir.Node) -> bool:
    index = node.inputs[1]
    return index is not None and index.const_value is not None


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def products_before(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The last products on every way to some values."""
    found, seen, waiting = set(), set(), list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in ("MatMul", "Gemm"):
            found.add(node)
        else:
            waiting.extend(value for value in node.inputs if value is not None)
    return found


# --- edits -------------------------------------------------------------------------------------------------------


class Builder:
    """Adds constants and nodes to a graph, in front of one node; names come from `base`."""

    def __init__(self, model: ir.Model, base: str, before: ir.Node | None = None) -> None:
        self.model, self.base, self.before = model, base, before

    def constant(self, suffix: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
        """The initializer `BASE.suffix`; one that is there already is taken."""
        return constant(self.model, f"{self.base}.{suffix}", array, dtype)

    def op(
        self,
        kind: str,
        *inputs: ir.Value | None,
        suffix: str,
        dtype: ir.DataType | None = FLOAT,
        outputs: int = 1,
        **attributes: Any,
    ) -> Any:
        """A node whose (first) output is called `BASE.suffix`, or a number more where that is taken."""
        name = unused(self.model, f"{self.base}.{suffix}")
        node = ir.node(kind, list(inputs), attributes, num_outputs=outputs, name=name)
        for index, value in enumerate(node.outputs):
            value.name = name if index == 0 else f"{name}.{index}"
            value.type = None if dtype is None else ir.TensorType(dtype)
        if self.before is None:
            self.model.graph.append(node)
        else:
            self.model.graph.insert_before(self.before, node)
        return node.outputs[0] if outputs == 1 else node.outputs


def constant(model: ir.Model, name: str, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    """An initializer of this name; one that is there already is taken."""
    known = model.graph.initializers
    if name not in known:
        names(model).add(name)
        stored = ir.tensor(np.asarray(array, order="C"), dtype=dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(stored.dtype), const_value=stored)
        model.graph.register_initializer(value)
    return known[name]


def unused(model: ir.Model, name: str) -> str:
    """`name`, or the first of `name_1`, `name_2` … that no value of the graph has."""
    taken = names(model)
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def names(model: ir.Model) -> set[str | None]:
    """The names that are taken, a set to add to."""
    graph = model.graph
    if NAMES not in model.meta:
        made = {value.name for node in graph for value in node.outputs}
        model.meta[NAMES] = made | set(graph.initializers) | {value.name for value in graph.inputs}
    taken: set[str | None] = model.meta[NAMES]
    return taken


def as_float32(model: ir.Model, name: str, stored: Array) -> ir.Value:
    """A constant as readers of float32 take it: a float16 array goes through a Cast.

    The Casts stand at the front of the graph, where every reader finds them; a runtime folds them when it loads.
    """
    value = constant(model, name, stored)
    if stored.dtype == np.float32:
        return value
    for node, _ in value.uses():
        if node.op_type == "Cast":
            return node.outputs[0]
    cast: ir.Value = Builder(model, name, next(iter(model.graph))).op("Cast", value, suffix="f32", to=int(FLOAT))
    cast.shape = value.shape
    return cast


def narrow_scales(scales: Array) -> Array:
    """Positive factors as float16, if that keeps ten bits of every one of them, else as float32."""
    return scales.astype(np.float16 if np.all((scales >= TINY) & (scales <= HUGE)) else np.float32)


def fits_float16(array: Array) -> bool:
    """Whether float16 rounds every element by at most 2^-11 of the largest, and holds that."""
    largest = float(np.abs(array).max(initial=0.0))
    return largest == 0.0 or TINY <= largest <= HUGE


def drop_unused(model: ir.Model, keep: set[str]) -> None:
    """Remove nodes and constants that nothing reads; the constants named in `keep` stay."""
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            model.graph.remove(node, safe=True)
    for name in sorted(set(model.graph.initializers) - keep):
        value = model.graph.initializers[name]
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]


# --- before every scheme -----------------------------------------------------------------------------------------


def prepare(model: ir.Model, keep: set[str]) -> None:
    """Bring a graph into the form that the schemes look for; what it computes stays.

        before                          after
        Gemm(x, W [n, k], b) transB     MatMul(x, W.T [k, n]), Add(b)
        two equal constants             one
        a tensor of equal elements      one element, where an operator broadcasts it
        int64 indices of a Gather       int32, from 64 elements on

    Constants named in `keep` (learned start values) are left alone.
    """
    model.graph.opset_imports[""] = max(OPSET, model.graph.opset_imports.get("", OPSET))
    model.ir_version = max(IR_VERSION, model.ir_version or IR_VERSION)
    for node in list(model.graph):
        if node.op_type == "Gemm":
            split_gemm(model, node)
    merge_equal(model, keep)
    for name in sorted(set(model.graph.initializers) - keep):
        shrink(model, model.graph.initializers[name])
    drop_unused(model, keep)


def split_gemm(model: ir.Model, node: ir.Node) -> None:
    """`Gemm` as a plain product and a sum, if it is one of a constant matrix."""
    factors = [node.attributes[name].as_float() for name in ("alpha", "beta") if name in node.attributes]
    x, weight, bias = (*node.inputs, None)[:3]
    if x is None or weight is None or weight.const_value is None or integer(node, "transA", 0) or set(factors) - {1.0}:
        return
    build = Builder(model, node.outputs[0].name or "gemm", node)
    if integer(node, "transB", 0):
        weight = constant(model, f"{weight.name}.T", numpy_of(weight).T)
    product = build.op("MatMul", x, weight, suffix="product")
    product.shape = node.outputs[0].shape
    total = product if bias is None else build.op("Add", product, bias, suffix="sum")
    replace(model, node.outputs[0], total)


def replace(model: ir.Model, old: ir.Value, new: ir.Value) -> None:
    """Let `new` take the place, the shape, the type and the name of `old`, and remove the node that made it."""
    name, node = old.name, old.producer()
    new.shape, new.type = old.shape, old.type
    for index, output in enumerate(model.graph.outputs):
        if output is old:
            model.graph.outputs[index] = new
    old.replace_all_uses_with(new)
    if node is not None:
        model.graph.remove(node, safe=True)
    old.name = None
    new.name = name


def merge_equal(model: ir.Model, keep: set[str]) -> None:
    """One constant for all that are equal in type, shape and bytes."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for name in sorted(set(model.graph.initializers) - keep):
        value = model.graph.initializers[name]
        if value.is_graph_output():
            continue
        key = (value.dtype, tuple(value.const_value.shape), value.const_value.tobytes()) if value.const_value else name
        kept = first.setdefault(key if isinstance(key, tuple) else (key,), value)
        if kept is not value:
            value.replace_all_uses_with(kept)


BROADCASTS = frozenset({"Add", "Sub", "Mul", "Div", "Where", "And", "Or", "Less", "Greater", "Equal", "Max", "Min"})


def shrink(model: ir.Model, value: ir.Value) -> None:
    """Store a constant fill as one element, an index table as int32."""
    array = numpy_of(value)
    uses = list(value.uses())
    if not uses or array.size < 2:
        return
    if (array == array.flat[0]).all() and all(broadcasts(node, value) for node, _ in uses):
        value.replace_all_uses_with(constant(model, f"{value.name}.fill", array.reshape(-1)[:1]))
        return
    small = array.dtype == np.int64 and array.size >= INDEX_ELEMENTS and bool(abs(array).max() < 2**31)
    if small and all(node.op_type == "Gather" and index == 1 for node, index in uses):
        value.replace_all_uses_with(constant(model, f"{value.name}.i32", array.astype(np.int32)))


def broadcasts(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node's result keeps its shape when this input has one element."""
    shape = node.outputs[0].shape
    others = [v for v in node.inputs if v is not None and v is not value and v.shape is not None]
    if node.op_type not in BROADCASTS or shape is None or not all(isinstance(d, int) for d in shape):
        return False
    try:
        return np.broadcast_shapes((1,), *(tuple(v.shape) for v in others)) == tuple(shape)  # type: ignore[arg-type]
    except ValueError:
        return False


def small_floats(model: ir.Model, done: Collection[str], keep: set[str], smallest: int) -> Iterator[ir.Value]:
    """Float constants that are left: vectors, and tensors that no product reads. Small matrices of products stay."""
    for name in sorted(set(model.graph.initializers) - keep - set(done)):
        value = model.graph.initializers[name]
        if value.dtype != FLOAT or value.is_graph_output() or not value.uses():
            continue
        array = numpy_of(value)
        in_product = any(node.op_type in ("MatMul", "Gemm", "Conv") for node, _ in value.uses())
        if array.size > 1 and not (in_product and array.size < smallest) and fits_float16(array):
            yield value


def halve(model: ir.Model, value: ir.Value) -> tuple[ir.Value, Array]:
    """Store a constant as float16; returns what its readers read now, and its old values."""
    array = numpy_of(value)
    readers = list(value.uses())
    cast = as_float32(model, f"{value.name}.f16", array.astype(np.float16))
    for node, index in readers:
        node.replace_input_with(index, cast)
    return cast, array
