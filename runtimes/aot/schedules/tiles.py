"""Products of bytes by a core's matrix unit (Intel AMX): 16 rows times 64 inputs times 16 outputs an instruction.

    x [..., rows, ..., K] bytes, w int8 [N / P, K / 4, P, 4]  ->  int32 sums of a block of rows and of P outputs
    for each panel, for each block of rows:
        for k: tiles of x, tiles of w, their products                at most 4 tiles of sums
        what follows (zero points, scales, bias) on the block, in vectors

A tile is read where it lies: rows of x as far apart as they are, four inputs of 16 outputs every 4 P bytes. The unit is
told the tiles' sizes when a kernel begins and gives its registers back when it ends: no state of it outlives a call.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx

from edgemem.runtimes.aot import ahead
from edgemem.runtimes.aot.lowering import STACK
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.schedules.blocks import block_names
from edgemem.runtimes.aot.schedules.matmul import Panel, follow, grows, side_by_side

PRODUCT = "tiles_matmul"  # block names: of the sums, and of x with zeros behind its rows and inputs
PAD = "tiles_pad"
MOST_ROWS, DEPTH, COLUMNS = 16, 64, 16  # of a tile: its rows, its bytes, its sums side by side
QUAD = 4  # inputs that lie together
REGISTERS = 8
MOST_SUMS = 4  # tiles of sums: as many products as hide each other's time
INSTRUCTIONS = {"uint8": "llvm.x86.tdpbusd", "int8": "llvm.x86.tdpbssd"}  # by the type of x
AXIS, ROWS, TALL = "edgemem.tile_axis", "edgemem.tile_rows", "edgemem.tile_tall"  # of the block of sums
UNIT = "edgemem.tile_unit"  # of the block that the unit computes
WORDS = 16  # of the unit's configuration
PALETTE = 1  # eight registers of 16 rows of 64 bytes

Expr = Any


@dataclass(frozen=True)
class Block:
    """What a kernel computes at a time: `tall` tiles of `rows` rows of x, on its axis `axis`, by `wide` of weights.

    Registers: `tall * wide` of sums, then `tall` of x, and those of weights, which take turns.
    """

    axis: int
    rows: int
    tall: int
    wide: int

    @property
    def first_x(self) -> int:
        return self.tall * self.wide

    @property
    def first_w(self) -> int:
        return self.first_x + self.tall

    def configuration(self) -> tuple[int, ...]:
        """What the unit is told, as words: its palette, then of every register the bytes of a row, and the rows.

        A register of weights has a row for every four inputs.
        """
        rows = [self.rows if register < self.first_w else DEPTH // QUAD for register in range(REGISTERS)]
        packed = struct.pack("<16B16H16B", PALETTE, *[0] * 15, *[DEPTH] * REGISTERS, *[0] * 8, *rows, *[0] * 8)
        return struct.unpack(f"<{WORDS}i", packed)


@dataclass(frozen=True)
class Tiling:
    """`count` tiles of `rows` rows each, `tall` of them in a block; `axis` of x has the rows."""

    axis: int
    rows: int
    count: int
    tall: int

    @property
    def padded(self) -> int:
        """Rows with those that fill the last tile."""
        return self.rows * self.count

    def annotations(self) -> dict[str, int]:
        return {AXIS: self.axis, ROWS: self.rows, TALL: self.tall}


def panel_of(columns: int) -> Panel:
    """Panels of as many whole tiles as leave the least padding."""
    tiles = -(-columns // COLUMNS)
    wide = tiles if tiles <= MOST_SUMS else next((w for w in range(MOST_SUMS, 1, -1) if tiles % w == 0), MOST_SUMS)
    return Panel(wide * COLUMNS, -(-tiles // wide), columns)


def tiling_of(lead: Sequence[int], panel: Panel) -> Tiling:
    """Tiles of the longest axis, as equal as can be; two in a block where there is room for the sums of two."""
    axis = max(range(len(lead)), key=lambda index: (lead[index], index))
    count = -(-lead[axis] // MOST_ROWS)
    tall = 2 if 2 * panel.columns // COLUMNS <= MOST_SUMS and count % 2 == 0 else 1
    return Tiling(axis, -(-lead[axis] // count), count, tall)


def schedule(sch: Any, machine: Machine) -> Any:
    """Blocks of the sums, what follows computed on each; the PrimFunc, in which the unit computes the sums."""
    block = sch.get_sblock(PRODUCT)
    names = block_names(sch)
    at = names.index(PRODUCT)
    for name in names[:at]:
        readers = {str(sch.get(reader).name_hint) for reader in sch.get_consumers(sch.get_sblock(name))}
        if not readers & {*names[:at], PRODUCT}:
            sch.compute_inline(sch.get_sblock(name))
    followers = names[at + 1 :]
    followers = [] if grows(sch, block, followers) else followers
    found = sch.get(block)
    axis, rows, tall = (int(found.annotations[key]) for key in (AXIS, ROWS, TALL))
    weights = found.reads[-1].source
    panel = int(weights.shape[2])
    *outer, column, _ = sch.get_loops(block)
    row, batch = outer[axis], [*outer[:axis], *outer[axis + 1 :]]
    row, in_row = sch.split(row, [None, rows * tall])
    column, in_column = sch.split(column, [None, panel])
    sch.reorder(*batch, column, row, in_row, in_column)
    if followers:
        sch.set_scope(block, 0, "local")
        follow(sch, followers, row, machine.lanes)
    side_by_side(sch, [*batch, column, row])
    unit = sch.blockize(in_row)
    sch.annotate(unit, UNIT, 1)
    if not any(int(sch.get(loop).extent) > 1 for loop in batch):
        ahead.annotate(sch, unit, weights, machine)
    return by_unit(sch.mod["main"], Block(axis, rows, tall, panel // COLUMNS))


def by_unit(function: Any, block: Block) -> Any:
    """The marked block as the unit's instructions, between its configuration and its release."""
    words = tirx.decl_buffer((WORDS,), "int32", "tile_sizes", scope="local")
    configured = [tirx.BufferStore(words, tirx.const(word, "int32"), [index])
                  for index, word in enumerate(block.configuration())]  # fmt: skip
    root = function.body.block
    begin = [*configured, call("llvm.x86.ldtilecfg", tirx.address_of(tirx.BufferLoad(words, [0])))]
    body = tirx.SeqStmt([*begin, replaced(root.body, block), call("llvm.x86.tilerelease")])
    root = s_tir.SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, body, root.init, [*root.alloc_buffers, words],
        root.match_buffers, root.annotations,
    )  # fmt: skip
    made = function.with_body(s_tir.SBlockRealize(function.body.iter_values, function.body.predicate, root))
    return made.with_attr(STACK, MOST_SUMS * MOST_ROWS * COLUMNS * 4)


