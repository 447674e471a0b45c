"""Weights that many rows are multiplied with are asked for before they are read.

    for each panel p:                                    for each panel p:
        for each tile of rows, for k: ...          ->        for each tile of rows, for k: ask for a part of p + 1; ...

Otherwise the first tile of each panel waits for memory, which rests while the others are computed. Weights that are
read once are left to the core, which asks by itself for what follows: told to, it had fewer lines under way, and
products of one row took up to a third longer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgemem.runtimes.aot.machine import BARE_ALIGNMENT, Machine
from edgemem.runtimes.aot.statements import sequence

AHEAD = "edgemem.ahead"  # of the loop that asks: which parameter of the kernel the weights are, by its place
LINE_BYTES = 64
READ, KEEP, DATA = 0, 3, 1  # what is asked for will be read, more than once, and is no instruction


def annotate(sch: Any, loop: Any, weights: Any, machine: Machine) -> None:
    """Have each turn of a loop over the sum ask for its part, if the core has a cache and weights are a parameter."""
    places = [place for place, held in enumerate(sch.mod["main"].params) if held.same_as(weights)]
    if places and machine.alignment > BARE_ALIGNMENT:
        sch.annotate(loop, AHEAD, places[0])


def asking(statement: Any, buffers: Mapping[int, Any], around: Sequence[Any] = ()) -> Any:
    """A lowered statement whose annotated loops ask; `buffers` are those of the parameters, by their place."""
    from tvm import tirx

    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([asking(part, buffers, around) for part in statement.seq])
    if not isinstance(statement, tirx.For):
        return statement
    loops = [*around, statement]
    if AHEAD not in statement.annotations:
        body = asking(statement.body, buffers, loops)
    elif len(around) > 1:
        asked = lines(buffers[int(statement.annotations[AHEAD])], loops)
        body = tirx.SeqStmt([*asked, *sequence(statement.body)])
    else:  # one panel, or one tile of rows
        body = statement.body
    return tirx.For(
        statement.loop_var, statement.min, statement.extent, statement.kind, body, annotations=statement.annotations
    )


def lines(weights: Any, loops: Sequence[Any]) -> list[Any]:
    """The lines of the next panel that one turn asks for; `loops` go over the panels, tiles of rows, and the sum.

    Behind the last panel, too: most often the weights of the next product lie there.
    """
    from tvm import DataType, tirx

    panels, *tiles, over = loops
    panel = math.prod(int(extent) for extent in weights.shape) // int(panels.extent)
    in_line = LINE_BYTES * 8 // int(DataType(str(weights.ty.dtype)).bits)
    turns = math.prod(int(loop.extent) for loop in tiles) * int(over.extent)
    each = -(-panel // (in_line * turns)) * in_line
    turn: Any = tirx.const(0, "int32")
    for loop in (*tiles, over):
        turn = turn * int(loop.extent) + loop.loop_var
    first = (panels.loop_var + 1) * panel + turn * each
    return [tirx.Evaluate(ask(tirx.BufferLoad(weights, [first + at]))) for at in range(0, each, in_line)]


def ask(element: Any) -> Any:
    """Ask for the line of an element; one that does not exist is no error."""
    from tvm import tirx

    hints = [tirx.const(value, "int32") for value in (READ, KEEP, DATA)]
    return tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(element), *hints)
