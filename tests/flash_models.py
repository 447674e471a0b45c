"""Models of flash controllers, by the reference manuals alone: what a driver does wrong is a complaint.

A model owns the bytes of the flash and answers the registers, or the functions in ROM, that a driver uses. It starts
with every byte 0x5A, as a chip that held something else, and with the error flags of whatever came before.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

FLASH = 0x0800_0000
GET, PUT, WAIT, INTERRUPTS_OFF, INTERRUPTS_BACK, FAULTS_IGNORED, FAULTS_BACK, FORGET = range(8)
KEYS = (0x4567_0123, 0xCDEF_89AB)
POLLS = 3  # of the status, until an operation is done
USED = 0x5A


class Chip:
    """Bytes of flash, and the core around them."""

    def __init__(self, nbytes: int, origin: int) -> None:
        self.bytes, self.origin = bytearray([USED]) * nbytes, origin
        self.complaints: list[str] = []
        self.cached: set[int] = set()  # words that a cache holds of what was there before
        self.interrupts = self.faults = True
        self.core_cache = True  # whether it is the core's, which forgets lines by their address

    def wrong(self, text: str) -> None:
        self.complaints.append(text)

    def answer(self, what: int, a: int, b: int) -> int:
        handlers: dict[int, Callable[[], int | None]] = {
            GET: lambda: self.get(a),
            PUT: lambda: self.put(a, b),
            INTERRUPTS_OFF: lambda: self.switch("interrupts", False),
            INTERRUPTS_BACK: lambda: self.switch("interrupts", True),
            FAULTS_IGNORED: lambda: self.switch("faults", False),
            FAULTS_BACK: lambda: self.switch("faults", True),
            FORGET: lambda: self.forget(a, b),
        }
        return handlers.get(what, lambda: 0)() or 0

    def forget(self, at: int, count: int) -> None:
        if self.core_cache:
            self.cached.difference_update(range(at & ~31, at + count))

    def switch(self, name: str, on: bool) -> int:
        setattr(self, name, on)
        return 0

    def inside(self, at: int) -> bool:
        return self.origin <= at < self.origin + len(self.bytes)

    def word(self, at: int) -> int:
        if at in self.cached:
            self.wrong(f"{at:#x} is read as a cache still has it")
        return int.from_bytes(self.bytes[at - self.origin : at - self.origin + 4], "little")

    def erase(self, offset: int, count: int) -> None:
        self.bytes[offset : offset + count] = b"\xff" * count
        self.cached |= set(range(self.origin + offset, self.origin + offset + 4096, 4))

    def program(self, offset: int, data: bytes) -> None:
        if any(byte != 0xFF for byte in self.bytes[offset : offset + len(data)]):
            self.wrong(f"offset {offset:#x} is written and was not erased")
        self.bytes[offset : offset + len(data)] = data

    def get(self, at: int) -> int:
        raise NotImplementedError

    def put(self, at: int, value: int) -> None:
        raise NotImplementedError

    def rom(self, name: str, arguments: tuple[int, int, int, int], data: int) -> int:
        raise NotImplementedError


class St(Chip):
    """What ST's controllers have in common: a lock with two keys, a status that is busy for a while."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes, FLASH)
        self.polls = 0

    def unlock(self, bank: dict[str, Any], value: int) -> None:
        if not bank["locked"] or value != KEYS[bank["keys"]]:
            self.wrong(f"key {value:#x} is not wanted now: locked until the next reset")
            bank["forever"] = True
        bank["keys"] = (bank["keys"] + 1) % 2
        if bank["keys"] == 0 and not bank.get("forever"):
            bank["locked"] = False

    def busy(self) -> bool:
        self.polls = max(0, self.polls - 1)
        return self.polls > 0

    def idle(self, what: str) -> None:
        if self.polls:
            self.wrong(f"{what} while the controller is busy")


