"""What schedules need to know of a core: vector lanes, registers, its products of bytes, and LLVM's target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemem.errors import ConfigError
from edgemem.runtimes.aot.load import ALIGNMENT
from edgemem.text import first_line

if TYPE_CHECKING:
    from edgemem.boards import Board

BARE_ALIGNMENT = 16  # what TVM's code promises of a buffer whose vectors have 128 bits, the widest of a microcontroller
WHOLE_VECTORS = ["-prefer-256-bit"]  # what LLVM makes vectors of by itself is to fill the registers that kernels fill


@dataclass(frozen=True)
class Machine:
    """`lanes` float32 per vector register (1 where there are none), `registers` of them; `alignment` of buffers; `dot`:
    its products of bytes, as in `dots`; `fused`: whether it multiplies and adds in one instruction, rounded once;
    `half`: whether it widens float16.
    """

    target: Any
    lanes: int
    registers: int
    alignment: int = ALIGNMENT
    dot: str = "portable"
    fused: bool = False
    half: bool = False
    tiles: bool = False


def machine(board: Board) -> Machine:
    """The machine of a board.

    Raises:
        ConfigError: LLVM does not know the core, or the board does not say how wide its vectors are.
    """
    from tvm.target import Target, codegen

    from edgemem.runtimes.aot import dots, tile_unit

    if board.is_host:
        core, triple = codegen.llvm_get_system_cpu(), codegen.llvm_get_system_triple()
        described: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": core}
        bits = int(codegen.llvm_get_vector_width(Target(described)))
        whole = WHOLE_VECTORS if bits >= 512 and triple.startswith("x86_64") else []
        described |= {"mattr": [*whole, *board.features]} if whole or board.features else {}
        target = Target(described)
        registers = 32 if bits >= 512 or "aarch64" in triple else 16
        return Machine(
            target,
            bits // 32,
            registers,
            dot=dots.kind_of(target),
            fused=is_fused(target),
            half=has_half(target),
            tiles=tile_unit.usable(board, target),
        )
    if board.triple is None or board.vector_bits is None or board.vector_registers is None:
        raise ConfigError(f"board {board.name}: triple, vector_bits and vector_registers are wanted to compile for it")
    described = {"kind": "llvm", "mtriple": board.triple, "mcpu": board.core}
    described |= {"mattr": board.features} if board.features else {}
    described |= {"mabi": board.abi} if board.abi else {}
    described |= {"mfloat-abi": board.float_abi} if board.float_abi else {}
    described |= {"vector-width": BARE_ALIGNMENT * 8} if board.kind == "bare" else {}
    try:
        target = Target(described)
    except Exception as error:  # TVM raises plain errors of its own kind
        raise ConfigError(f"board {board.name}: LLVM refuses {described}: {first_line(error)}") from error
    alignment = BARE_ALIGNMENT if board.kind == "bare" else ALIGNMENT
    lanes = max(1, board.vector_bits // 32)
    return Machine(
        target,
        lanes,
        board.vector_registers,
        alignment,
        dots.kind_of(target),
        is_fused(target),
        has_half(target),
        tile_unit.usable(board, target),
    )


def is_fused(target: Any) -> bool:
    """Whether a core's vectors have fused products and sums."""
    from tvm.target import codegen

    triple = str(target.attrs["mtriple"])
    return triple.startswith("aarch64") or (
        triple.startswith("x86_64") and bool(codegen.target_has_features("fma", target))
    )


def has_half(target: Any) -> bool:
    """Whether a core widens vectors of float16 in an instruction, subnormal ones in every mode."""
    from tvm.target import codegen

    triple = str(target.attrs["mtriple"])
    return triple.startswith("aarch64") or (
        triple.startswith("x86_64") and bool(codegen.target_has_features("f16c", target))
    )
