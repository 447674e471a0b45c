"""Products of four bytes with four bytes, one after another in a 32-bit lane: what a core has, or shifts and products.

    portable   a unsigned, b signed    sum_i (a >> 8i & 255) ((b << 24 - 8i) >> 24)         any core
    pairs      a unsigned, b signed    two `pmaddwd` on even and odd bytes                  x86 with AVX2, exact
    vnni       a unsigned, b signed    one `vpdpbusd`                                       x86 with AVX512-VNNI
    smlad      a unsigned, b signed    two `smlad` on even and odd bytes                    Cortex-M4 and up
    sdot       both signed             one `sdot`                                           Arm with dot products
    dp4a       both signed             one `__dp4a`                                         NVIDIA from sm_61 on

Each is an operator of int32 (or a vector of it) until the last lowering step, and exact. Where one instruction both
multiplies and adds, a sum that the product is added to becomes its third operand (`summed`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Call

from edgemem.runtimes.aot.mathops import register_operator

Expr = Any
PORTABLE, PAIRS, VNNI, SMLAD, SDOT, DP4A = "portable", "pairs", "vnni", "smlad", "sdot", "dp4a"
SIGNED = (SDOT, DP4A)  # kinds that take signed bytes on the left too
INTRINSICS = {  # by kind: LLVM's name, and how many 32-bit lanes it takes
    VNNI: ("llvm.x86.avx512.vpdpbusd.512", 16),
    SDOT: ("llvm.aarch64.neon.sdot.v4i32.v16i8", 4),
}
JOINED = {f"tirx.edgemem_dot_{kind}" for kind in INTRINSICS}  # operators that take what they are added to
MADD = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}


def kind_of(target: Any) -> str:
    """The best that the core of an LLVM target has."""
    from tvm.target import codegen

    triple = str(target.attrs["mtriple"])
    features: tuple[tuple[str, str], ...]
    if triple.startswith("x86_64"):
        features = (("avx512vnni", VNNI), ("avx2", PAIRS))
    else:
        arm = {"aarch64": (("dotprod", SDOT),), "thumbv7em": (("dsp", SMLAD),), "thumbv8m.main": (("dsp", SMLAD),)}
        features = arm.get(triple.partition("-")[0], ())
    return next((kind for feature, kind in features if codegen.target_has_features(feature, target)), PORTABLE)


def dot(kind: str, a: Expr, b: Expr) -> Expr:
    """sum_i a_i b_i of the four bytes of two int32."""
    return tirx.call_intrin("int32", f"tirx.edgemem_dot_{kind}", a, b)


def signed(word: Expr, i: int) -> Expr:
    """Byte i of a word, as a number of -128..127."""
    kind = str(word.ty.dtype)
    return (word << tirx.const(24 - 8 * i, kind)) >> tirx.const(24, kind)


def unsigned(word: Expr, i: int) -> Expr:
    """Byte i of a word, as a number of 0..255."""
    kind = str(word.ty.dtype)
    return (word >> tirx.const(8 * i, kind)) & tirx.const(255, kind)


def by_shifts(byte: Callable[[Expr, int], Expr]) -> Callable[[Call], Expr]:
    """Any core's way, for a left side whose bytes are read by `byte`."""

    def lowered(call: Call) -> Expr:
        a, b = call.args[:2]
        terms = [byte(a, i) * signed(b, i) for i in range(4)]
        return terms[0] + terms[1] + terms[2] + terms[3]

    return lowered


portable = by_shifts(unsigned)


def pairs(call: Call) -> Expr:
    """Bytes 0 and 2, then bytes 1 and 3, as two numbers of 16 bits each."""
    a, b = call.args
    lanes = lanes_in(call)
    if lanes not in MADD:
        return portable(call)
    kind, short = str(a.ty.dtype), f"int16x{2 * lanes}"
    mask, eight = tirx.const(255, short), tirx.const(8, short)
    left, right = tirx.reinterpret(short, a), tirx.reinterpret(short, b)
    even = tirx.call_llvm_pure_intrin(kind, MADD[lanes], left & mask, (right << eight) >> eight)
    odd = tirx.call_llvm_pure_intrin(kind, MADD[lanes], (left >> eight) & mask, right >> eight)
    return even + odd


def smlad(call: Call) -> Expr:
    """The same on one register of two numbers."""
    a, b = call.args
    if lanes_in(call) > 1:
        return portable(call)
    eight = tirx.const(8, "int32")
    total = tirx.const(0, "int32")
    for left, right in ((a, b), (a >> eight, b >> eight)):
        wide = [tirx.call_llvm_pure_intrin("int32", f"llvm.arm.{name}", side)
                for name, side in (("uxtb16", left), ("sxtb16", right))]  # fmt: skip
        total = tirx.call_llvm_pure_intrin("int32", "llvm.arm.smlad", *wide, total)
    return total


def intrinsic(kind: str) -> Callable[[Call], Expr]:
    """One instruction, where the vector is as long as it takes."""
    name, wanted = INTRINSICS[kind]

    def lowered(call: Call) -> Expr:
        a, b, *sums = call.args
        dtype, lanes = str(a.ty.dtype), lanes_in(call)
        if lanes != wanted:
            product = by_shifts(signed)(call) if kind == SDOT else portable(call)
            return sum(sums, product)
        bytes_ = f"int8x{4 * lanes}"
        left, right = tirx.reinterpret(bytes_, a), tirx.reinterpret(bytes_, b)
        return tirx.call_llvm_pure_intrin(dtype, name, *(sums or [tirx.const(0, dtype)]), left, right)

    return lowered


def accumulate(call: Call) -> Expr:
    """`total + dot(a, b)`, by one instruction where one does both.

    LLVM keeps the two apart: the product would go into a register of zeros, and from there to the sum.
    """
    total, product = call.args
    return Call(product.op, [*product.args, total], ret_ty=product.ty) if is_joined(product) else total + product


def is_joined(product: Expr) -> bool:
    return str(getattr(getattr(product, "op", None), "name", "")) in JOINED


def summed(product: Expr, axis: Any) -> Expr:
    """A reduction of products of bytes: `te.sum`, or what becomes one instruction with the product."""
    from tvm import te

    if not is_joined(product):
        return te.sum(product, axis=axis)

    def plus(x: Expr, y: Expr) -> Expr:
        return tirx.call_intrin("int32", "tirx.edgemem_accumulate", x, y)

    return te.comm_reducer(plus, lambda kind: tirx.const(0, kind))(product, axis=axis)


def lanes_in(call: Call) -> int:
    from tvm import DataType

    return int(DataType(str(call.args[0].ty.dtype)).lanes)


def dp4a(call: Call) -> Expr:
    """A function of CUDA's."""
    a, b = call.args
    return tirx.call_pure_extern("int32", "__dp4a", a, b, tirx.const(0, "int32"))


def register() -> None:
    """Make the operators known to TVM."""
    rules = {
        PORTABLE: portable,
        PAIRS: pairs,
        SMLAD: smlad,
        DP4A: dp4a,
        **{kind: intrinsic(kind) for kind in INTRINSICS},
    }
    for kind, rule in rules.items():
        register_operator(f"dot_{kind}", rule)
    register_operator("accumulate", accumulate)


register()
