"""Functions of float32 as polynomials and whole numbers: no math library, and vectors stay vectors.

Each is an operator of its own that stays one call until the last lowering step, so that schedules can inline it.

    exp      x = n ln 2 + r, |r| <= ln 2 / 2      e^x = 2^n p(r)         p of degree 7 (Cephes expf)
    log      x = 2^n (1 + m), m in [-0.29, 0.41]       n ln 2 + m - m^2 / 2 + m^3 p(m)      p of degree 8 (Cephes logf)
    sigmoid  1 / (1 + e^-x)
    tanh     x p(x^2) / q(x^2), |x| <= 7.9        Eigen's rational form
    erf      x p(x^2) / q(x^2), |x| <= 4          Eigen's rational form
    sin, cos x = n pi / 2 + r, |r| <= pi / 4      +-r p(r^2) or +-q(r^2) by n mod 4 (Cephes sinf, cosf)
    nearest  the nearest whole number, to even in the middle, |x| < 2^22
    floor, ceil, trunc    by the conversion to int32; from 2^23 on float32 has no fractions
    divided  x / s as float32 rounds it, of a finite x, by r = 1 / s: q = x r, then q + (x - q s) r, sums rounded once

Relative errors against double precision are below 3e-7, of sine and cosine absolute ones, up to |x| = 1e5: beyond,
where float32 steps by 1 / 128 or more, they are in [-1.1, 1.1] and no more. NaN gives NaN; e^x is 0 below -86.6 and
infinite above 88.7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.ir import Call
from tvm.ir.op import register_op_attr

Expr = Any

FLOAT_MAX = 3.4028234663852886e38
PURE = 1  # TCallEffectKind: no side effects
ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves a float's nearest integer in its lowest bits
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187e-06
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
EXP_LOWEST, EXP_HIGHEST = -86.6, 88.7228
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
       2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)  # fmt: skip
LOG2_HIGH, LOG2_LOW = 0.693359375, -2.12194440e-4
LEAST_NORMAL, HALF_ROOT = 1.17549435e-38, 0.70710678118654752440
TANH_LIMIT = 7.90531110763549805
TANH_P = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
          1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
ERF_LIMIT = 4.0
ERF_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
         -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
ERF_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
         -1.42647390514189e-02)  # fmt: skip

# pi / 2 in numbers of 8 bits, so that products with whole numbers of 16 bits are exact, and the rest.
HALF_PI = (1.5703125, 4.825592041015625e-4, 1.2665987014770508e-6, 9.89530235528946e-10, 2.563344151594519e-12)
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
LARGEST_TURN = 1.0  # of what is left of an angle, where it is too large for HALF_PI
NO_FRACTIONS = 2.0**23


class Number:
    """Constants and shared values at the type (float32 or a vector of it) of one call."""

    def __init__(self, call: Call) -> None:
        self.argument = call.args[0]
        self.dtype = str(self.argument.ty.dtype)
        self.integer = self.dtype.replace("float32", "int32")

    def __call__(self, value: float) -> Expr:
        return tirx.const(value, self.dtype)

    def bits(self, value: int) -> Expr:
        return tirx.const(value, self.integer)

    def let(self, value: Expr, use: Callable[[Expr], Expr]) -> Expr:
        """`use` of a value that is computed once."""
        name = tirx.Var("shared", self.dtype)
        return tirx.Let(name, value, use(name))

    def polynomial(self, coefficients: Sequence[float], x: Expr) -> Expr:
        """Horner's rule, highest power first."""
        y = self(coefficients[0])
        for coefficient in coefficients[1:]:
            y = y * x + self(coefficient)
        return y

    def exp(self, x: Expr) -> Expr:
        """e^x of a value that is a name."""

        def scaled(t: Expr) -> Expr:
            n = t - self(ROUND)
            return self.let(x - n * self(LN2_HIGH) - n * self(LN2_LOW), lambda r: power(t, r))

        def power(t: Expr, r: Expr) -> Expr:
            y = self.polynomial(EXP, r) * (r * r) + r + self(1.0)
            half = (tirx.reinterpret(self.integer, t) << self.bits(23)) + self.bits(126 << 23)  # 2^(n - 1)
            y = y * tirx.reinterpret(self.dtype, half) * self(2.0)
            y = tirx.Select(x > self(EXP_HIGHEST), self(float("inf")), y)
            return tirx.Select(x < self(EXP_LOWEST), self(0.0), tirx.Select(tirx.NE(x, x), x, y))

        return self.let(x * self(1.44269504088896341) + self(ROUND), scaled)

    def log(self, x: Expr) -> Expr:
        """The natural logarithm of a value that is a name; -inf of 0, NaN of less."""

        def parted(v: Expr) -> Expr:
            bits = tirx.reinterpret(self.integer, v)
            half = tirx.reinterpret(self.dtype, (bits & self.bits(0x007FFFFF)) | self.bits(0x3F000000))  # [0.5, 1)
            n = ((bits >> self.bits(23)) - self.bits(126)).astype(self.dtype)
            small = half < self(HALF_ROOT)
            n = tirx.Select(x < self(LEAST_NORMAL), n - self(23.0), n) - tirx.Select(small, self(1.0), self(0.0))
            m = tirx.Select(small, half + half, half) - self(1.0)
            return self.let(n, lambda n: self.let(m, lambda m: summed(n, m)))

        def summed(n: Expr, m: Expr) -> Expr:
            y = self.polynomial(LOG, m) * m * (m * m) + n * self(LOG2_LOW) - self(0.5) * (m * m)
            y = m + y + n * self(LOG2_HIGH)
            y = tirx.Select(x > self(FLOAT_MAX), x, y)
            y = tirx.Select(x > self(0.0), y, tirx.Select(tirx.EQ(x, self(0.0)), self(-math.inf), self(math.nan)))
            return tirx.Select(tirx.NE(x, x), x, y)

        return self.let(tirx.Select(x < self(LEAST_NORMAL), x * self(2.0**23), x), parted)

    def wave(self, x: Expr, quarter: int) -> Expr:
        """sin(x + quarter pi / 2) of a value that is a name."""

        def turned(n: Expr) -> Expr:
            r = x
            for part in HALF_PI:
                r = r - n * self(part)
            held = tirx.Select(r > self(LARGEST_TURN), self(LARGEST_TURN), r)
            held = tirx.Select(held < self(-LARGEST_TURN), self(-LARGEST_TURN), held)
            return self.let(held, lambda r: self.let(r * r, lambda s: chosen(n, r, s)))

        def chosen(n: Expr, r: Expr, s: Expr) -> Expr:
            bits = tirx.reinterpret(self.integer, n + self(ROUND)) + self.bits(quarter)
            odd = self.polynomial(SIN, s) * s * r + r
            even = self.polynomial(COS, s) * (s * s) - self(0.5) * s + self(1.0)
            y = tirx.Select(tirx.EQ(bits & self.bits(1), self.bits(0)), odd, even)
            return tirx.Select(tirx.EQ(bits & self.bits(2), self.bits(0)), y, self(0.0) - y)

        return self.let(x * self(2.0 / math.pi) + self(ROUND), lambda t: self.let(t - self(ROUND), turned))

    def whole(self, x: Expr, correction: Callable[[Expr], Expr]) -> Expr:
        """x without its fraction, and `correction` added to that; x itself where float32 has no fractions."""
        small = tirx.Select(x < self(0.0), self(0.0) - x, x) < self(NO_FRACTIONS)
        cut = tirx.Select(small, x, self(0.0)).astype(self.integer).astype(self.dtype)
        return self.let(cut, lambda t: tirx.Select(small, t + correction(t), x))

    def rational(self, x: Expr, limit: float, p: Sequence[float], q: Sequence[float]) -> Expr:
        """x p(x^2) / q(x^2) with x held inside +-limit; NaN passes."""

        def inside(held: Expr) -> Expr:
            return self.let(held * held, lambda s: held * self.polynomial(p, s) / self.polynomial(q, s))

        above = tirx.Select(x > self(limit), self(limit), x)
        return self.let(tirx.Select(x < self(-limit), self(-limit), above), inside)


