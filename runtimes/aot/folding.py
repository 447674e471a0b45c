"""Values that are known at compile time, computed with NumPy, and operators that do nothing, removed.

less/add/where around a checked index      -> the index
take with one constant index               -> slice, or nothing where the axis has one element
max of two stacked tensors                 -> maximum
broadcast_to, astype, reshape to the same  -> nothing
expand_dims, squeeze, flatten              -> reshape
permute_dims that moves axes of one only   -> reshape
permute_dims of permute_dims               -> one
matmul by a vector                         -> by a matrix of one column
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import ir, relax
from tvm.relax.expr_functor import PyExprMutator, mutator

Expr = Any
FOLDED_ELEMENTS = 1 << 26  # a constant beyond this stays an operation

COMPUTED: Mapping[str, Callable[..., Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": lambda a, b: np.floor_divide(a, b) if a.dtype.kind in "iu" else np.divide(a, b),
    "relax.negative": np.negative,
    "relax.exp": np.exp,
    "relax.sqrt": np.sqrt,
    "relax.less": np.less,
    "relax.greater": np.greater,
    "relax.equal": np.equal,
    "relax.where": np.where,
}


def shape_of(expr: Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    return tuple(int(extent) for extent in expr.ty.shape)


def dtype_of(expr: Expr) -> str:
    return str(expr.ty.dtype)


def axes_of(call: Expr) -> list[int]:
    """Where the axes of a `permute_dims` come from."""
    rank = len(shape_of(call.args[0]))
    return [int(axis) for axis in call.attrs.axes] if call.attrs.axes else list(range(rank))[::-1]


def constant(array: Any, like: Expr) -> Expr:
    """A constant of the type that an expression has."""
    held = np.array(array, dtype_of(like), order="C").reshape(shape_of(like))
    return relax.const(held, dtype_of(like))


def same(a: Expr, b: Expr) -> bool:
    """Whether two expressions are one: the same variable or equal scalars."""
    if isinstance(a, ir.GenericConst) and isinstance(b, ir.GenericConst):
        return dtype_of(a) == dtype_of(b) and np.array_equal(a.value.numpy(), b.value.numpy())
    return bool(a.same_as(b))


@mutator
class Folder(PyExprMutator):  # type: ignore[misc]
    """One walk; `ranges` holds the checked range of every integer input by variable name."""

    def __init__(self, module: Any, ranges: Mapping[str, tuple[int, int]]) -> None:
        super().__init__(module)
        self.ranges = ranges

    def definition(self, expr: Expr) -> Expr:
        """What a variable was bound to, or the expression itself."""
        if isinstance(expr, relax.Var):
            bound = self.lookup_binding(expr)
            return expr if bound is None else bound
        return expr

    def is_call(self, expr: Expr, name: str) -> bool:
        return isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op) and expr.op.name == name

    def visit_call_(self, call: Expr) -> Expr:  # TVM's spelling
        call = super().visit_call_(call)
        if not isinstance(call, relax.Call) or not isinstance(call.op, ir.Op):
            return call
        name = str(call.op.name)
        rule = getattr(self, "rule_" + name.removeprefix("relax.").replace(".", "_"), None)
        args = [self.definition(arg) for arg in call.args]
        if name in COMPUTED and all(isinstance(arg, ir.GenericConst) for arg in args):
            typed = self.builder_.normalize(call)
            if np.prod(shape_of(typed)) <= FOLDED_ELEMENTS:
                with np.errstate(all="ignore"):
                    return constant(COMPUTED[name](*(arg.value.numpy() for arg in args)), typed)
        return call if rule is None else rule(self.builder_.normalize(call), args)

    def reshaped(self, expr: Expr, shape: tuple[int, ...]) -> Expr:
        """A view of `expr`, through views, or of a constant its values."""
        inner = self.definition(expr)
        if self.is_call(inner, "relax.reshape"):
            expr = inner.args[0]
            inner = self.definition(expr)
        if isinstance(inner, ir.GenericConst):
            return relax.const(inner.value.numpy().reshape(shape), dtype_of(inner))
        if shape_of(expr) == shape:
            return expr
        return self.builder_.normalize(relax.op.reshape(expr, shape))

    def rule_shape_of(self, call: Expr, args: list[Expr]) -> Expr:
        return relax.ShapeExpr(list(shape_of(args[0])))

    def rule_shape_to_tensor(self, call: Expr, args: list[Expr]) -> Expr:
        if not isinstance(args[0], relax.ShapeExpr):
            return call
        return relax.const(np.array([int(value) for value in args[0].values], "int64"), "int64")

    def rule_where(self, call: Expr, args: list[Expr]) -> Expr:
        """A checked index is never negative, so its wrapped form is the index."""
        test, _, index = args
        checked = call.args[2]
        if not self.is_call(test, "relax.less") or not isinstance(checked, relax.Var):
            return call
        low, _ = self.ranges.get(str(checked.name), (-1, -1))
        bound = self.definition(test.args[1])
        if low >= 0 and same(test.args[0], checked) and isinstance(bound, ir.GenericConst) and not bound.value.numpy():
            return index
        return call

    def rule_take(self, call: Expr, args: list[Expr]) -> Expr:
        index = args[1]
        axis = call.attrs.axis
        if not isinstance(index, ir.GenericConst):
            return call
        shape = shape_of(call.args[0])
        place = 0 if axis is None else int(axis)
        where = np.asarray(index.value.numpy())
        where = np.where(where < 0, where + shape[place], where)
        if isinstance(args[0], ir.GenericConst):
            return constant(np.take(args[0].value.numpy(), where, axis=place), call)
        if where.size != 1:
            return call
        if shape[place] == 1:
            return self.reshaped(call.args[0], shape_of(call))
        at = int(where.reshape(()))
        piece = self.builder_.emit(relax.op.strided_slice(call.args[0], [place], [at], [at + 1]))
        return self.reshaped(piece, shape_of(call))

    def rule_max(self, call: Expr, args: list[Expr]) -> Expr:
        return self.of_stack(call, args[0], relax.op.maximum)

    def rule_min(self, call: Expr, args: list[Expr]) -> Expr:
        return self.of_stack(call, args[0], relax.op.minimum)

    def of_stack(self, call: Expr, stacked: Expr, pair: Callable[[Expr, Expr], Expr]) -> Expr:
        """A reduction over the axis that a stack has just made, as a chain of pairs."""
        if not self.is_call(stacked, "relax.stack") or call.attrs.keepdims:
            return call
        axes = [int(axis) for axis in call.attrs.axis or ()]
        if axes != [int(stacked.attrs.axis)]:
            return call
        tensors = self.definition(stacked.args[0])
        if not isinstance(tensors, relax.Tuple):
            return call
        result = tensors.fields[0]
        for tensor in tensors.fields[1:]:
            result = self.builder_.emit(pair(result, tensor))
        return result

    def unchanged(self, call: Expr, args: list[Expr]) -> Expr:
        """Operators that give what they take when shape and dtype stay."""
        if shape_of(call) == shape_of(call.args[0]) and dtype_of(call) == dtype_of(call.args[0]):
            return call.args[0]
        if isinstance(args[0], ir.GenericConst) and args[0].value.numpy().size <= FOLDED_ELEMENTS:
            if self.is_call(call, "relax.broadcast_to"):
                return call
            return constant(args[0].value.numpy(), call)
        return call

    rule_astype = rule_broadcast_to = unchanged

    def rule_strided_slice(self, call: Expr, args: list[Expr]) -> Expr:
        return call.args[0] if shape_of(call) == shape_of(call.args[0]) else call

    def rule_reshape(self, call: Expr, args: list[Expr]) -> Expr:
        return self.reshaped(call.args[0], shape_of(call))

    rule_expand_dims = rule_squeeze = rule_flatten = rule_reshape

    def rule_matmul(self, call: Expr, args: list[Expr]) -> Expr:
        """A vector on the right is a matrix of one column."""
        if len(shape_of(args[1])) != 1 or len(shape_of(args[0])) < 2:
            return call
        column = self.reshaped(call.args[1], (*shape_of(args[1]), 1))
        return self.reshaped(self.builder_.emit(relax.op.matmul(call.args[0], column)), shape_of(call))

    def rule_permute_dims(self, call: Expr, args: list[Expr]) -> Expr:
        shape = shape_of(call.args[0])
        axes = axes_of(call)
        if isinstance(args[0], ir.GenericConst):
            return constant(np.transpose(args[0].value.numpy(), axes), call)
        if self.is_call(args[0], "relax.permute_dims"):
            inner = axes_of(args[0])
            return relax.op.permute_dims(args[0].args[0], [inner[axis] for axis in axes])
        moved = [axis for axis in axes if shape[axis] != 1]
        return self.reshaped(call.args[0], shape_of(call)) if moved == sorted(moved) else call


def folded(module: Any, ranges: Mapping[str, tuple[int, int]]) -> Any:
    """The module with every rule applied; a second walk sees what the first one uncovered."""
    for _ in range(2):
        folder = Folder(module, ranges)
        module.update_func(module.get_global_var("main"), folder.visit_expr(module["main"]))
        module = without_aliases(module)
    return without_aliases(relax.transform.EliminateCommonSubexpr()(module))


def without_aliases(module: Any) -> Any:
    """Second names of one value, and values that nothing reads, removed."""
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(module))
