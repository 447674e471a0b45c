"""Quantized patterns of an ONNX graph, rewritten into operators of edgemem's own. Nothing narrow is made wide here.

    before                                                 after
    MatMul(x, D), D = Cast(f16), DequantizeLinear(int8),   Product(x)            the matrix goes with the operator
        DequantizeLinear(int4 by 32), or codes of books
    MatMul(D, x)                                           Transpose(Product(Transpose(x)))
    q, s, z = DynamicQuantizeLinear(x)                     the same in one kernel
    Cast(Round(x / s)) to int8, s = c max |x| of a row     QuantizedRows(x, s)   on cores with fused products and sums
    MatMulInteger(q, W.q[, z])                             IntegerProduct(q[, z])
    MatMul(DQ(q, s, z), DQ(W.q, W.s)), q uint8             Mul(Cast(IntegerProduct(q, z)), s W.s)
    Gather(Cast(f16), i)                                   Half(Gather(bits, i))
    D read by anything else                                Decoded()             in every step, into the arena
    Cast(f16 vector)                                       a float32 vector

Here D may stand under a Transpose. What each product became, and why nothing better, is in `products`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized import reasons
from edgemem.runtimes.aot.quantized.weights import GROUP, Codes, Half, Int4, Int8, Narrow

Array = np.ndarray[Any, np.dtype[Any]]
Node = Any
PRODUCT, INTEGER, DYNAMIC, ROWS, HALF, DECODED = (
    f"Edgemem{name}" for name in ("Product", "IntegerProduct", "DynamicQuantize", "QuantizedRows", "Half", "Decoded")
)
INT8, FLOAT16 = 3, 10  # of onnx.TensorProto.DataType
MOST_STEPS = 127.25  # of a row's largest number; with what its scale was rounded by, they round to 127 at most
LEAST_SCALE = 2.0**-76  # of rows; what is left of x less its multiple of a smaller one could be subnormal
VECTOR_AXES = 1  # a float16 constant with at most this many axes longer than 1 is a vector: it costs little as float32


@dataclass(frozen=True)
class Row:
    """One product of the model, for the report: the weight's name and shape, the kernel, and why no better one."""

    product: str
    weight: str
    shape: tuple[int, ...]
    kernel: str
    reason: str


@dataclass
class Recognised:
    """`matrices` are those of the new operators, by the number in their attribute `matrix`."""

    matrices: list[Narrow | Array] = field(default_factory=list)
    products: list[Row] = field(default_factory=list)


def recognised(proto: Any, machine: Machine) -> Recognised:
    """Rewrite a model in place; what the core can do is for the report."""
    return Recogniser(proto, machine).run()


