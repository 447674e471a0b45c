"""Boards: what a device has, read from one TOML file each in the `devices` folder.

name = "rpi4"                       the file's name
title = "Raspberry Pi 4, 64-bit"    what people call it
kind = "linux"                      `linux`: a process under an operating system; `bare`: firmware
triple = "aarch64-linux-gnu"        LLVM's name of the machine
core = "cortex-a72"                 LLVM's name of the processor; `native`: the one that compiles
features = ["+neon"]                LLVM's names of what the core has beyond its default; "-..." is not to be used
abi, float_abi                      LLVM's names of how functions pass arguments, where there is a choice
vector_bits = 128                   width of a SIMD register, 0 where there are none
vector_registers = 32               how many a kernel may fill; scalar ones, where there are no SIMD registers
clock_hz = 1_500_000_000            of the core, at most
compiler = "aarch64-linux-gnu-gcc"  C compiler for the generated driver, with `compiler_flags`
emulator = ["qemu-aarch64", ...]    command that runs a program of the board on this machine
ram_bytes = 1_073_741_824           what a program may use, where there is a limit

A `bare` board has firmware, so its file says more:

flash_origin, flash_bytes           where code and weights lie; `flash_data_origin` where loads see it elsewhere
ram_origin, ram_bytes               where state, arena and stack lie
start_clock_hz                      of the core after `setup`, where that is another
flash_wait_states, flash_line_bytes cycles that a line of flash is late at `clock_hz`, and what comes at once
flash_page_bytes                    that are erased at once at the end of flash, where firmware keeps two snapshots then
flash_unit_bytes                    that are written at once, 4 if left out
flash_driver                        how firmware writes them, where edgemem knows
interrupts                          of the device in its vector table, or the causes of a RISC-V core
machine_timer = { time = 0x200_BFF8, compare = 0x200_4000, hz = 10_000_000 }   of a RISC-V core, where it has one
microphone = "nrf"                  the driver of a microphone that firmware brings, see `runtimes/firmware/sound.py`
boot = "vectors"                    what the core starts from, see `Boot`
emulated_hz = 25_000_000            ticks a second of the counter that firmware reads, under the emulator
flash_commands, flash_by_hand       what puts firmware.elf, .bin or .uf2 on the board; and how to do without such a tool
uf2_family                          number of the chip, where the board takes UF2
source = "..."                      the document that these facts are from
[console]                           where text and the link to a host go, see `Console`

A board with a GPU says what that is; the other fields are of its host.

runtime = "opencl"                  or "tvm", of CUDA
[gpu]                               see `Gpu`
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgemem.errors import ConfigError
from edgemem.text import nearest

Boot = Literal["vectors", "rp2040", "rp2350", "riscv", "esp32c3"]
BARE_FIELDS = ("triple", "vector_bits", "vector_registers", "clock_hz", "flash_origin", "flash_bytes", "ram_origin",
               "ram_bytes", "boot", "source", "console")  # fmt: skip


TIMER_INTERRUPT = 7  # of a RISC-V core, as mcause has it
ADVICE = "mend its TOML file; devices/ shows the fields of each kind"


class Strict(BaseModel):
    """No unknown fields, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Write(Strict):
    """A register at start-up: bits to clear, then to set, then to wait for."""

    at: int
    clear: int = 0xFFFF_FFFF
    set: int
    wait: int = 0


class Lane(Strict):
    """One direction of a UART: a byte passes `data` when the bits of `mask` in `status` are `set` or `clear`.

    `event`: the status is an event that the program clears by writing 0.
    """

    data: int
    status: int
    mask: int
    ready: Literal["set", "clear"]
    event: bool = False


class Timer(Strict):
    """The machine timer of a RISC-V core: addresses of mtime and mtimecmp, and ticks a second."""

    time: int
    compare: int
    hz: int = Field(gt=0)


class Console(Strict):
    """`semihosting`: the debugger's (or the emulator's) files; `uart`: registers of `width` bits.

    `wires`: which port of which pins that is, and where they lead.
    """

    kind: Literal["semihosting", "uart"]
    baud: int | None = None
    width: Literal[8, 32] = 32
    wires: str | None = None
    transmit: Lane | None = None
    receive: Lane | None = None

    @model_validator(mode="after")
    def complete(self) -> Console:
        if self.kind == "uart" and (self.transmit is None or self.receive is None or self.baud is None):
            raise ValueError("a uart needs baud, transmit and receive")
        if self.kind == "semihosting" and (self.transmit is not None or self.receive is not None):
            raise ValueError("semihosting has no registers; leave transmit and receive out")
        return self