def lowered_exp(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, number.exp)


def lowered_log(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, number.log)


def lowered_sigmoid(call: Call) -> Expr:
    number = Number(call)
    return number(1.0) / (number(1.0) + number.let(number(0.0) - number.argument, number.exp))


def lowered_tanh(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, lambda x: number.rational(x, TANH_LIMIT, TANH_P, TANH_Q))


def lowered_erf(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, lambda x: number.rational(x, ERF_LIMIT, ERF_P, ERF_Q))


def lowered_nearest(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument + number(ROUND), lambda t: t - number(ROUND))


def lowered_sin(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, lambda x: number.wave(x, 0))


def lowered_cos(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, lambda x: number.wave(x, 1))


def lowered_trunc(call: Call) -> Expr:
    number = Number(call)
    return number.let(number.argument, lambda x: number.whole(x, lambda t: number(0.0)))


def lowered_floor(call: Call) -> Expr:
    number = Number(call)
    return number.let(
        number.argument, lambda x: number.whole(x, lambda t: tirx.Select(t > x, number(-1.0), number(0.0)))
    )


def lowered_ceil(call: Call) -> Expr:
    number = Number(call)
    return number.let(
        number.argument, lambda x: number.whole(x, lambda t: tirx.Select(t < x, number(1.0), number(0.0)))
    )