def replaced(statement: Any, block: Block) -> Any:
    """A statement with the unit's instructions in the place of the marked block."""
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([replaced(part, block) for part in statement.seq])
    if isinstance(statement, tirx.For):
        return tirx.For(
            statement.loop_var, statement.min, statement.extent, statement.kind, replaced(statement.body, block),
            statement.thread_binding, statement.annotations, statement.step,
        )  # fmt: skip
    if isinstance(statement, s_tir.SBlockRealize) and UNIT in statement.block.annotations:
        was = statement.block
        x, w = (region for region in was.reads if not region.source.same_as(was.writes[0].source))
        sums, x, w = (matched(region) for region in (was.writes[0], x, w))
        asks = {key: value for key, value in was.annotations.items() if key == ahead.AHEAD}
        body = instructions(sums.buffer, x.buffer, w.buffer, block, asks)
        made = s_tir.SBlock(was.iter_vars, was.reads, was.writes, was.name_hint, body, match_buffers=[sums, x, w])
        return s_tir.SBlockRealize(statement.iter_values, statement.predicate, made)
    return statement


def matched(region: Any) -> Any:
    """A region as a buffer of its own, with strides of its own."""
    extents = [int(part.extent) for part in region.region]
    strides = [tirx.Var(f"s{index}", "int32") for index in range(len(extents))]
    target = tirx.decl_buffer(
        extents, str(region.source.ty.dtype), f"{region.source.name}_block", strides=strides,
        elem_offset=tirx.Var("offset", "int32"), scope=region.source.scope(), offset_factor=1,
    )  # fmt: skip
    return s_tir.MatchBufferRegion(target, region)


def instructions(sums: Any, x: Any, w: Any, block: Block, asks: Mapping[str, Any]) -> Any:
    """sums = x w, tile by tile; `asks` says whether the next panel is asked for meanwhile (`ahead`)."""
    name = INSTRUCTIONS[str(x.ty.dtype)]
    k = tirx.Var("k", "int32")

    def of_row(buffer: Any, r: int, column: Expr) -> Expr:
        lead = [r * block.rows if index == block.axis else 0 for index in range(len(buffer.shape) - 1)]
        return place(buffer, *lead, column)

    steps = [load(block.first_x + r, of_row(x, r, k * DEPTH), x.strides[block.axis]) for r in range(block.tall)]
    for v in range(block.wide):
        register = block.first_w + v % (REGISTERS - block.first_w)
        steps.append(load(register, place(w, 0, k * (DEPTH // QUAD), v * COLUMNS, 0), w.strides[1]))
        for r in range(block.tall):
            steps.append(call(name, *map(number, (r * block.wide + v, block.first_x + r, register))))
    apart = (sums.strides[block.axis] * 4).astype("int64")
    stores = [
        call("llvm.x86.tilestored64", number(r * block.wide + v), of_row(sums, r, v * COLUMNS), apart)
        for r in range(block.tall) for v in range(block.wide)
    ]  # fmt: skip
    zeros = [call("llvm.x86.tilezero", number(n)) for n in range(block.first_x)]
    begin, end = (tirx.const(value, "int32") for value in (0, int(x.shape[-1]) // DEPTH))
    loop = tirx.For(k, begin, end, tirx.ForKind.SERIAL, tirx.SeqStmt(steps), annotations=asks)
    return tirx.SeqStmt([*zeros, loop, *stores])


def place(buffer: Any, *indices: Expr) -> Expr:
    return tirx.address_of(tirx.BufferLoad(buffer, list(indices)))


def load(register: int, place: Expr, stride: Expr) -> Any:
    return call("llvm.x86.tileloadd64", number(register), place, stride.astype("int64"))


def number(register: int) -> Expr:
    return tirx.const(register, "uint8")


def call(name: str, *arguments: Expr) -> Any:
    return tirx.Evaluate(tirx.call_llvm_intrin("void", name, *arguments))