class Gpu(Strict):
    """The GPU of a board: `opencl`, or `cuda` of one architecture (`sm_87`; `native`: of the GPU that is here)."""

    api: Literal["opencl", "cuda"]
    arch: str | None = None
    threads: int  # of one block, at most
    shared_bytes: int  # that the threads of a block share
    warp: int = 1  # threads that run in step
    device: str | None = None  # a part of the name that its OpenCL driver gives it

    @model_validator(mode="after")
    def complete(self) -> Gpu:
        if (self.api == "cuda") != (self.arch is not None):
            raise ValueError("a cuda GPU needs arch, such as sm_87, and an opencl one has none")
        if min(self.threads, self.shared_bytes, self.warp) < 1:
            raise ValueError("threads, shared_bytes and warp are at least 1")
        return self


class Board(Strict):
    """One board; see the module docstring for the fields."""

    name: str
    title: str
    kind: Literal["linux", "bare"]
    core: str
    triple: str | None = None
    features: list[str] = []
    abi: str | None = None
    float_abi: Literal["soft", "softfp", "hard"] | None = None
    vector_bits: int | None = None
    vector_registers: int | None = None
    clock_hz: int | None = None
    start_clock_hz: int | None = None
    ram_bytes: int | None = None
    ram_origin: int | None = None
    flash_bytes: int | None = None
    flash_origin: int | None = None
    flash_data_origin: int | None = None
    flash_wait_states: int | None = None
    flash_line_bytes: int | None = None
    flash_driver: Literal["ram", "nrf", "stm32f", "stm32h7", "rp", "esp32c3"] | None = None  # how firmware writes it
    flash_page_bytes: int | None = None  # what is erased at once
    flash_unit_bytes: int = 4  # what is written at once
    interrupts: int = 0
    machine_timer: Timer | None = None
    microphone: Literal["nrf"] | None = None
    boot: Boot | None = None
    setup: list[Write] = []  # registers of clocks, pins and the UART, in order
    console: Console | None = None
    compiler: str
    compiler_flags: list[str] = []
    emulator: list[str] = []
    emulated_hz: int | None = None
    flash_commands: list[str] = []
    flash_by_hand: str | None = None
    uf2_family: int | None = None
    runtime: Literal["aot", "opencl", "tvm"]
    source: str | None = None
    gpu: Gpu | None = None

    @model_validator(mode="after")
    def consistent(self) -> Board:
        """Refuse fields that are missing for the board's kind, or that contradict one another."""
        if self.kind == "bare":
            missing = [name for name in BARE_FIELDS if getattr(self, name) is None]
            if missing:
                raise ValueError(f"a bare board needs {', '.join(missing)}")
            check_memory(self)
            if self.flash_driver is not None and self.flash_page_bytes is None:
                raise ValueError("flash_driver needs flash_page_bytes")
            if (self.flash_wait_states is None) != (self.flash_line_bytes is None):
                raise ValueError("flash_wait_states and flash_line_bytes come together")
            check_clocks(self)
            check_start(self)
        elif self.boot is not None or self.console is not None or self.flash_origin is not None:
            raise ValueError("boot, console and flash_origin are of bare boards; this one is linux")
        if (self.runtime == "aot") != (self.gpu is None):
            raise ValueError("a board has a [gpu] if and only if its runtime is opencl or tvm")
        for flag in self.compiler_flags:
            check_flag(flag, self)
        return self

    @property
    def is_host(self) -> bool:
        """Whether programs of this board run here as they are."""
        return self.core == "native"


def check_memory(board: Board) -> None:
    """Refuse memory that has no bytes, overlaps, or lies beyond 32 bits."""
    flash = span(board.flash_origin, board.flash_bytes, "flash")
    ram = span(board.ram_origin, board.ram_bytes, "ram")
    if flash.start < ram.stop and ram.start < flash.stop:
        raise ValueError(f"flash {flash.start:#x} to {flash.stop:#x} and ram {ram.start:#x} to {ram.stop:#x} overlap")


