"""Products with vector codes by tables: what x makes of each entry of a codebook is computed once for all outputs.

    T[g, e] = sum_d x[g dim + d] book[e, d]             23 bits of an integer, in three tables of bytes
    y[n] = s[n] sum_g T[g, code[g, n]]                  64 outputs at a time: bytes are permuted by codes, and summed

A table of 64 bytes is a register, 128 two, 256 four. AVX512-VBMI permutes the bytes of a register by the lowest 6 bits
of each code; bits 6 and 7 choose among registers. Sums are exact; an entry is rounded by 2^-23 of what the largest |x|
could make with the largest entry. Tables of a block of groups fit the nearest cache: they are made, then read by all
outputs, block by block; codes lie in the order in which they are read.

In a mirrored codebook entry e + C / 2 is the negation of entry e (`vq:mirror=1` makes such). Tables of one half are
made and looked up, and bit 7 of a code is the sign. A number in a table is T + 2^22; its bytes, subtracted from 127,
255 and 255, are those of 2^22 - 1 - T. What is missing is one for each negative code, known when weights are packed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, tirx

from edgemem.runtimes.aot import dots
from edgemem.runtimes.aot.ahead import ask
from edgemem.runtimes.aot.lowering import REPEATS, SHARED
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
AHEAD_BYTES = 4096  # how far ahead codes are asked for
MAGIC = 1.5 * 2.0**23  # added to a whole number of +-2^22, leaves it plus 2^22 in the lowest 23 bits
OFFSET = 1 << 22
HIGHEST = (127, 255, 255)  # of each digit
SIGN = 128  # bit of a code of a mirrored codebook


@dataclass(frozen=True)
class Layout:
    """The sizes of a product's codes: `units` are groups times codebooks, each with a table and a code of its own."""

    residual: int
    registers: int  # of a table of bytes
    dim: int
    groups: int
    panels: int
    mirrored: bool

    @property
    def block(self) -> int:
        """Groups whose tables are made together; an even number of units where more than one table fits."""
        units = min(BLOCK_BYTES // (DIGITS * self.registers * WIDE), MOST_SUMMED)
        return max(1, units // (2 * self.residual) * 2)

    @property
    def units(self) -> int:
        return self.groups * self.residual


def permutes(machine: Machine) -> bool:
    """Whether the core looks up 64 bytes at once, as some of those do that sum products of bytes."""
    from tvm.target import codegen

    return machine.dot == dots.VNNI and bool(codegen.target_has_features("avx512vbmi", machine.target))


def fits(machine: Machine, matrix: Codes) -> bool:
    """Whether the core can, and outputs are enough to make up for the tables."""
    return permutes(machine) and matrix.books.shape[1] <= MOST and matrix.shape[1] >= entries(matrix)


def entries(matrix: Codes) -> int:
    """Of a table: of a mirrored codebook one half."""
    count = int(matrix.books.shape[1])
    return count // 2 if mirrored(matrix.books) else count


def mirrored(books: Array) -> bool:
    """Whether the second half of every codebook [R, entries, dim] is the first half with the other sign."""
    half = books.shape[1] // 2
    return books.shape[1] == 2 * half and np.array_equal(books[:, half:], -books[:, :half])


def product(builder: Any, x: Expr, matrix: Codes, shape: Sequence[int], machine: Machine) -> Expr:
    """x [..., K] times a coded matrix."""
    count, width = math.prod(shape[:-1]), matrix.shape[0]
    x = reshaped(builder, x, (count, width))
    most = np.abs(matrix.books.astype("d")).sum(axis=2).max()
    step = builder.normalize(steps(builder, x, width, machine))
    panel = Panel(WIDE, -(-shape[-1] // WIDE), shape[-1])
    signed, size = mirrored(matrix.books), entries(matrix)
    books, codes = laid_books(matrix.books[:, :size]), matrix.codes.astype(np.uint8)
    if signed:
        codes = np.where(codes >= size, codes - size + SIGN, codes).astype(np.uint8)
    layout = Layout(len(books), books.shape[1], matrix.dim, width // matrix.dim, panel.count, signed)
    padding = (0, panel.count * WIDE - shape[-1])
    scale = np.pad(matrix.scale * np.float32(most), padding)
    negative = [np.pad((codes >= SIGN).sum(axis=(0, 2)).astype(np.int32), padding)] if signed else []
    name = builder.add_func(kernel(count, layout, 1 / most), "product_vq")
    parts = [books, laid_codes(codes, panel, layout), scale.astype(np.float32), *negative, byte_constants()]
    padded = [count, panel.count * WIDE]
    made = builder.emit(relax.call_tir(name, [x, step, *map(constant, parts)], relax.TensorType(padded, FLOAT)))
    if padded[1] > shape[-1]:
        made = emitted(builder, "trim", lambda y: trimmed(y, (count, shape[-1])), made)
    return reshaped(builder, made, shape)


def laid_books(books: Array) -> Array:
    """[R, entries, dim] -> float32 [R, C / 64, 4, dim, 16], zeros behind the last entry: entry 64 t + 4 i + j lies in
    lane i of vector ORDER[j], so that four vectors of integers make one register of bytes.
    """
    count, size, dim = books.shape
    padded = np.zeros((count, WIDE << max(0, (size - 1).bit_length() - 6), dim), np.float32)
    padded[:, :size] = books
    vectors = padded.reshape(count, -1, LANES, 4, dim)[:, :, :, ORDER]
    return np.ascontiguousarray(vectors.transpose(0, 1, 3, 4, 2))


def laid_codes(codes: Array, panel: Panel, layout: Layout) -> Array:
    """[R, N, K / dim] -> uint8, block by block of groups, in each panel by panel [groups, R, 64]: byte 4 i + j is the
    code of output 16 j + i of the panel.
    """
    packed = np.stack([panel.packed(part.T) for part in codes], axis=2)  # [N / 64, K / dim, R, 64]
    placed = packed.reshape(*packed.shape[:3], 4, LANES).swapaxes(3, 4).reshape(packed.shape)
    blocks = range(0, layout.groups, layout.block)
    return np.concatenate([placed[:, at : at + layout.block].reshape(-1) for at in blocks])


def kernel(count: int, layout: Layout, share: float) -> Any:
    """The PrimFunc: x [count, K], step [count], books, codes, scale [N], of mirrored books the count of negative
    codes [N], and `byte_constants` -> y [count, N]."""
    from tvm.script.ir_builder import IRBuilder
    from tvm.tirx.script.builder import ir as T

    outputs = layout.panels * WIDE
    tables = layout.block * layout.residual * DIGITS * layout.registers
    with IRBuilder() as made, T.prim_func(s_tir=True):
        T.func_name("product_vq")
        T.func_attr({"op_pattern": OPAQUE, WRITTEN: "tables", REPEATS: 1})
        x = T.arg("x", T.buffer((count, layout.groups * layout.dim), FLOAT))
        step = T.arg("step", T.buffer((count,), FLOAT))
        book = T.arg("book", T.buffer((layout.residual, layout.registers, 4, layout.dim, LANES), FLOAT))
        code = T.arg("code", T.buffer((layout.units * outputs,), "uint8"))
        scale = T.arg("scale", T.buffer((outputs,), FLOAT))
        negative = T.arg("negative", T.buffer((outputs,), "int32")) if layout.mirrored else None
        constants = T.arg("constants", T.buffer((COMPLEMENT + DIGITS, WIDE), "uint8"))
        y = T.arg("y", T.buffer((count, outputs), FLOAT))
        table = T.alloc_buffer((tables,), f"int32x{LANES}", scope="local")  # aligned as vectors are, on the stack too
        total = T.alloc_buffer((outputs * DIGITS,), "int32")
        scaled = T.alloc_buffer((layout.block * layout.dim,), FLOAT, scope="local")
        sums = T.alloc_buffer((2 * DIGITS * PAIRS,), "uint16")
        work = Kernel(
            T, layout, (x, step, book, code, scale, negative, constants, y), (table, total, scaled, sums), share
        )
        with T.serial(0, count) as row:
            work.row(row)
    return made.get()


class Kernel:
    """The statements of the kernel, outermost first; `T` is TVM's builder."""

    def __init__(self, T: Any, layout: Layout, outer: Sequence[Any], inner: Sequence[Any], share: float) -> None:
        self.T, self.layout, self.share = T, layout, share
        self.x, self.step, self.book, self.code, self.scale, self.negative, self.constants, self.y = outer
        self.table, self.total, self.scaled, self.sums = inner

    def store(self, buffer: Any, value: Expr, *place: Expr, lanes: int = LANES) -> None:
        self.T.buffer_store(buffer, value, [*place[:-1], tirx.Ramp(place[-1], 1, lanes)])

    def vector(self, buffer: Any, *place: Expr, lanes: int = LANES) -> Expr:
        return tirx.BufferLoad(buffer, [*place[:-1], tirx.Ramp(place[-1], 1, lanes)])

    def row(self, row: Expr) -> None:
        T, layout = self.T, self.layout
        with self.panels() as panel, T.serial(0, DIGITS * 4) as i:
            self.store(self.total, splat(0), (panel * (DIGITS * 4) + i) * LANES)
        with T.serial(0, -(-layout.groups // layout.block)) as block:
            first = block * layout.block
            count = tirx.min(tirx.const(layout.block, "int32"), layout.groups - first)
            self.tables(row, first, count)
            with self.panels() as panel:
                self.panel(panel, first * layout.residual, count * layout.residual)
        with self.panels() as panel:
            self.finish(row, panel)

    def panels(self) -> Any:
        """The loop over panels, which threads may share; each makes all tables for its own."""
        return self.T.serial(0, self.layout.panels, annotations={SHARED: 1})

    def tables(self, row: Expr, first: Expr, count: Expr) -> None:
        """The tables of a block of groups: four vectors of integers give a register of each byte.

        For all groups in turn the same 64 entries, which stay in registers if they have few numbers.
        """
        T, layout, up = self.T, self.layout, tirx.const(self.share, FLOAT) / self.step[row]
        with T.serial(0, count * layout.dim) as i:
            T.buffer_store(self.scaled, self.x[row, first * layout.dim + i] * up, [i])
        with T.serial(0, layout.residual) as r, T.serial(0, layout.registers) as t, T.serial(0, count) as g:
            numbers = [self.number(g, r, t, j) for j in range(4)]
            for p, digit in enumerate(self.bytes_of(*numbers)):
                T.buffer_store(self.table, digit, [self.entry(g * layout.residual + r, p, t)])

    def number(self, g: Expr, r: Expr, t: Expr, j: int) -> Expr:
        """16 entries' products with x, and OFFSET, as the lowest bits of a float."""
        dims = range(self.layout.dim)
        x = [tirx.Broadcast(self.scaled[g * self.layout.dim + d], LANES) for d in dims]
        terms = [x[d] * self.vector(self.book, r, t, j, d, 0) for d in dims]
        total = sum(terms[1:], terms[0])
        return tirx.reinterpret(f"uint32x{LANES}", total + factor(MAGIC))

    def bytes_of(self, *numbers: Expr) -> list[Expr]:
        """Of four vectors a, b, c, d of numbers the third bytes, the second, the first: in each lane of a, c, b, d.

        Each step takes every second word or byte of one vector, and those beside them of another. The 23 bits of
        MAGIC's fraction are followed by a 0, the last of its exponent.
        """
        a, b, c, d = map(as_bytes, numbers)
        low, other_low = self.with_odd(a, b, 2), self.with_odd(c, d, 2)  # a0 a1 b0 b1, c0 c1 d0 d1
        high, other_high = self.with_even(b, a, 2), self.with_even(d, c, 2)  # a2 a3 b2 b3, c2 c3 d2 d3
        found = self.with_odd(high, other_high, 1), self.with_even(other_low, low, 1), self.with_odd(low, other_low, 1)
        return [tirx.reinterpret(f"int32x{LANES}", digit) for digit in found]

    def with_odd(self, vector: Expr, other: Expr, size: int) -> Expr:
        """A vector whose odd parts of `size` bytes are the even ones of another."""
        return tirx.Select(self.constant(ODD + size - 1) < byte(0), self.swapped(other, size), vector)

    def with_even(self, vector: Expr, other: Expr, size: int) -> Expr:
        """A vector whose even parts of `size` bytes are the odd ones of another."""
        return tirx.Select(self.constant(EVEN + size - 1) < byte(0), self.swapped(other, size), vector)

    def swapped(self, vector: Expr, size: int) -> Expr:
        """Each two neighbours of `size` bytes in each other's place."""
        return tirx.call_llvm_pure_intrin(BYTES, SHUFFLED, vector, self.constant(BESIDE + size - 1))

    def constant(self, place: int) -> Expr:
        return as_bytes(self.vector(self.constants, place, 0, lanes=WIDE))

    def entry(self, unit: Expr, p: int, t: Expr | int) -> Expr:
        """Where a register of a table lies."""
        return (unit * DIGITS + p) * self.layout.registers + t

    def panel(self, panel: Expr, first: Expr, count: Expr) -> None:
        """What a block of `count` units adds to 64 outputs, in registers.

        Two neighbouring bytes are a word; of words the sum, which may go round, and the sum of their high bytes are
        kept: the first less 256 times the second is the sum of the low bytes. Two digits of 7 bits are one of 8.
        """
        T, start = self.T, first * self.layout.panels + panel * count
        for place in range(0, 2 * DIGITS * PAIRS, PAIRS):
            self.store(self.sums, pairs(0), place, lanes=PAIRS)
        with T.serial(0, count // 2) as two:
            self.add([two * 2, two * 2 + 1], start)
        with T.serial(0, count % 2):
            self.add([count - 1], start)
        for p in range(DIGITS):
            both, high = (self.vector(self.sums, (2 * p + half) * PAIRS, lanes=PAIRS) for half in range(2))
            low = both - (high << pairs(8))
            for j, value in enumerate((low, high, low, high)):
                words = tirx.reinterpret(f"uint32x{LANES}", value)
                number = words >> unsigned(16) if j > 1 else words & unsigned(0xFFFF)
                place = panel * (DIGITS * WIDE) + (p * 4 + j) * LANES
                self.store(self.total, self.vector(self.total, place) + number.astype(f"int32x{LANES}"), place)

    def add(self, units: Sequence[Expr], start: Expr) -> None:
        """The bytes that some units' codes name, to the sums. The core asks for what follows within a page of memory
        by itself, and each block of a panel has a page's worth of codes: those of the next are asked for here.
        """
        for unit in units:
            ahead = tirx.BufferLoad(self.code, [(start + unit) * WIDE + AHEAD_BYTES])
            self.T.evaluate(ask(ahead))
        codes = [as_bytes(self.vector(self.code, (start + unit) * WIDE, lanes=WIDE)) for unit in units]
        for p in range(DIGITS):
            found = [self.found(code, unit, p) for code, unit in zip(codes, units, strict=True)]
            for value in [sum(found[1:], found[0])] if p == 0 else found:
                words = tirx.reinterpret(WORDS, value)
                for half, part in enumerate((words, words >> pairs(8))):
                    place = (2 * p + half) * PAIRS
                    self.store(self.sums, self.vector(self.sums, place, lanes=PAIRS) + part, place, lanes=PAIRS)

    def found(self, codes: Expr, unit: Expr, p: int) -> Expr:
        """The bytes that 64 codes name in a table."""
        layout = self.layout
        table = [as_bytes(tirx.BufferLoad(self.table, [self.entry(unit, p, t)])) for t in range(layout.registers)]
        each = [tirx.call_llvm_pure_intrin(BYTES, PERMUTED, part, codes) for part in table]
        if layout.registers > 1:
            each = [tirx.Select(has(codes, 64), b, a) for a, b in zip(each[::2], each[1::2], strict=True)]
        if layout.registers > 2:
            each = [tirx.Select(has(codes, 128), each[1], each[0])]
        if not layout.mirrored:
            return each[0]
        return tirx.Select(has(codes, SIGN), self.constant(COMPLEMENT + p) - each[0], each[0])

    def finish(self, row: Expr, panel: Expr) -> None:
        """Bytes joined and scaled; one is added for each negative code."""
        shift = splat(self.layout.units * (OFFSET >> 16))
        step = tirx.Broadcast(self.step[row], LANES)
        for j in range(4):
            place = panel * WIDE + j * LANES
            sums = [self.vector(self.total, panel * (DIGITS * WIDE) + (p * 4 + j) * LANES) for p in range(DIGITS)]
            last = sums[2] + self.vector(self.negative, place) if self.layout.mirrored else sums[2]
            high, middle, low = (part.astype(f"float32x{LANES}") for part in (sums[0] - shift, sums[1], last))
            whole = high * factor(65536.0) + middle * factor(256.0) + low
            self.store(self.y, whole * (step * self.vector(self.scale, place)), row, place)


PERMUTED, SHUFFLED = "llvm.x86.avx512.permvar.qi.512", "llvm.x86.avx512.pshuf.b.512"
BYTES, WORDS = f"int8x{WIDE}", f"uint16x{PAIRS}"
ORDER = [0, 2, 1, 3]  # of vectors, as `bytes_of` lays them
BESIDE, ODD, EVEN, COMPLEMENT = 0, 2, 4, 6  # places in `byte_constants`, of which some are of a size of 1 or 2 bytes


def byte_constants() -> Array:
    """uint8 [9, 64]: where the neighbours lie, whose place is odd, whose is even (255), and HIGHEST.

    They are an argument: what LLVM knows to be constant it makes into longer instructions, shuffles of two registers.
    """
    lane, size = np.arange(WIDE), np.array([[1], [2]])
    odd = 255 * (lane // size % 2)
    highest = np.repeat(HIGHEST, WIDE).reshape(DIGITS, WIDE)
    return np.concatenate([lane ^ size, odd, 255 - odd, highest]).astype(np.uint8)


def pairs(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "uint16"), PAIRS)


def splat(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "int32"), LANES)


def unsigned(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, "uint32"), LANES)


def factor(value: float) -> Expr:
    return tirx.Broadcast(tirx.const(value, FLOAT), LANES)


def byte(value: int) -> Expr:
    return tirx.Broadcast(tirx.const(value - 256 if value > 127 else value, "int8"), WIDE)


def as_bytes(value: Expr) -> Expr:
    return tirx.reinterpret(BYTES, value)


def has(codes: Expr, bit: int) -> Expr:
    """Whether a bit of 64 codes is set."""
    return codes < byte(0) if bit == SIGN else tirx.NE(codes & byte(bit), byte(0))
