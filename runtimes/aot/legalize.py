"""Operators that edgemem defines itself instead of taking TVM's default, as tensor expressions.

matmul by a constant   weights packed in panels at compile time      [N / P, K, P]
matmul, layer_norm, softmax, mean, sum   forms that the schedules know by their block names
exp, log, sigmoid, tanh, erf, sin, cos, silu, gelu    polynomials (`mathops`); floor, ceil, trunc whole numbers
power                  by a small whole number: products
take                   a checked index is read as it is, any other is clamped
dequantize of quantize a float that was rounded: it is no integer in between
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import ir, relax, te, tirx

from edgemem.runtimes.aot import mathops
from edgemem.runtimes.aot.folding import dtype_of, shape_of
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules import OPAQUE, OUT_ELEMENTWISE, rows
from edgemem.runtimes.aot.schedules.matmul import PACKED, Panel, panel_of

Expr = Any
Rule = Callable[[Any, Expr], Expr]
PADDED = "packed_trim"
FLOAT = "float32"
ROUNDS = "edgemem.rounds"  # attribute of a PrimFunc that quantizes: to which type
SMALLEST_SCALE = 2.0**-60
MOST_FACTORS = 8  # of a power that is written out


def rules(
    machine: Machine, ranges: Mapping[str, tuple[int, int]], widened: frozenset[str] = frozenset()
) -> dict[str, Rule]:
    """What `LegalizeOps` is to use for each operator; `widened` are values that only `dequantize` reads."""

    def take(builder: Any, call: Expr) -> Expr:
        return legal_take(builder, call, ranges)

    def matmul(builder: Any, call: Expr) -> Expr:
        return legal_matmul(builder, call, machine)

    def layer_norm(builder: Any, call: Expr) -> Expr:
        return legal_layer_norm(builder, call, machine)

    def softmax(builder: Any, call: Expr) -> Expr:
        return legal_softmax(builder, call, machine)

    unary: dict[str, Callable[[Expr], Expr]] = {
        "exp": mathops.exp,
        "log": mathops.log,
        "sigmoid": mathops.sigmoid,
        "tanh": mathops.tanh,
        **{name: mathops.function(name) for name in ("erf", "sin", "cos", "floor", "ceil", "trunc")},
        "nn.silu": lambda x: x * mathops.sigmoid(x),
        "round": whole,
        "nn.gelu": lambda x: x * (0.5 + 0.5 * mathops.erf(x * math.sqrt(0.5))),
        "nn.gelu_tanh": lambda x: x * (0.5 + 0.5 * mathops.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))),
    }
    return {
        "relax.take": take,
        "relax.matmul": matmul,
        "relax.nn.layer_norm": layer_norm,
        "relax.nn.softmax": softmax,
        "relax.quantize": lambda builder, call: legal_quantize(builder, call, machine.fused),
        "relax.dequantize": lambda builder, call: legal_dequantize(builder, call, widened),
        "relax.power": legal_power,
        **{f"relax.{name}": elementwise(name, function) for name, function in unary.items()},
    }


def elementwise(name: str, function: Callable[[Expr], Expr]) -> Rule:
    """A float32 operator of one tensor; other types keep TVM's own form."""

    def rule(builder: Any, call: Expr) -> Expr:
        if dtype_of(call) != "float32":
            return default(name, builder, call)
        hint = name.rpartition(".")[2]
        return builder.call_te(
            lambda x: te.compute(x.shape, lambda *i: function(x(*i)), name=hint),
            call.args[0],
            primfunc_name_hint=hint,
        )

    return rule


def whole(x: Expr) -> Expr:
    """The nearest whole number, to even in the middle; from 2^22 on, where float32 has few fractions, x itself."""
    return tirx.Select(tirx.abs(x) < tirx.const(2.0**22, "float32"), mathops.nearest(x), x)


def legal_quantize(builder: Any, call: Expr, fused: bool = False) -> Expr:
    """saturate(nearest(x / scale) + zero) of float32, as ONNX rounds: to even in the middle.

    On a core with `fused` products and sums, x is divided by a constant scale without a division; it is held inside
    what saturates first, which keeps infinity out of the correction, and nothing that is inside then leaves it.
    """
    x, scale, zero = call.args
    kind, axis = dtype_of(call), int(call.attrs.axis) % max(1, len(shape_of(x)))
    known = [relax.const(1 / scale.value.numpy(), FLOAT)] if fused and invertible(scale) else []
    middle = is_zero(zero)

    def quantized(a: Any, s: Any, *others: Any) -> Any:
        rounded = Rounding(kind, axis, not middle, bool(known)).steps(a, s, *others)
        return te.compute(a.shape, lambda *i: rounded(*i).astype(kind), name="quantize")

    operands = [x, scale, *([] if middle else [zero]), *known]
    return builder.call_te(quantized, *operands, primfunc_name_hint="quantize", primfunc_attrs={ROUNDS: kind})


