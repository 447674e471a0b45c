"""Boards: what a device has, read from one TOML file each in the `devices` folder.

name = "rpi4"                       the file's name
kind = "linux"                      `linux`: a process under an operating system; `bare`: firmware
triple = "aarch64-linux-gnu"        LLVM's name of the machine
core = "cortex-a72"                 LLVM's name of the processor; `native`: the one that compiles
features = ["+neon"]                LLVM's names of what the core has beyond its default
vector_bits = 128                   width of a SIMD register, 0 where there are none
compiler = "aarch64-linux-gnu-gcc"  C compiler for the generated driver, with `compiler_flags`
emulator = ["qemu-aarch64", ...]    command that runs a program of the board on this machine
ram_bytes = 1_073_741_824           what a program may use, where there is a limit; `flash_bytes` likewise
"""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgemem.errors import ConfigError
from edgemem.text import nearest


class Board(BaseModel):
    """One board; see the module docstring for the fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

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
    ram_bytes: int | None = None
    flash_bytes: int | None = None
    compiler: str
    compiler_flags: list[str] = []
    emulator: list[str] = []
    runtime: Literal["aot"]

    @property
    def is_host(self) -> bool:
        """Whether programs of this board run here as they are."""
        return self.core == "native"


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
    """The text of a board file."""
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
        raise ConfigError(f"board {name}: not TOML ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"board {name}, field {where}: {first['msg']} (got {first['input']!r})") from error
    if found.name != name:
        raise ConfigError(f"board {name}: its file says name = {found.name!r}; file and name must agree")
    return found
