"""What a firmware folder holds for its user: how to flash, run and read it, a place for own code, UF2."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from edgemem.boards import board, names
from edgemem.runtimes.firmware import build, elf, uf2
from edgemem.runtimes.firmware.emulator import command_line
from edgemem.runtimes.firmware.layout import linker_script, vector_alignment
from edgemem.runtimes.firmware.readme import readme
from edgemem.runtimes.firmware.sources import board_h
from edgemem.text import duration, hertz
from tests.aot_programs import compiled, model_file
from tests.firmware import needs

BARE = [name for name in names() if board(name).kind == "bare"]
KEPT = {"address": 0x3F000, "offset": 0x3F000, "bank_bytes": 1024, "left_out": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Firmware with a file and a main of the user's own, which stay when it is compiled again."""
    needs("mps2_an386")
    place = tmp_path_factory.mktemp("folder")
    compiled(model_file("lmu", place), place / "fw", "mps2_an386")
    return place / "fw"


@pytest.mark.parametrize("name", BARE)
def test_every_board_says_how_its_firmware_gets_there_and_is_read(name: str) -> None:
    target = board(name)
    page = readme(target, "lmu", [], None, KEPT)
    text = build.makefile(target, "lmu", ["src/main.c"], [])
    assert f"    edgemem lmu on {name}\n    PASS\n" in page
    assert target.console is not None and (str(target.console.baud or "semihosting") in page)
    assert ("\nrun: firmware.elf\n" in text) == bool(target.emulator) == ("`make run`" in page)
    assert ("\nflash: firmware." in text) == bool(target.flash_commands)
    assert target.flash_commands or target.emulator, "neither a board nor an emulator to run it"
    for command in target.flash_commands:
        assert f"    {command}\n" in page and re.search(r"firmware\.(elf|bin|uf2)", command)
        assert ("firmware.uf2" not in command) or target.uf2_family is not None
    if target.console.kind == "uart":
        assert target.console.wires is not None and target.console.wires in page
    assert ("uf2.py" in text) == (target.uf2_family is not None)
    assert "0x0003f000" in page and ("was built, and not run" in page) == (not target.emulator)
    assert target.clock_hz is not None
    if target.flash_commands and name != "esp32c3":
        assert f"at {hertz(target.start_clock_hz or target.clock_hz)}" in page
    left_out = readme(target, "lmu", [], None, {**KEPT, "bank_bytes": 0, "left_out": "too large"})
    assert "(too large)" in left_out and "0x0003f000" not in left_out


@pytest.mark.parametrize("name", [name for name in BARE if board(name).emulator])
def test_make_run_starts_the_machine_that_proofs_run_on(name: str) -> None:
    """The same emulator and the same image; the console is on the terminal."""
    target = board(name)
    started = build.run_command(target).split()
    assert set(started) >= {*target.emulator, "-kernel", "firmware.elf"}
    proof = command_line(target, Path("firmware.elf"))
    assert ("-semihosting-config" in started) == ("-semihosting-config" in proof)