class Stm32f(St):
    """RM0390 and RM0385, chapter 3: `sectors` in bytes, from the first on; `data_cache`: the controller's own is on."""

    ACCESS, KEY, STATUS, CONTROL = 0x4002_3C00, 0x4002_3C04, 0x4002_3C0C, 0x4002_3C10
    PG, SER, PSIZE, STRT, LOCK, BSY = 1 << 0, 1 << 1, 3 << 8, 1 << 16, 1 << 31, 1 << 16
    DCEN, DCRST = 1 << 10, 1 << 12

    def __init__(self, sectors: list[int], data_cache: bool) -> None:
        super().__init__(sum(sectors))
        self.sectors, self.core_cache = sectors, not data_cache
        self.bank: dict[str, Any] = {"locked": True, "keys": 0}
        self.control, self.errors, self.access = 0, 0x10, self.DCEN if data_cache else 0

    def get(self, at: int) -> int:
        if self.inside(at):
            self.idle("flash is read")  # the core would wait: no mistake, but none that this driver makes
            return self.word(at)
        registers = {
            self.STATUS: lambda: self.errors | (self.BSY if self.busy() else 0),
            self.CONTROL: lambda: self.control | (self.LOCK if self.bank["locked"] else 0),
            self.ACCESS: lambda: self.access,
        }
        return registers[at]()

    def put(self, at: int, value: int) -> None:
        if self.inside(at):
            self.store(at, value)
        elif at == self.KEY:
            self.unlock(self.bank, value)
        elif at == self.STATUS:
            self.errors &= ~value
        elif at == self.ACCESS:
            if value & self.DCRST and not value & self.DCEN:
                self.cached.clear()
            self.access = value
        else:
            assert at == self.CONTROL, hex(at)
            self.command(value)

    def command(self, value: int) -> None:
        if self.bank["locked"]:
            return self.wrong("the control register is written while it is locked")
        self.idle("the control register is written")
        if value & self.LOCK:
            self.bank["locked"] = True
        started = value & self.STRT
        if started and value & ~self.STRT != self.control:
            self.wrong("an operation is started that was not set up")
        self.control = value & ~self.STRT
        if not started:
            return None
        number = value >> 3 & 0xF
        if self.errors or not value & self.SER or value & self.PSIZE != 2 << 8 or number >= len(self.sectors):
            return self.wrong(f"no erasure is {value:#x} with status {self.errors:#x}")
        self.erase(sum(self.sectors[:number]), self.sectors[number])
        self.polls = POLLS
        return None

    def store(self, at: int, value: int) -> None:
        self.idle("flash is written")
        if self.errors or self.control != self.PG | 2 << 8 or at % 4 or self.bank["locked"]:
            return self.wrong(f"{at:#x} is written with control {self.control:#x}, status {self.errors:#x}")
        self.program(at - FLASH, value.to_bytes(4, "little"))
        self.polls = POLLS
        return None


