"""Why a product got the kernel that it has, and what stands in the way of a better one: for the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgemem.runtimes.aot import dots, tile_unit
from edgemem.runtimes.aot.machine import Machine
from edgemem.runtimes.aot.quantized import digits, tables, tiles
from edgemem.runtimes.aot.quantized.weights import Codes, Half, Narrow
from edgemem.runtimes.aot.schedules import lookup

BYTES = {  # what computes a product of bytes, by the kind in `dots`
    dots.VNNI: "vpdpbusd",
    dots.SDOT: "sdot",
    dots.DP4A: "__dp4a",
    dots.SMLAD: "smlad on pairs: the core has no product of four bytes",
    dots.PAIRS: "pmaddwd on pairs: the core has no AVX512-VNNI",
    dots.PORTABLE: "shifts and products: the core has no product of bytes that the compiler knows",
}


def of_product(matrix: Narrow, rows: int, machine: Machine) -> str:
    """Of float32 activations [rows, K] times a narrow matrix; the branches of `products.product`."""
    if isinstance(matrix, Half):
        return "float16 weights are widened in registers"
    if isinstance(matrix, Codes):
        return of_codes(matrix, rows, machine)
    if digits.fits(machine):
        return f"float32 activations as numbers of three bytes, {BYTES[machine.dot]}"
    return "float32 activations, weights widened in registers: the core sums no four products of bytes at once"


def of_integers(lead: Sequence[int], matrix: Sequence[int], machine: Machine) -> str:
    """Of int8 activations [*lead, K] times an int8 matrix [K, N]; the branches of `products.integer_product`."""
    rows = max(lead, default=1)
    if tiles.fits(machine, lead, matrix):
        return f"{rows} rows in tiles of AMX, the core's matrix unit"
    if machine.tiles and rows < tiles.LEAST_ROWS:
        return f"{BYTES[machine.dot]}: AMX is for {tiles.LEAST_ROWS} rows and more"
    if machine.tiles:
        what = f"{math.prod(lead)} x {matrix[0]} x {matrix[1]}"
        return f"{BYTES[machine.dot]}: setting up AMX would take longer than it saves of {what}"
    if tile_unit.has_unit(machine.target):
        return f"{BYTES[machine.dot]}: the core has AMX, but nothing says that the system lets a program use it"
    return BYTES[machine.dot]


def of_static(lead: Sequence[int], matrix: Sequence[int], machine: Machine) -> str:
    """Of int8 times int8 with scales from calibration, in a step that is not wholly in integers."""
    how = of_integers(lead, matrix, machine)
    between = "what lies between products is rounded where the file rounds"
    if machine.lanes > 1:
        return f"{how}; {between}: vectors of floats are faster than a whole step in integers"
    return f"{how}; {between}"


def of_codes(matrix: Codes, rows: int, machine: Machine) -> str:
    """Of vector codes."""
    entries, outputs = int(matrix.books.shape[1]), matrix.shape[1]
    if rows > lookup.MOST_ROWS:
        return f"{rows} rows read each panel of weights, decoded once in every step"
    if tables.fits(machine, matrix):
        half = "one half of the mirrored" if tables.mirrored(matrix.books) else "the"
        return f"tables of the activations' products with {half} codebook, 64 outputs at a time by vpermb"
    one_by_one = "entries of the codebook are read one by one, float32 activations"
    if not tables.permutes(machine):
        return f"{one_by_one}: the core has no AVX512-VBMI to look up 64 at once"
    if entries > tables.MOST:
        return f"{one_by_one}: tables hold {tables.MOST} entries, the codebook has {entries}"
    made = tables.entries(matrix)
    return f"{one_by_one}: tables of {made} entries would take longer to make than {outputs} outputs to read"