def check_clocks(board: Board) -> None:
    """Refuse a clock that stands still, or that starts faster than the core may run."""
    assert board.clock_hz is not None
    if board.clock_hz <= 0 or not 0 < (board.start_clock_hz or board.clock_hz) <= board.clock_hz:
        raise ValueError(
            f"clock_hz {board.clock_hz} and start_clock_hz {board.start_clock_hz} are no clocks, the second not faster"
        )


def check_start(board: Board) -> None:
    """Refuse a way to start, an emulator or a page of flash that does not go with the rest."""
    riscv = str(board.triple).startswith("riscv32")
    if not riscv and not str(board.triple).startswith("thumb"):
        raise ValueError(f"triple {board.triple} is no microcontroller's; firmware is for thumb... and riscv32...")
    if riscv != (board.boot in ("riscv", "esp32c3")):
        raise ValueError(f"boot {board.boot} does not start a core of {board.triple}")
    if board.machine_timer is not None and (not riscv or board.interrupts <= TIMER_INTERRUPT):
        raise ValueError(f"machine_timer is of a RISC-V core with an interrupt {TIMER_INTERRUPT}; leave it out")
    if board.emulator and board.emulated_hz is None:
        raise ValueError("an emulator of a bare board needs emulated_hz, the ticks of the counter that firmware reads")
    page = board.flash_page_bytes
    if page is not None and (page <= 0 or page % 4 or (board.flash_bytes or 0) % page):
        raise ValueError(
            f"flash_page_bytes {page} are no pages of words that flash_bytes {board.flash_bytes} consist of"
        )
    unit = board.flash_unit_bytes
    if unit < 4 or unit % 4 or (page or unit) % unit:
        raise ValueError(f"flash_unit_bytes {unit} are no words that flash_page_bytes {page} consist of")


def span(origin: int | None, count: int | None, what: str) -> range:
    assert origin is not None and count is not None
    if origin < 0 or count <= 0 or origin + count > 1 << 32:
        raise ValueError(f"{what}_origin {origin:#x} and {what}_bytes {count} are no memory of a 32-bit core")
    return range(origin, origin + count)


def check_flag(flag: str, board: Board) -> None:
    """Refuse a compiler flag for another core or another way to pass floats than the board says."""
    wanted = {"-mcpu=": board.core, "-mfloat-abi=": board.float_abi, "-mabi=": board.abi}
    for prefix, value in wanted.items():
        if flag.startswith(prefix) and value is not None and flag.removeprefix(prefix) != value:
            raise ValueError(f"compiler_flags has {flag}, and the board says {value}")


def names() -> list[str]:
    """Every board that ships, `host` first."""
    files = (entry.name for entry in resources.files("edgemem.devices").iterdir())
    return sorted((f.removesuffix(".toml") for f in files if f.endswith(".toml")), key=lambda n: (n != "host", n))


def board(name: str) -> Board:
    """The board called `name`, or the one that a TOML file of your own describes (a path ending in .toml).

    Raises:
        ConfigError: no such board, or a field that is missing, unknown or of the wrong type.
    """
    if name.endswith(".toml"):
        return parsed(Path(name).stem, read(Path(name)))
    if name not in names():
        raise ConfigError(f"no board {name!r}{nearest(name, names())}; there are {', '.join(names())}")
    return parsed(name, resources.files("edgemem.devices").joinpath(f"{name}.toml").read_text())


def read(path: Path) -> str:
    """The text of a board file.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"board file {path} cannot be read ({error}); give a TOML file") from error


def parsed(name: str, text: str) -> Board:
    """A board from its TOML text; `name` is what the file is called.

    Raises:
        ConfigError: not TOML, or not a board of that name.
    """
    try:
        fields: dict[str, Any] = tomllib.loads(text)
        found = Board.model_validate(fields)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"board {name}: not TOML ({error}); {ADVICE}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "value_error":  # of fields together, not of one
            place = f"board {name}, field {where}" if where else f"board {name}"
            raise ConfigError(f"{place}: {first['ctx']['error']}; {ADVICE}") from error
        raise ConfigError(f"board {name}, field {where}: {first['msg']} (got {first['input']!r}); {ADVICE}") from error
    if found.name != name:
        raise ConfigError(f"board {name}: its file says name = {found.name!r}; file and name must agree: rename one")
    return found