@dataclass(frozen=True)
class Rounding:
    """How floats become whole numbers of a type; whether there are a zero point, and an inverse of the scale."""

    kind: str
    axis: int
    moved: bool
    inverted: bool

    def steps(self, a: Any, s: Any, *others: Any) -> Callable[..., Any]:
        """The whole number, as a float, at every index of `a`."""

        def value(*i: Any) -> Any:
            place = (i[self.axis],) if len(s.shape) == 1 else ()
            step = s(*place)
            least, most = (tirx.const(float(end(self.kind).value), FLOAT) for end in (tirx.min_value, tirx.max_value))
            offset = others[0](*place[: len(others[0].shape)]).astype(FLOAT) if self.moved else None
            least, most = (least, most) if offset is None else (least - offset, most - offset)
            if self.inverted:
                held = tirx.max(tirx.min(a(*i), most * step), least * step)
                whole = mathops.nearest(mathops.divided(held, step, others[-1](*place)))
            else:
                whole = mathops.nearest(tirx.max(tirx.min(a(*i) / step, most), least))
            return whole if offset is None else whole + offset

        return value


def legal_dequantize(builder: Any, call: Expr, widened: frozenset[str]) -> Expr:
    """(q - zero) scale; of q that was rounded for this alone, from the floats that were rounded: they are whole."""
    q, scale, zero = call.args
    made: Expr = builder.lookup_binding(q) if isinstance(q, relax.Var) and str(q.name) in widened else None
    function = builder.get()[made.args[0]] if is_kernel(made) else None
    if function is None or ROUNDS not in (function.attrs or {}) or len(shape_of(scale)) or dtype_of(call) != FLOAT:
        return default("dequantize", builder, call)
    operands = list(made.args[1].fields)
    kinds = [dtype_of(operand) for operand in operands[2:]]
    if len(shape_of(operands[1])) or any(len(shape_of(operand)) for operand in operands[2:]):
        return default("dequantize", builder, call)
    rounding = Rounding(str(function.attrs[ROUNDS]), 0, any(kind != FLOAT for kind in kinds), FLOAT in kinds)
    moved = [] if is_zero(zero) else [zero]

    def form(s: Any, *others: Any) -> Any:
        steps = rounding.steps(*others[len(moved) :])

        def value(*i: Any) -> Any:
            return (steps(*i) - others[0]().astype(FLOAT) if moved else steps(*i)) * s()

        return te.compute(others[len(moved)].shape, value, name="dequantized")

    return builder.call_te(form, scale, *moved, *operands, primfunc_name_hint="dequantize")


def is_kernel(expr: Expr) -> bool:
    """Whether an expression is a call of a PrimFunc of the module."""
    return isinstance(expr, relax.Call) and len(expr.args) > 1 and isinstance(expr.args[0], ir.GlobalVar)


def only_widened(function: Any) -> frozenset[str]:
    """Names of the values of a function that `dequantize` reads, and nothing else."""
    read: dict[str, set[bool]] = {}

    def note(expr: Expr, by_dequantize: bool) -> None:
        for var in relax.analysis.free_vars(expr):
            read.setdefault(str(var.name), set()).add(by_dequantize)

    for block in function.body.blocks:
        for binding in block.bindings:
            op = getattr(getattr(binding.value, "op", None), "name", "")
            note(binding.value, op == "relax.dequantize")
    note(function.body.body, False)
    return frozenset(name for name, readers in read.items() if readers == {True})


def is_zero(expr: Expr) -> bool:
    """Whether an expression is a constant of zeros."""
    return isinstance(expr, ir.GenericConst) and not np.any(expr.value.numpy())


def invertible(scale: Expr) -> bool:
    """Whether a scale is a constant whose inverse is as exact as float32 can be, with room around both."""
    if not isinstance(scale, ir.GenericConst) or dtype_of(scale) != FLOAT:
        return False
    values = scale.value.numpy()
    return bool(np.all((values > SMALLEST_SCALE) & (values < 1 / SMALLEST_SCALE)))


def legal_power(builder: Any, call: Expr) -> Expr:
    """x^n of a small whole number n as products; TVM's form of a square is one, of any other power a call of powf."""
    base, exponent = call.args
    if not isinstance(exponent, ir.GenericConst) or dtype_of(call) != "float32" or exponent.value.numpy().size != 1:
        return default("power", builder, call)
    n = float(exponent.value.numpy().reshape(()))
    if n not in range(3, MOST_FACTORS + 1) or shape_of(base) != shape_of(call):
        return default("power", builder, call)

    def product(x: Any) -> Any:
        return te.compute(x.shape, lambda *i: math.prod([x(*i)] * (int(n) - 1), start=x(*i)), name="power")

    return builder.call_te(product, base, primfunc_name_hint="power")


