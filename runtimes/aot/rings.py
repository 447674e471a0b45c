"""Caches that slide: the last rows of a stream, kept from step to step without moving them.

    known    = concat(cache_in, new)       the `rows` that were kept and the new ones behind them
    cache_out = known[kept : kept + rows]  the oldest `kept` leave

In a step program such a state is a ring that lies in memory twice, one period after the other:

    place p and place p + period hold the same row; the window of a step starts at `at` < period
    known is the memory from `at` on, in order and without a gap; new rows are written behind the window
    at the end of a step the `kept` new rows are written to their second place, and `at` moves on by `kept`

so that nothing is copied but the new rows, whatever the length of the cache. The tensors that the step reads stay what
they were: the window is the state of the contract.

`with_rings` marks what it finds by opaque PrimFuncs, which `graph_of` reads as places and not as calls.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import ir, relax, te
from tvm.relax.expr_functor import PyExprMutator, mutator

from edgemem.runtimes.aot.folding import dtype_of, shape_of
from edgemem.runtimes.aot.graph import APPEND, BYTES, KEPT, ROLE, ROLE_KEPT, ROLE_ROW
from edgemem.runtimes.aot.schedules import OPAQUE

Expr = Any
ELEMENTWISE = 0  # relax's OpPatternKind
SMALLEST_BYTES = 4096  # a smaller cache is copied sooner than kept track of


@dataclass(frozen=True)
class Sliding:
    """A state that slides: the variables of `known` and of its next value, and its axis of rows."""

    known: Expr
    after: Expr
    axis: int
    kept: int


def with_rings(module: Any, inputs: Sequence[str], outputs: Sequence[str], alignment: int) -> Any:
    """The module with every cache that can be a ring marked as one; `inputs` and `outputs` are as in the contract."""
    found = sliding_states(module["main"], inputs, outputs, alignment)
    if not found:
        return module
    marker = Marker(module, found)
    main = marker.visit_expr(module["main"])
    module = marker.builder_.get()
    module.update_func(module.get_global_var("main"), main)
    return relax.transform.DeadCodeElimination()(relax.transform.CanonicalizeBindings()(module))


def sliding_states(main: Any, inputs: Sequence[str], outputs: Sequence[str], alignment: int) -> list[Sliding]:
    """Every state NAME (NAME_in to NAME_out) that slides, and whose rows lie where vectors may be read."""
    bound = {b.var: b.value for block in main.body.blocks for b in block.bindings}
    results = main.body.body
    results = bound.get(results, results)
    fields = list(results.fields) if isinstance(results, relax.Tuple) else [results]
    after = dict(zip(outputs, fields, strict=True))
    states = {
        name: parameter
        for name, parameter in zip(inputs, main.params, strict=True)
        if name.endswith("_in") and f"{name.removesuffix('_in')}_out" in after
    }
    found = []
    for name, before in states.items():
        slide = sliding(before, after[f"{name.removesuffix('_in')}_out"], bound)
        if slide is not None and worth_it(before, slide, alignment):
            found.append(slide)
    return found


def sliding(before: Expr, after: Expr, bound: dict[Expr, Expr]) -> Sliding | None:
    """How a state slides, if its next value is a cut of itself and of new rows."""
    cut: Any = bound.get(after)
    if not is_call(cut, "relax.strided_slice"):
        return None
    known = cut.args[0]
    joined: Any = bound.get(known)
    if not is_call(joined, "relax.concat"):
        return None
    parts = bound.get(joined.args[0], joined.args[0])
    axis = int(joined.attrs.axis) % len(shape_of(before))
    if not isinstance(parts, relax.Tuple) or len(parts.fields) != 2 or not parts.fields[0].same_as(before):
        return None
    axes, begin, end, strides = (
        numbers(argument, bound) for argument in (*cut.args[1:], *[None] * (5 - len(cut.args)))
    )
    if axes != [axis] or begin is None or end is None or strides not in (None, [1]):
        return None
    rows, new = shape_of(before)[axis], shape_of(parts.fields[1])[axis]
    kept = begin[0] if begin[0] >= 0 else begin[0] + rows + new
    if shape_of(after) != shape_of(before) or not 0 < kept <= new or math.prod(shape_of(before)[:axis]) != 1:
        return None
    return Sliding(known, after, axis, kept)


def worth_it(before: Expr, slide: Sliding, alignment: int) -> bool:
    """Large enough, and every place where a window or its new rows can start is a multiple of the alignment."""
    shape = shape_of(before)
    row_bytes = row_bytes_of(before, slide.axis)
    rows = shape[slide.axis]
    starts = (slide.kept * row_bytes, rows * row_bytes)
    return rows * row_bytes >= SMALLEST_BYTES and all(start % alignment == 0 for start in starts)


def is_call(expr: Expr, name: str) -> bool:
    return isinstance(expr, relax.Call) and isinstance(expr.op, ir.Op) and expr.op.name == name


def numbers(expr: Expr, bound: dict[Expr, Expr]) -> list[int] | None:
    """The integers that a tuple of an operator's argument holds."""
    expr = bound.get(expr, expr)
    if not isinstance(expr, relax.Tuple):
        return None
    return [int(getattr(field, "value", field)) for field in expr.fields]