class Recogniser:
    """One walk over the nodes of a graph."""

    def __init__(self, proto: Any, machine: Machine) -> None:
        self.machine = machine
        self.graph = proto.graph
        self.constants = {value.name: value for value in self.graph.initializer}
        self.arrays: dict[str, Array] = {}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.shapes = {v.name: dims(v) for v in (*self.graph.value_info, *self.graph.input, *self.graph.output)}
        self.found = Recognised()
        self.numbers: dict[str, int] = {}  # of matrices, by the name of the value that they are
        self.made: dict[str, str] = {}  # decoded values by the name of what they decode
        self.bits: set[str] = set()  # values that are float16 by their bits
        self.nodes: list[Node] = []

    def run(self) -> Recognised:
        for node in list(self.graph.node):
            rule = getattr(self, f"rule_{node.op_type}", None)
            if rule is None or not rule(node):
                self.keep(node)
        del self.graph.node[:]
        self.graph.node.extend(live(self.nodes, {value.name for value in self.graph.output}))
        return self.found

    # --- reading ---------------------------------------------------------------------------------------------------

    def array(self, name: str) -> Array | None:
        """A constant, also through the Cast that widens it; None for what is no constant."""
        from onnx import numpy_helper

        if name in self.constants:
            if name not in self.arrays:
                self.arrays[name] = np.asarray(numpy_helper.to_array(self.constants[name]))
            return self.arrays[name]
        node = self.producer.get(name)
        if node is not None and node.op_type == "Cast" and node.input[0] in self.constants:
            inner = self.array(node.input[0])
            return None if inner is None else inner.astype(kind_of(attribute(node, "to", 1)))
        return None

    def is_half(self, name: str) -> bool:
        """Whether a value is `Cast(float16 constant)` to float32."""
        node = self.producer.get(name)
        return (
            node is not None
            and node.op_type == "Cast"
            and node.input[0] in self.constants
            and attribute(node, "to", 1) == 1
            and self.constants[node.input[0]].data_type == FLOAT16
        )

    def matrix(self, name: str) -> Narrow | None:
        """The narrow matrix [inputs, outputs] that a value is, outputs on its last axis."""
        node = self.producer.get(name)
        if node is None:
            return None
        if node.op_type == "Transpose" and attribute(node, "perm", [1, 0]) == [1, 0]:
            return self.by_row(node.input[0])
        if self.is_half(name):
            bits = np.asarray(self.array(node.input[0])).view(np.uint16)
            return Half(bits) if bits.ndim == 2 else None
        if node.op_type == "DequantizeLinear":
            return self.dequantized(node)
        return None

    def by_row(self, name: str) -> Narrow | None:
        """The narrow matrix [inputs, outputs] that the transposed value is."""
        node = self.producer.get(name)
        if node is None:
            return None
        if node.op_type == "Transpose" and attribute(node, "perm", [1, 0]) == [1, 0]:
            return self.matrix(node.input[0])
        if self.is_half(name):
            bits = np.asarray(self.array(node.input[0])).view(np.uint16)
            return Half(np.ascontiguousarray(bits.T)) if bits.ndim == 2 else None
        if node.op_type == "DequantizeLinear":
            return self.dequantized(node, rows=True)
        return self.coded(node)

    def dequantized(self, node: Node, rows: bool = False) -> Int8 | Int4 | None:
        """`DequantizeLinear` of a constant matrix; `rows` says that its outputs lie on the first axis."""
        q, scale = self.array(node.input[0]), self.array(node.input[1])
        if q is None or scale is None or q.ndim != 2 or (len(node.input) > 2 and node.input[2]):
            return None
        axis, block = attribute(node, "axis", 1) % 2, attribute(node, "block_size", 0)
        wide = np.ascontiguousarray(scale.astype(np.float32))
        if block == 0 and q.dtype == np.int8 and wide.ndim == 1 and axis == (0 if rows else 1):
            return Int8(np.ascontiguousarray(q.T if rows else q), wide)
        if block == GROUP and axis == (1 if rows else 0):
            steps = q.astype(np.int8)
            return Int4(*(np.ascontiguousarray(a.T if rows else a) for a in (steps, wide)))
        return None

    def coded(self, node: Node) -> Codes | None:
        """`Mul(Reshape(sum of Gather(book, Cast(codes))), scale)`, a matrix by rows."""
        if node.op_type != "Mul":
            return None
        scale, reshape = self.array(node.input[1]), self.producer.get(node.input[0])
        if scale is None or reshape is None or reshape.op_type != "Reshape":
            return None
        terms = self.terms(reshape.input[0])
        if terms is None or any(code.ndim != 2 for code, _ in terms) or len({book.shape for _, book in terms}) != 1:
            return None
        codes, books = (np.stack(parts) for parts in zip(*terms, strict=True))
        if scale.shape != (codes.shape[1], 1):
            return None
        return Codes(codes, books.astype(np.float32), np.ascontiguousarray(scale.astype(np.float32)[:, 0]))

    def terms(self, name: str) -> list[tuple[Array, Array]] | None:
        """Codes and codebook of every term of a sum."""
        node = self.producer.get(name)
        if node is None:
            return None
        if node.op_type == "Add":
            parts = [self.terms(part) for part in node.input]
            return None if any(part is None for part in parts) else [pair for part in parts for pair in part or ()]
        if node.op_type != "Gather" or attribute(node, "axis", 0) != 0:
            return None
        book, cast = self.array(node.input[0]), self.producer.get(node.input[1])
        if (
            book is None
            or book.ndim != 2
            or cast is None
            or cast.op_type != "Cast"
            or cast.input[0] not in self.constants
        ):
            return None
        return [(np.asarray(self.array(cast.input[0])), book)]

    # --- rewriting -------------------------------------------------------------------------------------------------

    def rule_MatMul(self, node: Node) -> bool:
        """A product with a narrow matrix on one side."""
        left, right = node.input
        shape = self.shapes.get(left, ())
        matrix = self.matrix(right)
        if matrix is not None:
            if not shape:
                return self.declined(node, matrix, "the shape of its input is not known")
            if isinstance(matrix, Int8) and self.static(node, matrix):
                return True
            self.product(node, matrix, left, node.output[0], right, math.prod(shape[:-1]))
            return True
        matrix = self.by_row(left)
        if matrix is None or len(self.shapes.get(right, ())) != 2:
            return False
        turned, made = f"{node.output[0]}.turned", f"{node.output[0]}.columns"
        self.plain("Transpose", [right], [turned], perm=[1, 0])
        self.product(node, matrix, turned, made, left, self.shapes[right][1])
        self.plain("Transpose", [made], [node.output[0]], perm=[1, 0])
        return True

    def static(self, node: Node, matrix: Int8) -> bool:
        """A product whose left side comes in bytes of a fixed scale: in integers, then one factor per output."""
        left = self.producer.get(node.input[0])
        if left is None or left.op_type != "DequantizeLinear" or left.input[0] in self.constants or len(left.input) < 3:
            return False
        step, zero = self.array(left.input[1]), self.array(left.input[2])
        if step is None or zero is None or step.size != 1 or zero.dtype not in (np.uint8, np.int8):
            return False
        y, weight = node.output[0], self.source(node.input[1])
        total, whole = f"{y}.total", f"{y}.whole"
        self.own(INTEGER, [left.input[0], left.input[2]], [total], matrix=self.number(f"{weight}.integers", matrix.q))
        self.plain("Cast", [total], [whole], to=1)
        factor = self.stored(f"{y}.factor", np.float32(step.reshape(())) * matrix.scale)
        self.plain("Mul", [whole, factor], [y])
        self.report(
            node, node.input[1], matrix.shape, "w8a8", reasons.of_static(self.lead(node), matrix.shape, self.machine)
        )
        return True

    def product(self, node: Node, matrix: Narrow, x: str, y: str, weight: str, rows: int) -> None:
        self.own(PRODUCT, [x], [y], matrix=self.number(weight, matrix))
        self.report(node, weight, matrix.shape, matrix.kernel, reasons.of_product(matrix, rows, self.machine))

    def lead(self, node: Node) -> tuple[int, ...]:
        """The axes of a product but its last, which its left side has too."""
        return next((self.shapes[name][:-1] for name in (node.output[0], node.input[0]) if name in self.shapes), ())

    def rule_MatMulInteger(self, node: Node) -> bool:
        """int8 activations times an int8 matrix."""
        q = self.array(node.input[1])
        if q is None or q.ndim != 2 or q.dtype != np.int8 or (len(node.input) > 3 and node.input[3]):
            return False
        self.own(INTEGER, node.input[:1] + node.input[2:3], node.output, matrix=self.number(node.input[1], q))
        self.report(node, node.input[1], q.shape, "w8a8", reasons.of_integers(self.lead(node), q.shape, self.machine))
        return True

    def rule_DynamicQuantizeLinear(self, node: Node) -> bool:
        self.own(DYNAMIC, node.input, node.output)
        return True

    def rule_Gather(self, node: Node) -> bool:
        """Rows of a float16 table are widened after they are taken; so are entries of a codebook."""
        table = node.input[0]
        if table in self.constants and self.constants[table].data_type == FLOAT16:
            self.bits.add(node.output[0])
            node.input[0] = self.stored(f"{table}.bits", np.asarray(self.array(table)).view(np.uint16))
            return False
        if not self.is_half(table):
            return False
        bits = self.stored(f"{table}.bits", np.asarray(self.array(self.producer[table].input[0])).view(np.uint16))
        taken = f"{node.output[0]}.bits"
        self.plain("Gather", [bits, node.input[1]], [taken], axis=attribute(node, "axis", 0))
        self.own(HALF, [taken], node.output)
        return True

    def row_steps(self, name: str) -> tuple[str, str] | None:
        """x and s where a value is Round(x / s), s = Max(ReduceMax(Abs(x), -1), least) c and as large as it must be."""
        chain = self.chain(name, "Round", "Div")
        if chain is None:
            return None
        x, scale = chain.input
        times = self.producer.get(scale)
        most = self.chain(scale, "Mul", "Max")
        largest = self.chain(scale, "Mul", "Max", "ReduceMax", "Abs")
        if times is None or most is None or largest is None or largest.input[0] != x:
            return None
        factor, least = self.array(times.input[1]), self.array(most.input[1])
        if (
            factor is None
            or least is None
            or factor.size != 1
            or least.size != 1
            or self.shapes.get(scale, ())[-1:] != (1,)
        ):
            return None
        held = (
            float(factor.reshape(())) * MOST_STEPS > 1 and float(least.reshape(()) * factor.reshape(())) >= LEAST_SCALE
        )
        return (x, scale) if held else None

    def chain(self, name: str, *kinds: str) -> Node | None:
        """The last of nodes of these kinds, each the first input of the one before."""
        node = None
        for kind in kinds:
            node = self.producer.get(name if node is None else node.input[0])
            if node is None or node.op_type != kind:
                return None
        return node

    def rule_Cast(self, node: Node) -> bool:
        """A float16 vector becomes float32; rows of a float16 table are widened after they are taken."""
        steps = self.row_steps(node.input[0]) if self.machine.fused and attribute(node, "to", 1) == INT8 else None
        if steps is not None:
            self.own(ROWS, steps, node.output)
            return True
        if node.input[0] in self.bits:
            self.own(HALF, node.input, node.output)
            return True
        array = self.array(node.output[0]) if self.is_half(node.output[0]) else None
        if array is None or sum(extent > 1 for extent in array.shape) > VECTOR_AXES:
            return False
        self.constants[node.output[0]] = self.initializer(node.output[0], array)
        return True

    def keep(self, node: Node) -> None:
        """A node that stays; a narrow matrix that it reads is decoded for it, unless it is a step of the decoding."""
        if not any(self.narrow(name) is not None for name in node.output):
            for index, name in enumerate(node.input):
                if name not in self.constants and self.narrow(name) is not None:
                    node.input[index] = self.decoded(node, name)
        self.nodes.append(node)
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            self.report_float(node)

    def narrow(self, name: str) -> tuple[Narrow, bool, tuple[int, ...]] | None:
        """The narrow matrix of a value of any rank, whether its outputs lie on the first axis, and its shape."""
        node = self.producer.get(name)
        if node is None:
            return None
        if self.is_half(name):
            bits = np.asarray(self.array(node.input[0])).view(np.uint16)
            return Half(bits.reshape(-1, bits.shape[-1])), False, bits.shape
        if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
            q, scale = self.array(node.input[0]), self.array(node.input[1])
            if q is not None and scale is not None and q.ndim > 2 and attribute(node, "axis", 1) == 0:
                return Int8(np.ascontiguousarray(q.reshape(len(q), -1).T), scale.astype(np.float32)), True, q.shape
        matrix = self.matrix(name)
        if matrix is not None:
            return matrix, False, matrix.shape
        matrix = self.by_row(name)
        return None if matrix is None else (matrix, True, matrix.shape[::-1])

    def decoded(self, node: Node, name: str) -> str:
        """The name of a narrow matrix as floats that are computed in every step."""
        if name not in self.made:
            found = self.narrow(name)
            assert found is not None
            matrix, rows, shape = found
            self.made[name] = f"{name}.floats"
            number = self.number(f"{name}.floats", matrix)
            self.own(DECODED, [], [self.made[name]], matrix=number, rows=int(rows), shape=list(shape))
            reason = f"{node.op_type} has no kernel for narrow weights: decoded into the arena in every step"
            self.report(node, name, shape, f"decoded {matrix.kernel}", reason)
        return self.made[name]

    def declined(self, node: Node, matrix: Narrow, reason: str) -> bool:
        self.report(node, node.input[1], matrix.shape, "decoded", reason)
        return False

    def report(self, node: Node, weight: str, shape: Sequence[int], kernel: str, reason: str) -> None:
        stored = self.source(weight)
        self.found.products.append(Row(node.output[0], stored, tuple(int(n) for n in shape), kernel, reason))

    def report_float(self, node: Node) -> None:
        """A product that no narrow kernel computes."""
        weight = next((name for name in node.input if name in self.constants), "")
        shape = tuple(self.constants[weight].dims) if weight else ()
        if any(name in self.made.values() for name in node.input):
            return
        reason = "its weight is float32 in the file" if weight else "both sides are activations"
        self.report(node, weight, shape, "float32", reason)

    def source(self, name: str) -> str:
        """The constant that a value is decoded from."""
        while name in self.producer and name not in self.constants:
            node = self.producer[name]
            name = node.input[1] if node.op_type == "Gather" else node.input[0]
        return name

    def number(self, name: str, matrix: Narrow | Array) -> int:
        if name not in self.numbers:
            self.numbers[name] = len(self.found.matrices)
            self.found.matrices.append(matrix)
        return self.numbers[name]

    def stored(self, name: str, array: Array) -> str:
        if name not in self.constants:
            self.constants[name] = self.initializer(name, array)
        return name

    def initializer(self, name: str, array: Array) -> Any:
        """A new constant of the graph."""
        from onnx import numpy_helper

        value = numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.graph.initializer.append(value)
        return value

    def own(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Add an operator of edgemem's own."""
        self.plain(kind, inputs, outputs, **attributes)

    def plain(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))


def attribute(node: Node, name: str, default: Any) -> Any:
    """An attribute's value."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def kind_of(number: int) -> Any:
    """The NumPy type of an ONNX one."""
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(number)


def dims(value: Any) -> tuple[int, ...]:
    return tuple(int(d.dim_value) for d in value.type.tensor_type.shape.dim)


def live(nodes: Sequence[Node], wanted: set[str]) -> list[Node]:
    """The nodes whose results are read, in order."""
    kept: list[Node] = []
    wanted = set(wanted)
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(name for name in node.input if name)
    return kept[::-1]