def default(name: str, builder: Any, call: Expr) -> Expr:
    """TVM's own form of an operator."""
    return ir.Op.get(f"relax.{name}").get_attr("FLegalize")(builder, call)


def legal_take(builder: Any, call: Expr, ranges: Mapping[str, tuple[int, int]]) -> Expr:
    """Rows by index along one axis."""
    data, index = call.args
    axis = 0 if call.attrs.axis is None else int(call.attrs.axis) % len(shape_of(data))
    size = shape_of(data)[axis]
    low, high = ranges.get(str(getattr(index, "name", "")), (-1, size))
    checked = low >= 0 and high < size
    count = len(shape_of(index))

    def gathered(table: Any, places: Any) -> Any:
        def row(*i: Any) -> Any:
            place = places(*i[axis : axis + count])
            if not checked:
                lowest, highest = tirx.const(0, places.dtype), tirx.const(size - 1, places.dtype)
                place = tirx.max(tirx.min(place, highest), lowest)
            return table(*i[:axis], place, *i[axis + count :])

        return te.compute(shape_of(call), row, name="take")

    return builder.call_te(gathered, data, index, primfunc_name_hint="take")


def legal_matmul(builder: Any, call: Expr, machine: Machine) -> Expr:
    """A product with a constant matrix reads packed panels; any other keeps TVM's form."""
    left, right = call.args
    if not isinstance(right, ir.GenericConst) or dtype_of(call) != "float32" or len(shape_of(left)) < 2:
        return default("matmul", builder, call)
    weights = right.value.numpy()
    if math.prod(weights.shape[:-2]) != 1:
        return default("matmul", builder, call)
    weights = weights.reshape(weights.shape[-2:])
    shape = shape_of(call)
    panel = panel_of(machine, rows=math.prod(shape[:-1]), columns=shape[-1])
    packed = relax.const(panel.packed(weights), "float32")
    return builder.call_te(
        lambda x, w: packed_product(x, w, shape, panel),
        left,
        packed,
        primfunc_name_hint="matmul",
        primfunc_attrs={"op_pattern": OUT_ELEMENTWISE},
    )


def packed_product(x: Any, w: Any, shape: tuple[int, ...], panel: Panel) -> Any:
    """y[..., n] = sum_k x[..., k] w[n / P, k, n mod P], and without the padding of the last panel."""
    width = int(x.shape[-1])
    k = te.reduce_axis((0, width), name="k")
    padded = (*shape[:-1], panel.count * panel.columns)

    def dot(*i: Any) -> Any:
        return te.sum(x(*i[:-1], k) * w(i[-1] // panel.columns, k, i[-1] % panel.columns), axis=k)

    y = te.compute(padded, dot, name=PACKED)
    return y if padded == shape else te.compute(shape, lambda *i: y(*i), name=PADDED)


def legal_layer_norm(builder: Any, call: Expr, machine: Machine) -> Expr:
    """Over the last axis, float32; other forms keep TVM's."""
    axes = [int(axis) % len(shape_of(call)) for axis in call.attrs.axes]
    plain = bool(call.attrs.center) and bool(call.attrs.scale)
    if axes != [len(shape_of(call)) - 1] or dtype_of(call) != "float32" or not plain:
        return default("nn.layer_norm", builder, call)
    lanes = rows.lanes_for(machine, shape_of(call)[-1])
    epsilon = float(call.attrs.epsilon)
    return builder.call_te(
        lambda x, scale, shift: rows.layer_norm(x, scale, shift, epsilon, lanes),
        *call.args,
        primfunc_name_hint="layer_norm",
        primfunc_attrs={"op_pattern": OPAQUE},
    )


def legal_softmax(builder: Any, call: Expr, machine: Machine) -> Expr:
    """Over the last axis, float32; other forms keep TVM's."""
    if int(call.attrs.axis) % len(shape_of(call)) != len(shape_of(call)) - 1 or dtype_of(call) != "float32":
        return default("nn.softmax", builder, call)
    lanes = rows.lanes_for(machine, shape_of(call)[-1])
    return builder.call_te(
        lambda x: rows.softmax(x, lanes),
        call.args[0],
        primfunc_name_hint="softmax",
        primfunc_attrs={"op_pattern": OPAQUE},
    )


def legalized(module: Any, machine: Machine, ranges: Mapping[str, tuple[int, int]]) -> Any:
    """Every operator as a PrimFunc, neighbours fused; views (`relax.reshape`) stand alone again."""
    from tvm import transform

    passes = [
        relax.transform.LegalizeOps(rules(machine, ranges, only_widened(module["main"]))),
        relax.transform.DeadCodeElimination(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.DeadCodeElimination(),
    ]
    with machine.target:
        return transform.Sequential(passes)(module)