@pytest.mark.parametrize(("size", "count"), [(1, 1), (256, 1), (257, 2), (70_001, 274)])
def test_uf2_gives_every_byte_its_place(size: int, count: int, tmp_path: Path) -> None:
    """Read back by what the format says: 512 bytes a block, 256 of them data, each with its address and number."""
    data = bytes((7 * i + i // 251) % 256 for i in range(size))
    (tmp_path / "a.bin").write_bytes(data)
    target = board("rpi_pico")
    command = [sys.executable, uf2.__file__, "a.bin", "a.uf2", "--base", "0x10000000", "--family", "0xe48bff56"]
    subprocess.run(command, cwd=tmp_path, check=True)
    made = (tmp_path / "a.uf2").read_bytes()
    assert len(made) == 512 * count and made == uf2.blocks(data, 0x1000_0000, target.uf2_family or 0)
    memory = bytearray(256 * count)
    for number in range(count):
        block = made[512 * number : 512 * (number + 1)]
        assert block[:8] == b"UF2\nWQ]\x9e" and block[508:] == b"0o\xb1\n"
        flags, address, length, index, blocks, family = struct.unpack("<6I", block[8:32])
        assert (flags, length, index, blocks, family) == (0x2000, 256, number, count, 0xE48BFF56)
        at = address - 0x1000_0000
        memory[at : at + length] = block[32 : 32 + length]
        assert not any(block[32 + length : 508])
    assert memory[:size] == data and not any(memory[size:])
    with pytest.raises(ValueError, match="a multiple of 256 was wanted"):
        uf2.blocks(data, 0x1000_0010, 0)


@pytest.mark.parametrize(
    "name", [name for name in BARE if board(name).core.startswith("cortex-m") and board(name).interrupts]
)
def test_every_interrupt_has_an_entry_in_an_aligned_table(name: str, tmp_path: Path) -> None:
    """A handler of the user's stands at its number, all others stop the core; VTOR takes the address of the table."""
    needs(name)
    target = board(name)
    for file in ("start_cortex_m.c", "start.h", "console.h"):
        (tmp_path / file).write_text(resources.files("edgemem.runtimes.firmware").joinpath("c", file).read_text())
    (tmp_path / "board.h").write_text(board_h(target, 0))
    (tmp_path / "rest.c").write_text(
        f"void irq_{target.interrupts - 1}(void) {{}}\nvoid tick(void) {{}}\nvoid board_clock(void) {{}}\n"
        "void board_setup(void) {}\nvoid memory_setup(void) {}\nint main(void) { return 0; }\n"
        "void console_text(const char *t) { (void)t; }\nvoid console_close(int s) { (void)s; }\n"
    )
    (tmp_path / "firmware.ld").write_text(linker_script(target, 1024, 0))
    link = [flag for flag in build.LDFLAGS if flag != "-Wl,--strip-debug"]
    flags = [*target.compiler_flags, *build.CFLAGS, *link]
    command = [target.compiler, *flags, "start_cortex_m.c", "rest.c", "-o", "a.elf", "-lgcc"]
    subprocess.run(command, cwd=tmp_path, check=True)
    image = elf.read(tmp_path / "a.elf")
    table = image.section(".vectors")
    assert table is not None
    entries = struct.unpack(f"<{len(table.data) // 4}I", table.data)
    address = image.symbols["reset"][0]
    assert len(entries) == 16 + target.interrupts and entries[1] == address | 1
    faults = image.symbols["fault"][0] | 1
    assert entries[-1] == image.symbols[f"irq_{target.interrupts - 1}"][0] | 1 != faults
    assert entries[15] == image.symbols["tick"][0] | 1 != faults
    assert set(entries[16:-1]) == {faults}
    alignment = vector_alignment(target)
    assert alignment >= len(table.data) and alignment & (alignment - 1) == 0
    assert f".vectors : ALIGN({alignment})" in linker_script(target, 1024, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.28, "1.28 s"), (0.0154, "15.4 ms"), (0.9996, "1 s"), (0.9994, "999 ms"), (2e-6, "2 µs"), (1280.0, "1,280 s")],
)
def test_times_have_the_unit_that_people_say(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_own_code_joins_and_stays(folder: Path) -> None:
    """`app/` is compiled without a change to any file, its main comes in place of the firmware's."""
    own = folder / "app"
    own.mkdir()
    (own / "words.h").write_text("const char *word(void);\n")
    (own / "words.c").write_text('#include "words.h"\nconst char *word(void) { return "mine\\n"; }\n')
    (own / "main.c").write_text(
        '#include "console.h"\n#include "words.h"\nint main(void) { console_open(); console_text(word()); return 7; }\n'
    )
    (own / "microphone_none.c").write_text("#error a driver of a microphone is no part of the firmware\n")
    build.make(folder)
    done = subprocess.run(["make", "-s", "run"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout == "mine\n" and "Error 1" in done.stderr, done.stderr
    other = folder.parent / "more.c"
    other.write_text('const char *word(void) { return "given\\n"; }\n')
    (own / "words.c").unlink()
    build.make(folder, f"SOURCES={other}")
    done = subprocess.run(["make", "-s", "run", f"SOURCES={other}"], cwd=folder, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True)  # fmt: skip
    assert done.stdout == "given\n"
    assert "warning" not in done.stderr
