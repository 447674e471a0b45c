"""Interrupts of RISC-V cores: they reach irq_N, and the program that they interrupt does not notice."""

from __future__ import annotations

import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from edgemem.boards import board
from edgemem.runtimes.firmware import build, elf
from edgemem.runtimes.firmware.emulator import command_line
from edgemem.runtimes.firmware.layout import linker_script
from edgemem.runtimes.firmware.sources import board_h
from tests.firmware import needs

MACHINE = "riscv32_virt"
CORES = [("rv32imc", "ilp32"), ("rv32imafc", "ilp32f"), ("rv32imafdc", "ilp32d")]
SHARED = ("start_riscv.S", "fault_riscv.c", "memory.c", "console_semihosting.c", "console_text.c")
HEADERS = ("console.h", "start.h")

# Registers that a C function may change are given patterns, the software interrupt is raised while they stand, and its
# handler changes every one of them, the rounding mode too.
ASSEMBLY = """\
    .option arch, +zicsr
    .macro integers operation, base
    .set at, 4
    .irp name, t0, t1, t2, t3, t4, t5, t6, a0, a1, a2, a3, a4, a5, a6, a7
    \\operation \\name, at(\\base)
    .set at, at + 4
    .endr
    .endm
    .macro floats operation, base
    .set at, 64
    .irp name, ft0, ft1, ft2, ft3, ft4, ft5, ft6, ft7, ft8, ft9, ft10, ft11, fa0, fa1, fa2, fa3, fa4, fa5, fa6, fa7
    \\operation \\name, at(\\base)
    .set at, at + 8
    .endr
    .endm
#if __riscv_flen == 64
#define LOAD fld
#define SAVE fsd
#else
#define LOAD flw
#define SAVE fsw
#endif

    .globl enable
enable:
    csrs mie, a0
    csrsi mstatus, 8
    ret

    .globl hold
hold: # a0 what to load, a1 where it goes afterwards, a2 the word that the handler sets
    addi sp, sp, -32
    sw ra, 0(sp)
    sw s0, 4(sp)
    sw s1, 8(sp)
    sw s2, 12(sp)
    sw s3, 16(sp)
    sw s4, 20(sp)
    mv s0, a0
    mv s1, a1
    mv s2, a2
    li s3, 0x02000000
    li s4, 1
#ifdef __riscv_flen
    fsrmi 3
    floats LOAD, s0
#endif
    lw ra, 0(s0)
    integers lw, s0
    sw s4, 0(s3)
1:  lw s4, 0(s2)
    beqz s4, 1b
    sw ra, 0(s1)
    integers sw, s1
#ifdef __riscv_flen
    floats SAVE, s1
    frrm t0
    fsrmi 0
    sw t0, 224(s1)
#endif
    lw ra, 0(sp)
    lw s0, 4(sp)
    lw s1, 8(sp)
    lw s2, 12(sp)
    lw s3, 16(sp)
    lw s4, 20(sp)
    addi sp, sp, 32
    ret

    .globl irq_3
irq_3:
    li t0, 0x02000000
    sw zero, 0(t0)
    la t1, seen
    li t2, 1
    sw t2, 0(t1)
    la a7, noise
#ifdef __riscv_flen
    fsrmi 1
    floats LOAD, a7
#endif
    integers lw, a7
    ret
    .globl seen
    .bss
    .balign 8
noise: .zero 224
seen: .zero 4
"""

# What `hold` left is compared; then the timer calls.
MAIN = """\
#include "console.h"
#include "start.h"

#define MTIMECMP ((volatile uint32_t *)0x02004000u)

extern volatile uint32_t seen;
void enable(uint32_t causes);
void hold(const uint32_t *from, uint32_t *to, volatile uint32_t *flag);
uint32_t given[58] __attribute__((aligned(8))), kept[58] __attribute__((aligned(8)));
volatile uint32_t ticks;

#ifndef NO_TIMER
void irq_7(void)
{
    MTIMECMP[1] = 0xFFFFFFFFu;
    ++ticks;
}
#endif

int main(void)
{
    uint32_t i, differ = 0;
    const uint32_t compared = 16 + (FLOAT_BYTES ? 40 : 0);
    for (i = 0; i < 58; ++i) given[i] = 0x3F800000u + 0x10001u * i;
    console_open();
    enable(1u << 3);
    hold(given, kept, &seen);
    for (i = 0; i < compared; ++i)
        if (FLOAT_BYTES == 8 || i < 16 || i % 2 == 0) differ += given[i] != kept[i];
    if (FLOAT_BYTES) differ += kept[56] != 3u;
    console_unsigned(differ);
    console_text(" changed\\n");
    MTIMECMP[0] = 0;
    MTIMECMP[1] = 0;
    enable(1u << 7);
    while (ticks == 0) {}
    console_text("tick\\n");
    return 0;
}
"""


