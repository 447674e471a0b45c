"""Attention of a few queries to a long cache, whose rows are read once, in order and where they lie.

    q [1, heads, n, d]        rows x [1, length, heads, d]: keys or values, one frame after another

    scores    s[h, i, j] = sum_d q[h, i, d] k[j, h, d]     `attention_scores`
    weights   w[h, i, j] = softmax of the scores            `attention_weights`, where that is what weighs
    weighted  y[h, i, d] = sum_j w[h, i, j] v[j, h, d]      for eight j at once: for h, i: for d in vectors

The weighted rows are summed in PARTS stretches of the cache, which threads may share, and then added. Products with
keys or values that were transposed first (`permute_dims` in front of a `matmul`) become these; with more than
MOST_QUERIES queries a product of packed tiles is faster, copies included. Scores that are divided by a constant are
those of divided queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import ir, relax, te
from tvm.relax.expr_functor import PyExprMutator, mutator

from edgemem.runtimes.aot import attention_scores, attention_weights
from edgemem.runtimes.aot.folding import dtype_of, shape_of
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules import OPAQUE, attention, rows

Expr = Any
MOST_QUERIES = 4
SHORTEST = 64  # rows; fewer stay in the nearest cache and gain nothing
SCALINGS = ("relax.divide", "relax.multiply")
KEYS, VALUES = [0, 2, 3, 1], [0, 2, 1, 3]  # permute_dims of rows before a product


def with_attention(module: Any, machine: Machine) -> Any:
    """The module with every product of few rows and long transposed ones as a kernel of its own."""
    reader = Reader(module, machine)
    main = reader.visit_expr(module["main"])
    module = reader.builder_.get()
    module.update_func(module.get_global_var("main"), main)
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(module))


@mutator
class Reader(PyExprMutator):  # type: ignore[misc]
    """One walk over the products."""

    def __init__(self, module: Any, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine

    def visit_call_(self, call: Expr) -> Expr:  # TVM's spelling
        call = super().visit_call_(call)
        if not isinstance(call, relax.Call) or not isinstance(call.op, ir.Op):
            return call
        if call.op.name in SCALINGS:
            return self.scaled(call)
        if call.op.name != "relax.matmul":
            return call
        left, right = call.args
        turned = self.lookup_binding(right) if isinstance(right, relax.Var) else None
        if not isinstance(turned, relax.Call) or turned.op != ir.Op.get("relax.permute_dims"):
            return call
        read = turned.args[0]
        if not self.fits(left, read):
            return call
        axes = [int(axis) for axis in turned.attrs.axes or ()]
        lanes = rows.lanes_of(self.machine, shape_of(read)[3])
        if axes == KEYS:
            return self.scores(left, read, lanes)
        return self.weighted(left, read) if axes == VALUES else call

    def fits(self, left: Expr, read: Expr) -> bool:
        """Whether few rows meet many, in whole vectors."""
        shapes = shape_of(left), shape_of(read)
        if any(len(shape) != 4 or shape[0] != 1 for shape in shapes) or {dtype_of(left), dtype_of(read)} != {"float32"}:
            return False
        lanes = rows.lanes_of(self.machine, shapes[1][3])
        return shapes[0][2] <= MOST_QUERIES and shapes[1][1] >= SHORTEST and lanes >= min(4, self.machine.lanes)

    def scaled(self, call: Expr) -> Expr:
        """Scores that are scaled by a constant as those of scaled queries, which are fewer."""
        found, factor = call.args
        scores = self.lookup_binding(found) if isinstance(found, relax.Var) else None
        if (
            scores is None
            or not is_scores(scores)
            or not isinstance(factor, ir.GenericConst)
            or factor.value.numpy().size != 1
        ):
            return call
        queries, read = scores.args[1]
        if len(shape_of(factor)) > len(shape_of(queries)):
            return call
        scaled = self.builder_.emit(relax.Call(call.op, [queries, factor]))
        return self.scores(scaled, read, rows.lanes_of(self.machine, shape_of(read)[3]))

    def scores(self, queries: Expr, read: Expr, lanes: int) -> Expr:
        (_, heads, count, width), length = shape_of(queries), shape_of(read)[1]
        name = self.builder_.add_func(
            attention_scores.kernel(heads, count, length, width, lanes), attention_scores.HINT
        )
        return relax.call_tir(name, [queries, read], relax.TensorType([1, heads, count, length], "float32"))

    def weighted(self, weights: Expr, read: Expr) -> Expr:
        softmax: Expr = self.lookup_binding(weights) if isinstance(weights, relax.Var) else None
        divided = []
        if is_softmax(softmax):
            weights, inverse = self.undivided(softmax.args[0])
            divided = [inverse]
        parts = self.builder_.emit_te(
            weighted_parts,
            weights,
            read,
            primfunc_name_hint="attend_parts",
            primfunc_attrs={"op_pattern": OPAQUE},
        )
        return self.builder_.call_te(
            weighted_total,
            parts,
            weights,
            read,
            *divided,
            primfunc_name_hint="attend_total",
            primfunc_attrs={"op_pattern": OPAQUE},
        )

    def undivided(self, scores: Expr) -> tuple[Expr, Expr]:
        """The powers of scores, and by what their rows are to be multiplied to have sums of 1."""
        *lead, length = shape_of(scores)
        kernel = attention_weights.kernel(lead[1], lead[2], length, self.machine.lanes)
        name = self.builder_.add_func(kernel, attention_weights.HINT)
        types = [relax.TensorType(shape, "float32") for shape in ([*lead, length], [*lead, 1])]
        made = self.builder_.emit(relax.call_tir(name, [scores], types))
        weights, inverse = (self.builder_.emit(relax.TupleGetItem(made, index)) for index in range(2))
        return weights, inverse


def is_scores(call: Expr) -> bool:
    """Whether a call is of the kernel of scores."""
    return (
        isinstance(call, relax.Call)
        and call.op == ir.Op.get("relax.call_tir")
        and str(call.args[0].name_hint).startswith(attention_scores.HINT)
    )


def is_softmax(call: Expr) -> bool:
    """Whether a call is a softmax of rows."""
    if not isinstance(call, relax.Call) or call.op != ir.Op.get("relax.nn.softmax"):
        return False
    return int(call.attrs.axis) in (-1, len(shape_of(call)) - 1)


def stretch(length: int) -> int:
    """Blocks of rows in each of the parts."""
    return length // (attention.PARTS * attention.TOGETHER)


def weighted_parts(w: Any, v: Any) -> Any:
    """[PARTS, heads, n, d]: w [1, heads, n, length] times v [1, length, heads, d], summed over each part's rows."""
    (_, heads, count, length), width = extents(w), extents(v)[3]
    blocks = stretch(length)
    block, row = te.reduce_axis((0, blocks), name="block"), te.reduce_axis((0, attention.TOGETHER), name="row")

    def product(p: Any, h: Any, i: Any, d: Any) -> Any:
        j = (p * blocks + block) * attention.TOGETHER + row
        return te.sum(w(0, h, i, j) * v(0, j, h, d), axis=[block, row])

    return te.compute((attention.PARTS, heads, count, width), product, name=attention.WEIGHTED)


