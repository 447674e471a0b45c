"""Sections and symbols of a 32-bit little-endian ELF file, as far as weighing an image needs them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from edgemem.errors import ModelFileError

HEADER, SECTION, SYMBOL = struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<10I"), struct.Struct("<IIIBBH")
NOBITS, SYMTAB = 8, 2
ALLOCATED, EXECUTABLE = 2, 4


@dataclass(frozen=True)
class Section:
    """`address` where the core sees it; `data` is empty where the file holds no bytes of it."""

    name: str
    kind: int
    flags: int
    address: int
    nbytes: int
    data: bytes

    @property
    def allocated(self) -> bool:
        return bool(self.flags & ALLOCATED)


@dataclass(frozen=True)
class Elf:
    """`symbols` holds address and size by name."""

    entry: int
    sections: tuple[Section, ...]
    symbols: dict[str, tuple[int, int]]

    def section(self, name: str) -> Section | None:
        return next((s for s in self.sections if s.name == name), None)

    def size(self, name: str) -> int:
        """Bytes of a section, 0 without one."""
        found = self.section(name)
        return found.nbytes if found is not None else 0


def read(path: Path) -> Elf:
    """An ELF file.

    Raises:
        ModelFileError: not a 32-bit little-endian ELF file, or cut off.
    """
    data = path.read_bytes()
    try:
        ident, _, _, _, entry, _, shoff, _, _, _, _, shentsize, shnum, shstrndx = HEADER.unpack_from(data)
        if ident[:6] != b"\x7fELF\x01\x01":
            raise ValueError("its first bytes are not those of a 32-bit little-endian ELF file")
        raw = [SECTION.unpack_from(data, shoff + index * shentsize) for index in range(shnum)]
        names = span(data, raw[shstrndx])
        sections = tuple(
            Section(text(names, r[0]), r[1], r[2], r[3], r[5], b"" if r[1] == NOBITS else span(data, r)) for r in raw
        )
        symbols = {}
        for index, r in enumerate(raw):
            if r[1] == SYMTAB:
                strings = sections[r[6]].data
                for name, value, size, *_ in SYMBOL.iter_unpack(sections[index].data):
                    symbols[text(strings, name)] = (value, size)
    except (struct.error, IndexError, ValueError) as error:
        raise ModelFileError(f"{path} is not an image that can be weighed ({error}); build it again") from error
    return Elf(entry, sections, symbols)


def span(data: bytes, raw: tuple[int, ...]) -> bytes:
    if raw[4] + raw[5] > len(data):
        raise ValueError("it is cut off")
    return data[raw[4] : raw[4] + raw[5]]


def text(strings: bytes, offset: int) -> str:
    return strings[offset : strings.index(b"\0", offset)].decode("latin-1")
