"""Products with vector codes by tables: what x makes of each entry of a codebook is computed once for all outputs.

    T[g, e] = sum_d x[g dim + d] book[e, d]             23 bits of an integer, in three tables of bytes
    y[n] = s[n] sum_g T[g, code[g, n]]                  64 outputs at a time: bytes are permuted by codes, and summed

A table of 64 bytes is a register, 128 two, 256 four. AVX512-VBMI permutes the bytes of one register in an instruction,
of two in a longer one; bits 6 and 7 of a code choose among four. Sums are exact; an entry is rounded by 2^-23 of what
the largest |x| could make with the largest entry. Tables of a block of groups fit the nearest cache: they are made,
then read by all outputs, block by block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax, tirx

from edgemem.runtimes.aot import dots
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized.digits import DIGITS, steps
from edgemem.runtimes.aot.quantized.emitting import FLOAT, OPAQUE, constant, emitted, reshaped, trimmed
from edgemem.runtimes.aot.quantized.weights import Codes
from edgemem.runtimes.aot.schedules import WRITTEN
from edgemem.runtimes.aot.schedules.matmul import Panel

Array = np.ndarray[Any, np.dtype[Any]]
Expr = Any
WIDE = 64  # bytes of a register
LANES = 16
PAIRS = 32  # of bytes in a register
MOST_SUMMED = 257  # bytes that a word holds the sum of
MOST = 256  # entries of a codebook
BLOCK_BYTES = 24576  # of tables: half of a first-level cache
MAGIC = 1.5 * 2.0**23  # added to a whole number of +-2^22, leaves it plus 2^22 in the lowest 23 bits
OFFSET = 1 << 22


def permutes(machine: Machine) -> bool:
    """Whether the core looks up 64 bytes at once, as some of those do that sum products of bytes."""
    from tvm.target import codegen

    return machine.dot == dots.VNNI and bool(codegen.target_has_features("avx512vbmi", machine.target))


def fits(machine: Machine, matrix: Codes) -> bool:
    """Whether the core can, and outputs are enough to make up for the tables."""
    entries = matrix.books.shape[1]
    return permutes(machine) and entries <= MOST and matrix.shape[1] >= entries


def product(builder: Any, x: Expr, matrix: Codes, shape: Sequence[int], machine: Machine) -> Expr:
    """x [..., K] times a coded matrix."""
    count, width = math.prod(shape[:-1]), matrix.shape[0]
    x = reshaped(builder, x, (count, width))
    most = np.abs(matrix.books.astype("d")).sum(axis=2).max()
    step = builder.normalize(steps(builder, x, width, machine))
    panel = Panel(WIDE, -(-shape[-1] // WIDE), shape[-1])
    books, codes = laid_books(matrix.books), laid_codes(matrix.codes, panel)
    scale = np.pad(matrix.scale * np.float32(most), (0, panel.count * WIDE - shape[-1]))
    function = kernel(count, books.shape, codes.shape, 1 / most)
    name = builder.add_func(function, "product_vq")
    held = [x, step, constant(books), constant(codes), constant(scale.astype(np.float32))]
    padded = [count, panel.count * WIDE]
    made = builder.emit(relax.call_tir(name, held, relax.TensorType(padded, FLOAT)))
    if padded[1] > shape[-1]:
        made = emitted(builder, "trim", lambda y: trimmed(y, (count, shape[-1])), made)
    return reshaped(builder, made, shape)


def laid_books(books: Array) -> Array:
    """[R, entries, dim] -> float32 [R, C / 64, 4, dim, 16], zeros behind the last entry: entry 64 t + 4 i + j lies in
    lane i of vector j, so that four vectors of integers make one register of bytes.
    """
    count, entries, dim = books.shape
    padded = np.zeros((count, WIDE << max(0, (entries - 1).bit_length() - 6), dim), np.float32)
    padded[:, :entries] = books
    return np.ascontiguousarray(padded.reshape(count, -1, LANES, 4, dim).transpose(0, 1, 3, 4, 2))


def laid_codes(codes: Array, panel: Panel) -> Array:
    """[R, N, K / dim] -> uint8 [N / 64, K / dim, R, 64]: byte 4 i + j is the code of output 16 j + i of the panel."""
    packed = np.stack([panel.packed(part.T.astype(np.uint8)) for part in codes], axis=2)
    return np.ascontiguousarray(packed.reshape(*packed.shape[:3], 4, LANES).swapaxes(3, 4).reshape(packed.shape))


def kernel(count: int, books: Sequence[int], codes: Sequence[int], share: float) -> Any:
    """The PrimFunc: x [count, K], step [count], books, codes, scale [N] -> y [count, N]."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    residual, registers, _, dim, _ = books
    panels, groups, *_ = codes
    block = max(1, min(BLOCK_BYTES // (DIGITS * registers * WIDE), MOST_SUMMED) // residual)
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("product_vq")
        T.func_attr({"op_pattern": OPAQUE, WRITTEN: "tables"})
        x = T.arg("x", T.buffer((count, groups * dim), FLOAT))
        step = T.arg("step", T.buffer((count,), FLOAT))
        book = T.arg("book", T.buffer(tuple(books), FLOAT))
        code = T.arg("code", T.buffer(tuple(codes), "uint8"))
        scale = T.arg("scale", T.buffer((panels * WIDE,), FLOAT))
        y = T.arg("y", T.buffer((count, panels * WIDE), FLOAT))
        table = T.alloc_buffer((block * residual * DIGITS * registers * LANES,), "int32")
        total = T.alloc_buffer((panels * DIGITS * WIDE,), "int32")
        scaled = T.alloc_buffer((block * dim,), FLOAT)
        sums = T.alloc_buffer((2 * DIGITS * PAIRS,), "uint16")
        work = Kernel(T, (x, step, book, code, scale, y), (table, total, scaled, sums), block, share)
        with T.serial(0, count) as row:
            work.row(row)
    return made.get()


class Kernel:
    """The statements of the kernel, outermost first; `T` is TVM's builder."""

    def __init__(self, T: Any, outer: Sequence[Any], inner: Sequence[Any], block: int, share: float) -> None:
        self.T, self.block, self.share = T, block, share
        self.x, self.step, self.book, self.code, self.scale, self.y = outer
        self.table, self.total, self.scaled, self.sums = inner
        self.residual, self.registers, _, self.dim, _ = (int(n) for n in self.book.shape)
        self.panels, self.groups = int(self.code.shape[0]), int(self.code.shape[1])

    def store(self, buffer: Any, value: Expr, *place: Expr, lanes: int = LANES) -> None:
        self.T.buffer_store(buffer, value, [*place[:-1], tirx.Ramp(place[-1], 1, lanes)])

    def vector(self, buffer: Any, *place: Expr, lanes: int = LANES) -> Expr:
        return tirx.BufferLoad(buffer, [*place[:-1], tirx.Ramp(place[-1], 1, lanes)])

    def row(self, row: Expr) -> None:
        T = self.T
        with T.serial(0, self.panels * DIGITS * 4) as i:
            self.store(self.total, tirx.Broadcast(tirx.const(0, "int32"), LANES), i * LANES)
        with T.serial(0, -(-self.groups // self.block)) as block:
            first = block * self.block
            count = tirx.min(tirx.const(self.block, "int32"), self.groups - first)
            self.tables(row, first, count)
            with T.serial(0, self.panels) as panel:
                self.panel(panel, first, count)
        with T.serial(0, self.panels) as panel:
            self.finish(row, panel)

    def tables(self, row: Expr, first: Expr, count: Expr) -> None:
        """The tables of a block of groups: four vectors of integers give a register of each byte.

        For all groups in turn the same 64 entries, which stay in registers if they have few numbers.
        """
        T, up = self.T, tirx.const(self.share, FLOAT) / self.step[row]
        with T.serial(0, count * self.dim) as i:
            T.buffer_store(self.scaled, self.x[row, first * self.dim + i] * up, [i])
        with T.serial(0, self.residual) as r, T.serial(0, self.registers) as t, T.serial(0, count) as g:
            numbers = [self.number(g, r, t, j) for j in range(4)]
            for p, digit in enumerate(bytes_of(*numbers)):
                self.store(self.table, digit, self.entry(g, r, p, t))

    def number(self, g: Expr, r: Expr, t: Expr, j: int) -> Expr:
        """16 entries' products with x, and OFFSET, as the lowest bits of a float."""
        x = [tirx.Broadcast(self.scaled[g * self.dim + d], LANES) for d in range(self.dim)]
        terms = [x[d] * self.vector(self.book, r, t, j, d, 0) for d in range(self.dim)]
        total = sum(terms[1:], terms[0])
        return tirx.reinterpret(f"uint32x{LANES}", total + tirx.Broadcast(tirx.const(MAGIC, FLOAT), LANES))

    def entry(self, place: Expr, r: Expr, p: int, t: Expr | int) -> Expr:
        """Where a register of a table lies."""
        return (((place * self.residual + r) * DIGITS + p) * self.registers + t) * LANES

    def panel(self, panel: Expr, first: Expr, count: Expr) -> None:
        """What a block of groups adds to 64 outputs, in registers.

        Two neighbouring bytes are a word; of words the sum, which may go round, and the sum of their high bytes are
        kept: the first less 256 times the second is the sum of the low bytes.
        """
        for place in range(0, 2 * DIGITS * PAIRS, PAIRS):
            self.store(self.sums, pairs(0), place, lanes=PAIRS)
        with self.T.serial(0, count) as g:
            for r in range(self.residual):
                codes = as_bytes(self.vector(self.code, panel, first + g, r, 0, lanes=WIDE))
                for p in range(DIGITS):
                    found = tirx.reinterpret(WORDS, self.found(codes, g, r, p))
                    for half, value in enumerate((found, found >> pairs(8))):
                        place = (2 * p + half) * PAIRS
                        self.store(self.sums, self.vector(self.sums, place, lanes=PAIRS) + value, place, lanes=PAIRS)
        for p in range(DIGITS):
            both, high = (self.vector(self.sums, (2 * p + half) * PAIRS, lanes=PAIRS) for half in range(2))
            low = both - (high << pairs(8))
            for j, value in enumerate((low, high, low, high)):
                words = tirx.reinterpret(f"uint32x{LANES}", value)
                sixteen = tirx.Broadcast(tirx.const(16, "uint32"), LANES)
                number = words >> sixteen if j > 1 else words & tirx.Broadcast(tirx.const(0xFFFF, "uint32"), LANES)
                place = panel * (DIGITS * WIDE) + (p * 4 + j) * LANES
                self.store(self.total, self.vector(self.total, place) + number.astype(f"int32x{LANES}"), place)

    def found(self, codes: Expr, g: Expr, r: int, p: int) -> Expr:
        """The bytes that 64 codes name in a table."""
        table = [as_bytes(self.vector(self.table, self.entry(g, r, p, t))) for t in range(self.registers)]
        if self.registers == 1:
            return tirx.call_llvm_pure_intrin(BYTES, ONE, table[0], codes)
        if self.registers == 2:
            return tirx.call_llvm_pure_intrin(BYTES, TWO, table[0], codes, table[1])
        nothing, bit = (tirx.Broadcast(tirx.const(value, "int8"), WIDE) for value in (0, 64))
        each = [tirx.call_llvm_pure_intrin(BYTES, ONE, part, codes) for part in table]
        low, high = (tirx.Select(tirx.NE(codes & bit, nothing), each[t + 1], each[t]) for t in (0, 2))
        return tirx.Select(codes < nothing, high, low)

    def finish(self, row: Expr, panel: Expr) -> None:
        """Bytes joined and scaled."""
        shift = splat(self.groups * self.residual * (OFFSET >> 16))
        step = tirx.Broadcast(self.step[row], LANES)
        for j in range(4):
            sums = [self.vector(self.total, panel * (DIGITS * WIDE) + (p * 4 + j) * LANES) for p in range(DIGITS)]
            high, middle, low = (part.astype(f"float32x{LANES}") for part in (sums[0] - shift, *sums[1:]))
            whole = high * factor(65536.0) + middle * factor(256.0) + low
            place = panel * WIDE + j * LANES
            self.store(self.y, whole * (step * self.vector(self.scale, place)), row, place)


ONE, TWO = "llvm.x86.avx512.permvar.qi.512", "llvm.x86.avx512.vpermi2var.qi.512"
BYTES, WORDS = f"int8x{WIDE}", f"uint16x{PAIRS}"


def pairs(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "uint16"), PAIRS)


def splat(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "int32"), LANES)


def factor(value: float) -> Expr:
    return tirx.Broadcast(tirx.const(value, FLOAT), LANES)


def as_bytes(value: Expr) -> Expr:
    return tirx.reinterpret(BYTES, value)


def bytes_of(a: Expr, b: Expr, c: Expr, d: Expr) -> tuple[Expr, Expr, Expr]:
    """Of four vectors of numbers the third bytes, the second, the first, each four in a lane. The 23 bits of MAGIC's
    fraction are followed by a 0, the last of its exponent.
    """

    def mixed(x: Expr, y: Expr, mask: int) -> Expr:
        return (x & unsigned(mask)) | (y & unsigned(mask ^ 0xFFFFFFFF))

    def left(x: Expr, bits: int) -> Expr:
        return x << unsigned(bits)

    def right(x: Expr, bits: int) -> Expr:
        return x >> unsigned(bits)

    even, half = 0x00FF00FF, 0x0000FFFF
    first, second = mixed(a, left(b, 8), even), mixed(c, left(d, 8), even)  # a0 b0 a2 b2, c0 d0 c2 d2
    third, fourth = mixed(right(a, 8), b, even), mixed(right(c, 8), d, even)  # a1 b1 a3 b3, c1 d1 c3 d3
    found = (
        mixed(right(first, 16), second, half),
        mixed(third, left(fourth, 16), half),
        mixed(first, left(second, 16), half),
    )
    return tuple(tirx.reinterpret(f"int32x{LANES}", digit) for digit in found)


def unsigned(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "uint32"), LANES)
