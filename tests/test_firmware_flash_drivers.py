"""Drivers of flash that no emulator has: here, against models of the controllers; placement in linked images."""

from __future__ import annotations

import ctypes
import re
import struct
import subprocess
import zlib
from importlib import resources
from pathlib import Path

import pytest

from edgemem.boards import Board, board, names
from edgemem.runtimes.firmware import build, elf
from edgemem.runtimes.firmware.layout import linker_script
from edgemem.runtimes.firmware.sources import board_h
from tests.firmware import needs
from tests.flash_models import USED, Chip, Stm32h7, chip_of

MODELLED = ("nucleo_f446re", "stm32f746g_disco", "nucleo_h743zi", "rpi_pico", "esp32c3")
FROM_RAM = ("rpi_pico", "rpi_pico2", "esp32c3")
HERE = Path(__file__).parent / "firmware_c" / "flash"
FEW, MANY = 101, 301  # bytes of state, no whole number of words
OK, NONE, CUT, FAILED = 0, 1, 2, 4  # codes of snapshot.h
WHOLE = 0xFFFF_FFFF
IDENTITY = 0x0123_4567_89AB_CDEF
ASK = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32)
ROM = ctypes.CFUNCTYPE(ctypes.c_uint32, *[ctypes.c_uint32] * 5, ctypes.c_void_p)