def built(place: Path, march: str, abi: str, *flags: str, without: str | None = None) -> Path:
    """The start-up of a RISC-V core with the program above in place of a firmware's; `without` saving a register."""
    needs(MACHINE)
    target = board(MACHINE)
    for name in (*SHARED, *HEADERS):
        (place / name).write_text(resources.files("edgemem.runtimes.firmware").joinpath("c", name).read_text())
    if without is not None:
        text = (place / "start_riscv.S").read_text()
        left = re.sub(rf"^    \\operation {without}, .*\n", "", text, flags=re.MULTILINE)
        left = left if left != text else re.sub(rf"(?<= ){without}(?=[,\n])", "ft0", text)
        assert left != text
        (place / "start_riscv.S").write_text(left)
    (place / "board.h").write_text(board_h(target, 0))
    (place / "hold.S").write_text(ASSEMBLY)
    (place / "main.c").write_text(MAIN)
    (place / "firmware.ld").write_text(linker_script(target, 1024, 0))
    float_bytes = {"ilp32": 0, "ilp32f": 4, "ilp32d": 8}[abi]
    core = [f"-march={march}", f"-mabi={abi}", "-mcmodel=medany", f"-DFLOAT_BYTES={float_bytes}", *flags]
    link = [flag for flag in build.LDFLAGS if flag != "-Wl,--strip-debug"]
    sources = [*SHARED, "hold.S", "main.c"]
    command = [target.compiler, *core, *build.CFLAGS, "-Werror", *link, *sources, "-o", "a.elf", "-lgcc"]
    subprocess.run(command, cwd=place, check=True)
    return place / "a.elf"


def said(image: Path) -> tuple[str, int]:
    """What an image writes, and the status that it ends with."""
    done = subprocess.run(
        command_line(board(MACHINE), image), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    return done.stdout.decode(), done.returncode


@pytest.mark.parametrize(("march", "abi"), CORES)
def test_the_interrupted_program_does_not_notice(march: str, abi: str, tmp_path: Path) -> None:
    """Every register that a handler may change, and the rounding mode, of cores without and with floats."""
    assert said(built(tmp_path, march, abi)) == ("0 changed\ntick\n", 0)


def test_an_interrupt_without_a_handler_is_a_fault(tmp_path: Path) -> None:
    text, status = said(built(tmp_path, *CORES[1], "-DNO_TIMER"))
    assert text == "0 changed\nFAULT: the core stopped at a trap\n" and status == 1


@pytest.mark.parametrize(("march", "abi"), CORES)
def test_the_table_of_traps_has_jumps_of_four_bytes(march: str, abi: str, tmp_path: Path) -> None:
    """32 of them, at a multiple of 256: cores that only know vectors take the upper 24 bits of the address."""
    image = elf.read(built(tmp_path, march, abi))
    table, target = image.symbols["traps"][0], image.symbols["trap"][0]
    text = image.section(".text")
    assert text is not None and table % 256 == 0
    for number in range(32):
        at = table + 4 * number
        word = int.from_bytes(text.data[at - text.address : at - text.address + 4], "little")
        assert word & 0xFFF == 0x6F, "jal x0"
        offset = (word >> 21 & 0x3FF) << 1 | (word >> 20 & 1) << 11 | (word >> 12 & 0xFF) << 12
        assert at + offset == target


@pytest.mark.parametrize("register", ["t0", "a7", "ra", "ft11", "fa0"])
def test_a_register_that_is_left_out_is_noticed(register: str, tmp_path: Path) -> None:
    """The test above can fail: without saving one register, it has changed."""
    assert not said(built(tmp_path, *CORES[1], without=register))[0].startswith("0 changed")