def weighted_total(parts: Any, w: Any, v: Any, inverse: Any = None) -> Any:
    """y [1, heads, n, d]: the parts, and the rows behind the last of them; times `inverse` [1, heads, n, 1]."""
    (_, heads, count, length), width = extents(w), extents(v)[3]
    first = attention.PARTS * attention.TOGETHER * stretch(length)
    shape = (1, heads, count, width)
    part = te.reduce_axis((0, attention.PARTS), name="part")
    total = te.compute(
        shape, lambda _, h, i, d: te.sum(parts(part, h, i, d), axis=part), name=f"{attention.TOTAL}_parts"
    )
    if first < length:
        row = te.reduce_axis((0, length - first), name="row")
        rest = te.compute(
            shape,
            lambda _, h, i, d: te.sum(w(0, h, i, first + row) * v(0, first + row, h, d), axis=row),
            name=f"{attention.TOTAL}_rest",
        )
        whole = te.compute(shape, lambda *i: total(*i) + rest(*i), name=f"{attention.TOTAL}_sum")
    else:
        whole = total
    if inverse is None:
        return whole
    return te.compute(shape, lambda *i: whole(*i) * inverse(*i[:-1], 0), name=f"{attention.TOTAL}_divided")


def extents(tensor: Any) -> Sequence[int]:
    return [int(extent) for extent in tensor.shape]