def lowered_divided(call: Call) -> Expr:
    """Markstein's correction: what is left of x is exact, and the next sum rounds as a division would."""
    number, (x, s, r) = Number(call), call.args

    def fused(a: Expr, b: Expr, c: Expr) -> Expr:
        return tirx.call_llvm_pure_intrin(number.dtype, "llvm.fma", a, b, c)

    def corrected(x: Expr, q: Expr) -> Expr:
        return fused(fused(q, number(0.0) - s, x), r, q)  # -s is the same for all

    return number.let(x, lambda x: number.let(x * r, lambda q: corrected(x, q)))


LOWERED = {
    "divided": lowered_divided,
    "nearest": lowered_nearest,
    "exp": lowered_exp,
    "log": lowered_log,
    "sigmoid": lowered_sigmoid,
    "tanh": lowered_tanh,
    "erf": lowered_erf,
    "sin": lowered_sin,
    "cos": lowered_cos,
    "trunc": lowered_trunc,
    "floor": lowered_floor,
    "ceil": lowered_ceil,
}


def register() -> None:
    """Make the operators known to TVM; nothing that TVM has of its own changes."""
    for name, lowering in LOWERED.items():
        register_operator(name, lowering)


def register_operator(name: str, lowering: Callable[[Any], Any]) -> None:
    """Make `tirx.edgemem_NAME` known to TVM, an element-wise operator that becomes what `lowering` says."""
    operator = f"tirx.edgemem_{name}"
    register_op_attr(operator, "TCallEffectKind", PURE)
    register_op_attr(operator, "TVectorizable", True)
    register_op_attr(operator, "TScriptPrinterName", f"edgemem_{name}")
    register_op_attr(operator, "default.FLowerIntrinsic", lowering)


register()


def function(name: str) -> Callable[[Expr], Expr]:
    """The scalar function of float32 by its name in `LOWERED`."""
    return lambda x: tirx.call_intrin("float32", f"tirx.edgemem_{name}", x)


exp, log, sigmoid, tanh, erf, nearest = (function(name) for name in ("exp", "log", "sigmoid", "tanh", "erf", "nearest"))
sin, cos, trunc, floor, ceil = (function(name) for name in ("sin", "cos", "trunc", "floor", "ceil"))


def divided(x: Expr, s: Expr, r: Expr) -> Expr:
    """x / s, where r is the float32 nearest to 1 / s and both are normal; for cores that multiply and add in one."""
    return tirx.call_intrin("float32", "tirx.edgemem_divided", x, s, r)