@mutator
class Marker(PyExprMutator):  # type: ignore[misc]
    """Puts the marks in the place of the two operators of each ring."""

    def __init__(self, module: Any, found: Sequence[Sliding]) -> None:
        super().__init__(module)
        self.appends = {slide.known: slide for slide in found}
        self.keeps = {slide.after: slide for slide in found}

    def visit_var_binding_(self, binding: Any) -> None:  # TVM's spelling
        if binding.var in self.appends:
            self.replace(binding, self.appended(binding.value))
        elif binding.var in self.keeps:
            self.replace(binding, self.kept(binding, self.keeps[binding.var]))
        else:
            super().visit_var_binding_(binding)

    def replace(self, binding: Any, value: Expr) -> None:
        """Bind the variable's readers to another value."""
        self.set_var_remap(binding.var, self.builder_.emit(value))

    def appended(self, joined: Expr) -> Expr:
        parts = self.visit_expr(joined.args[0])
        parts = self.lookup_binding(parts) if isinstance(parts, relax.Var) else parts
        before, new = parts.fields
        axis = int(joined.attrs.axis) % len(shape_of(before))
        # a kernel of its own, or the end of the one before: what the ring is given is nobody else's tensor
        given = self.builder_.emit_te(
            lambda x: te.compute(x.shape, lambda *i: x(*i), name="given"),
            new,
            primfunc_name_hint="given",
            primfunc_attrs={"op_pattern": ELEMENTWISE},
        )
        rows = shape_of(before)[axis]

        def known(old: Any, fresh: Any) -> Any:
            shape = [*old.shape[:axis], rows + int(fresh.shape[axis]), *old.shape[axis + 1 :]]

            def row(*i: Any) -> Any:
                behind = (*i[:axis], i[axis] - rows, *i[axis + 1 :])
                return te.if_then_else(i[axis] < rows, old(*i), fresh(*behind))

            return te.compute(shape, row, name=APPEND)

        return self.builder_.call_te(known, before, given, primfunc_name_hint=APPEND, primfunc_attrs=mark(APPEND))

    def kept(self, binding: Any, slide: Sliding) -> Expr:
        known = self.visit_expr(binding.value.args[0])
        shape = shape_of(binding.var)
        attributes = mark(KEPT, slide.kept, row_bytes_of(binding.var, slide.axis))

        def moved(x: Any) -> Any:
            axis = slide.axis
            return te.compute(shape, lambda *i: x(*i[:axis], i[axis] + slide.kept, *i[axis + 1 :]), name=KEPT)

        return self.builder_.call_te(moved, known, primfunc_name_hint=KEPT, primfunc_attrs=attributes)


def mark(role: str, kept: int = 0, row_bytes: int = 0) -> dict[str, Any]:
    return {"op_pattern": OPAQUE, ROLE: role, ROLE_KEPT: kept, ROLE_ROW: row_bytes}


def row_bytes_of(before: Expr, axis: int) -> int:
    return math.prod(shape_of(before)[axis + 1 :]) * BYTES[dtype_of(before)]