class Stm32h7(St):
    """RM0433, chapter 4: two banks of eight sectors, words of 256 bits; `torn` are those with two wrong bits."""

    BASE, BANK, SECTOR, UNIT = 0x5200_2000, 1 << 20, 1 << 17, 32
    LOCK, PG, SER, PSIZE, START = 1 << 0, 1 << 1, 1 << 2, 3 << 4, 1 << 7
    QW, DBECCERR, FLAGS = 1 << 2, 1 << 26, 0x07EF_0000

    def __init__(self) -> None:
        super().__init__(2 * self.BANK)
        self.banks = [{"locked": True, "keys": 0, "control": 0x30, "errors": 1 << 18} for _ in range(2)]
        self.torn: set[int] = set()
        self.waiting: list[tuple[int, int]] = []

    def get(self, at: int) -> int:
        if self.inside(at):
            self.idle("flash is read")
            if at // self.UNIT * self.UNIT in self.torn:
                if self.faults:
                    self.wrong(f"bus fault at {at:#x}")
                self.banks[(at - FLASH) // self.BANK]["errors"] |= self.DBECCERR
            return self.word(at)
        bank, register = self.banks[(at - self.BASE) // 0x100], (at - self.BASE) % 0x100
        if register == 0x10:
            return bank["errors"] | (self.QW if self.busy() else 0)
        assert register == 0x0C, hex(at)
        return bank["control"] | (self.LOCK if bank["locked"] else 0)

    def put(self, at: int, value: int) -> None:
        if self.inside(at):
            return self.store(at, value)
        number, register = divmod(at - self.BASE, 0x100)
        bank = self.banks[number]
        if register == 0x04:
            return self.unlock(bank, value)
        if register == 0x14:
            bank["errors"] &= ~value
            return None
        assert register == 0x0C, hex(at)
        return self.command(number, value)

    def command(self, number: int, value: int) -> None:
        bank = self.banks[number]
        if bank["locked"]:
            return self.wrong("the control register is written while it is locked")
        self.idle("the control register is written")
        if self.waiting:
            self.wrong(f"{len(self.waiting)} of 8 words wait in the buffer")
        bank["locked"] = bool(value & self.LOCK)
        bank["control"] = value & ~(self.START | self.LOCK)
        if value & self.START:
            if bank["errors"] or not value & self.SER:
                return self.wrong(f"no erasure is {value:#x} with status {bank['errors']:#x}")
            start = number * self.BANK + (value >> 8 & 7) * self.SECTOR
            self.erase(start, self.SECTOR)
            self.torn = {at for at in self.torn if not 0 <= at - FLASH - start < self.SECTOR}
            self.polls = POLLS
        return None

    def store(self, at: int, value: int) -> None:
        self.idle("flash is written")
        bank = self.banks[(at - FLASH) // self.BANK]
        if bank["errors"] or bank["locked"] or not bank["control"] & self.PG:
            return self.wrong(f"{at:#x} is written with control {bank['control']:#x}, status {bank['errors']:#x}")
        self.waiting.append((at, value))
        first = self.waiting[0][0]
        if first % self.UNIT or at != first + 4 * (len(self.waiting) - 1):
            return self.wrong(f"{at:#x} is not the next of its 256 bits")
        if len(self.waiting) == self.UNIT // 4:
            self.program(first - FLASH, b"".join(word.to_bytes(4, "little") for _, word in self.waiting))
            self.waiting, self.polls = [], POLLS
        return None


class Serial(Chip):
    """Flash behind a serial port, through functions in ROM: the core runs from it but between `EX` and `CX`."""

    SECTOR, PAGE = 4096, 256

    def __init__(self, nbytes: int, origin: int, order: dict[str, str]) -> None:
        super().__init__(nbytes, origin)
        self.order, self.last = order, "CX"  # what has to come before a function, of all that change something
        self.registers = {0x1800_0014: 4}  # SSI_BAUDR of an RP2040
        self.size: int | None = None

    def get(self, at: int) -> int:
        if self.inside(at):
            if self.last != "CX":
                self.wrong("flash is read while it cannot be")
            return self.word(at)
        return self.registers[at]

    def put(self, at: int, value: int) -> None:
        if at == 0x1800_0008 and self.last != "CX":
            self.wrong("the port is set up while ROM uses it")
        self.registers[at] = value

    def rom(self, name: str, arguments: tuple[int, int, int, int], data: int) -> int:
        if name != "CP" and self.last not in self.order[name]:
            self.wrong(f"{name} comes behind {self.last}")
        if self.interrupts:
            self.wrong(f"{name} may be interrupted by code in flash")
        if name == "RE":
            self.erase_sector(arguments)
        elif name == "RP":
            at, count = arguments[:2]
            if at % self.PAGE or count != self.PAGE:
                self.wrong(f"{count} bytes at {at:#x} are no page")
            self.program(at, ctypes.string_at(data, count))
        elif name == "CP":
            self.size = arguments[0]
            if arguments[1:] != (1 << 16, self.SECTOR, self.PAGE):
                self.wrong(f"the flash is described as {arguments}")
        elif name == "FC":
            self.cached.clear()
        elif name == "EX":
            self.registers[0x1800_0014] = 6  # ROM's own clock
        self.last = self.last if name == "CP" else name
        return 0

    def erase_sector(self, arguments: tuple[int, int, int, int]) -> None:
        at, count, block, command = arguments
        if self.size is not None:  # an ESP32-C3 counts sectors
            return self.erase(at * self.SECTOR, self.SECTOR)
        if at % self.SECTOR or (count, block, command) != (self.SECTOR, 1 << 16, 0xD8):
            return self.wrong(f"{arguments} is no sector")
        return self.erase(at, count)


RP2040 = {"IF": "CX", "EX": "IF", "RE": "EX", "RP": "EX", "FC": "RE RP", "CX": "FC"}
ESP32C3 = {"EX": "CX", "RE": "EX", "RP": "EX", "FC": "RE RP", "CX": "FC"}


def chip_of(board: str) -> Chip:
    """The flash of a board, at addresses as loads see it."""
    kib = 1024
    if board == "nucleo_f446re":
        return Stm32f([16 * kib] * 4 + [64 * kib] + [128 * kib] * 3, data_cache=True)
    if board == "stm32f746g_disco":
        return Stm32f([32 * kib] * 4 + [128 * kib] + [256 * kib] * 3, data_cache=False)
    if board == "nucleo_h743zi":
        return Stm32h7()
    if board == "rpi_pico":
        return Serial(2048 * kib, 0x1000_0000, RP2040)
    assert board == "esp32c3", board
    return Serial(4096 * kib, 0x3C00_0000, ESP32C3)