class Device:
    """snapshot.c and a board's driver on this machine, with a model in place of the chip."""

    def __init__(self, target: Board, folder: Path, change: tuple[str, str] | None = None) -> None:
        self.board, self.chip = target, chip_of(target.name)
        self.bank_bytes, self.state_bytes = bank_bytes(target), state_bytes(target)
        driver = f"flash_{target.flash_driver}.c"
        for name in (driver, "snapshot.c", "snapshot.h", "flash.h", "flash_place.h", "edgemem_model.h"):
            text = firmware_source(name)
            if name == driver and change is not None:
                assert text.count(change[0]) == 1, change
                text = text.replace(*change)
            (folder / name).write_text(text)
        for path in HERE.iterdir():
            (folder / path.name).write_text(path.read_text())
        (folder / "board.h").write_text(board_h(target, self.bank_bytes))
        defines = [f"-DSTATE_BYTES={self.state_bytes}", *(["-D__ARM_ARCH_6M__"] if target.name == "rpi_pico" else [])]
        command = [
            "gcc",
            "-std=gnu99",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-Wno-unused-function",
            "-shared",
            "-fPIC",
        ]
        subprocess.run([*command, *defines, "-o", "device.so", driver, "snapshot.c", "model.c"], cwd=folder, check=True)
        self.library = ctypes.CDLL(str(folder / "device.so"))
        self.ask = ASK(self.chip.answer)
        self.rom = ROM(
            lambda name, a, b, c, d, data: self.chip.rom(name.to_bytes(2, "little").decode(), (a, b, c, d), data or 0)
        )
        ctypes.c_void_p.in_dll(self.library, "sim").value = ctypes.cast(self.ask, ctypes.c_void_p).value
        ctypes.c_void_p.in_dll(self.library, "sim_rom").value = ctypes.cast(self.rom, ctypes.c_void_p).value
        self.states = (ctypes.c_ubyte * self.state_bytes).in_dll(self.library, "states")

    def save(self, states: bytes, units: int = WHOLE) -> int:
        self.states[:] = states
        return int(self.library.snapshot_save(ctypes.c_uint32(units)))

    def load(self) -> tuple[int, bytes]:
        """The code, and the states that came, of a device that held none."""
        self.states[:] = bytes(self.state_bytes)
        code = int(self.library.snapshot_load())
        return code, bytes(self.states)

    def some(self, seed: int) -> bytes:
        """States."""
        return bytes((seed + 31 * i + i // 7) % 256 for i in range(self.state_bytes))

    def banks(self) -> list[bytes]:
        end, size = len(self.chip.bytes), self.bank_bytes
        return [bytes(self.chip.bytes[at : at + size]) for at in (end - 2 * size, end - size)]


def firmware_source(name: str) -> str:
    return resources.files("edgemem.runtimes.firmware").joinpath("c", name).read_text()


def bank_bytes(target: Board) -> int:
    """One page holds the states here."""
    assert target.flash_page_bytes is not None and target.flash_page_bytes > MANY + 256
    return target.flash_page_bytes


def state_bytes(target: Board) -> int:
    """Several units, and not so many words that a model of them takes long."""
    return FEW if target.flash_unit_bytes == 4 else MANY


def record(target: Board, sequence: int, body: bytes) -> bytes:
    """A bank as snapshot.h describes it."""
    header = struct.pack("<QII", IDENTITY, sequence, len(body))
    head = header + struct.pack("<I", zlib.crc32(header + body))
    start = -(-len(head) // target.flash_unit_bytes) * target.flash_unit_bytes
    return (head.ljust(start, b"\xff") + body).ljust(bank_bytes(target), b"\xff")


@pytest.mark.parametrize("name", MODELLED)
def test_a_driver_keeps_snapshots_and_touches_nothing_else(name: str, tmp_path: Path) -> None:
    """Two saves, a third over the first; the bytes of both banks, and every byte before them as it was."""
    device = Device(board(name), tmp_path)
    assert device.load()[0] == NONE
    for number in range(3):
        assert device.save(device.some(number)) == OK
        assert device.load() == (OK, device.some(number))
    assert device.banks() == [record(device.board, 2, device.some(2)), record(device.board, 1, device.some(1))]
    rest = device.chip.bytes[: len(device.chip.bytes) - 2 * device.bank_bytes]
    assert rest.count(USED) == len(rest)
    assert device.chip.complaints == []
    assert device.chip.interrupts and device.chip.faults
    if name == "rpi_pico":
        assert device.chip.registers[0x1800_0014] == 4  # type: ignore[attr-defined]
    if name == "esp32c3":
        assert device.chip.size == device.board.flash_bytes  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", MODELLED)
def test_a_save_cut_at_any_unit_leaves_the_old_state_or_the_new(name: str, tmp_path: Path) -> None:
    device, outcomes, units = Device(board(name), tmp_path), [], 0
    old, new = device.some(100), device.some(200)
    while True:
        assert device.save(old) == OK
        code = device.save(new, units)
        loaded, came = device.load()
        assert loaded == OK and came in (old, new)
        outcomes.append(came == new)
        units += 1
        if code == OK:
            break
        assert code == CUT
    size = device.board.flash_unit_bytes
    head = -(-20 // size)
    assert units == 1 + head + -(-device.state_bytes // size) + 1  # a page, the states, the header; then none is cut
    assert outcomes == [False] * (units - 1) + [True]
    assert device.chip.complaints == []


def test_a_word_that_the_power_left_torn_is_no_fault(tmp_path: Path) -> None:
    """STM32H7: two wrong bits in any 256 of the newer bank; the older one is loaded, and the next save mends it."""
    device = Device(board("nucleo_h743zi"), tmp_path)
    chip = device.chip
    assert isinstance(chip, Stm32h7)
    start = chip.origin + len(chip.bytes) - device.bank_bytes  # of the second bank
    for unit in range(1 + -(-device.state_bytes // 32)):
        assert device.save(device.some(1)) == OK and device.save(device.some(2)) == OK
        second = device.banks()[1].startswith(record(device.board, 2 * unit + 1, device.some(2))[:20])
        newer = start if second else start - device.bank_bytes
        chip.torn.add(newer + 32 * unit)
        assert device.load() == (OK, device.some(1)), unit
        assert device.save(device.some(3)) == OK and device.load() == (OK, device.some(3))
        assert not chip.torn
    assert chip.complaints == [] and chip.faults


def test_flash_that_does_not_take_a_snapshot_is_said(tmp_path: Path) -> None:
    """Write protection, or an end of its life: what is read back is not what was written; the older one stays."""
    device = Device(board("nucleo_f446re"), tmp_path)
    assert device.save(device.some(1)) == OK

    def keep(offset: int, data: bytes) -> None:
        device.chip.bytes[offset : offset + len(data)] = bytes(byte | 1 for byte in data)

    device.chip.program = keep  # type: ignore[method-assign]
    assert device.save(device.some(2)) == FAILED
    assert device.load() == (OK, device.some(1))


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        ("nucleo_f446re", "register_put(KEY, KEY_FIRST);", ";", "key 0xcdef89ab is not wanted now"),
        ("nucleo_f446re", "register_put(STATUS, ERRORS);", ";", "with status 0x10"),
        ("nucleo_f446re", "4u + flash_offset", "3u + flash_offset", "was not erased"),
        ("nucleo_f446re", "| DATA_CACHE_RESET", "", "as a cache still has it"),
        (
            "stm32f746g_disco",
            "    wait();\n    register_put(CONTROL, LOCK);",
            "    register_put(CONTROL, LOCK);",
            "busy",
        ),
        (
            "stm32f746g_disco",
            "    data_cache_forget(at, bytes);",
            "    (void)at, (void)bytes;",
            "as a cache still has it",
        ),
        ("nucleo_h743zi", "% BANK_BYTES / SECTOR_BYTES", "% BANK_BYTES / SECTOR_BYTES / 2", "was not erased"),
        ("nucleo_h743zi", "i < FLASH_UNIT_BYTES; i += 4", "i < FLASH_UNIT_BYTES - 4; i += 4", "7 of 8 words wait"),
        ("nucleo_h743zi", "/ BANK_BYTES * BANK_REGISTERS", "* 0", "is written with control"),
        ("rpi_pico", "    rom->leave();\n", "", "RE comes behind IF"),
        ("rpi_pico", "    rom->flush();\n", "", "CX comes behind RE"),
        ("rpi_pico", "before = interrupts_off();", "before = 0;", "may be interrupted"),
        ("esp32c3", "at / FLASH_PAGE_BYTES", "at / FLASH_PAGE_BYTES - 4u", "was not erased"),
        ("esp32c3", "    ROM_CACHE_FORGET();\n", "", "CX comes behind RE"),
    ],
)
def test_the_models_see_what_a_driver_does_wrong(tmp_path: Path, name: str, old: str, new: str, complaint: str) -> None:
    device = Device(board(name), tmp_path, (old, new))
    device.save(device.some(1))
    device.load()
    assert any(complaint in text for text in device.chip.complaints), device.chip.complaints[:3]


@pytest.mark.parametrize("name", [n for n in names() if board(n).flash_page_bytes is not None])
def test_banks_are_whole_pages_behind_the_program(name: str) -> None:
    """Addresses in board.h and in the linker script are the same bytes of flash, at its end."""
    target = board(name)
    assert target.flash_bytes is not None and target.flash_origin is not None
    size = bank_bytes(target) if target.flash_page_bytes and target.flash_page_bytes > 1024 else 2048
    defines = dict(re.findall(r"#define (FLASH_\w+) (\w+?)u$", board_h(target, size), re.MULTILINE))
    start, origin = int(defines["FLASH_START"], 16), int(defines["FLASH_ORIGIN"], 16)
    assert start - origin == target.flash_bytes - 2 * size and int(defines["FLASH_BANK_BYTES"]) == size
    assert (start - origin) % int(defines["FLASH_PAGE_BYTES"]) == 0
    script = linker_script(target, 1024, size)
    wanted = target.flash_origin + target.flash_bytes - 2 * size
    assert (
        f"snapshot_start = {wanted:#010x};" in script and "LOADADDR(.data) + SIZEOF(.data) <= snapshot_start" in script
    )
    assert board_h(target, 0).count("#define SNAPSHOTS 0\n") == 1 and "FLASH_" not in board_h(target, 0)
    if name in MODELLED:
        chip: Chip = chip_of(name)
        assert (origin, target.flash_bytes) == (chip.origin, len(chip.bytes))


@pytest.mark.parametrize("name", FROM_RAM)
def test_what_runs_while_flash_is_away_is_in_ram(name: str, tmp_path: Path) -> None:
    """Built, not run: `change` is copied to RAM by the start-up, branches only within itself, and reads no constant."""
    needs(name)
    target = board(name)
    driver = f"flash_{target.flash_driver}.c"
    for file in (driver, "snapshot.c", "edgemem_model.h", "snapshot.h", *build.headers(target, snapshots=True)):
        (tmp_path / file).write_text(firmware_source(file))
    (tmp_path / "board.h").write_text(board_h(target, bank_bytes(target)))
    (tmp_path / "firmware.ld").write_text(linker_script(target, 1024, bank_bytes(target)))
    (tmp_path / "rest.c").write_text(REST)
    link = [flag for flag in build.LDFLAGS if flag != "-Wl,--strip-debug"]
    flags = [*target.compiler_flags, *build.CFLAGS, "-Wl,--undefined=snapshot_save", *link]
    flags += ["-Wl,--no-warn-rwx-segments"] if build.quiet(target) else []
    command = [target.compiler, *flags, driver, "snapshot.c", "rest.c", "-o", "a.elf", "-lc", "-lgcc"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    image = elf.read(tmp_path / "a.elf")
    start, size = image.symbols["change"]
    start &= ~1
    assert target.ram_origin is not None and target.ram_bytes is not None
    assert target.ram_origin <= start < start + size <= target.ram_origin + target.ram_bytes
    data = image.section(".data")
    assert data is not None and data.address <= start and start + size <= data.address + data.nbytes
    assert any(data.data[start - data.address :][:size])  # the bytes that start-up copies
    text = disassembled(target, tmp_path / "a.elf", start, size)
    calls = re.findall(
        r"\t(?:bl|blx|b|b\w\w(?:\.n)?|jal|j|call|cbn?z|tail|beqz|bnez)(?:\.n|\.w)?\t[^\n]*?\b([0-9a-f]{8})\b", text
    )
    inside = [start <= int(to, 16) < start + size for to in calls]
    assert inside and all(inside), text
    assert not re.search(r"\bauipc\b", text)  # the ESP32-C3 runs it at another address
    assert re.search(r"\bblx\s+r\d|\bjalr\s+\w\d", text), "it calls the ROM"


def disassembled(target: Board, image: Path, start: int, size: int) -> str:
    tool = target.compiler.removesuffix("gcc") + "objdump"
    where = [f"--start-address={start:#x}", f"--stop-address={start + size:#x}"]
    return subprocess.run([tool, "-d", *where, "-j", ".data", image], capture_output=True, text=True, check=True).stdout


REST = """\
#include "edgemem_model.h"
#include "snapshot.h"
static unsigned char state[8];
const uint32_t edgemem_state_count = 1, edgemem_state_sizes[] = {8}, edgemem_identity[2] = {1, 2};
void *edgemem_state_at(uint32_t index) { return state + index; }
__attribute__((section(".start"), used)) void reset(void) { (void)snapshot_save(SNAPSHOT_WHOLE); }
"""
