"""The C compiler of a board: driver and weights to objects, objects to libraries. Equal sources give equal bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.errors import CompileError, MissingDependency

if TYPE_CHECKING:
    from edgemem.boards import Board

WARNINGS = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
FLAGS = ("-O2", "-fPIC", "-ffunction-sections", "-fdata-sections", "-g0", "-fno-ident", "-fno-stack-protector")
MATH = ("-Wl,--as-needed", "-lm")  # powers and inverse functions; all else of kernels is in `mathops`
SHOWN_LINES = 8  # of a tool's output, in an error
LEFTOVER = "*.tvm.fp16.conv"  # half-precision helpers that TVM adds to every object; no kernel calls them


@dataclass(frozen=True)
class Toolchain:
    """Paths of one compiler and its binary tools."""

    compiler: str
    flags: tuple[str, ...]
    version: str

    def tool(self, name: str) -> str:
        """A binary tool of the same prefix as the compiler (`aarch64-linux-gnu-gcc` -> `aarch64-linux-gnu-ar`)."""
        prefix = Path(self.compiler).name.removesuffix("gcc")
        return found(f"{prefix}{name}")

    def run(self, *command: str, folder: Path) -> None:
        """Run a tool in `folder`.

        Raises:
            CompileError: with the first lines of its complaint.
        """
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            lines = "\n".join(complaints(result.stderr))
            raise CompileError(f"{' '.join(command)} failed:\n{lines}")

    def compile(self, source: str, output: str, folder: Path, *flags: str) -> None:
        self.run(self.compiler, *self.flags, *flags, "-c", source, "-o", output, folder=folder)

    def tidy(self, target: str, folder: Path) -> None:
        """Drop debug information and what TVM leaves in every object."""
        self.run(self.tool("objcopy"), "--strip-debug", f"--remove-section={LEFTOVER}", target, folder=folder)

    def archive(self, output: str, objects: Sequence[str], folder: Path) -> None:
        (folder / output).unlink(missing_ok=True)
        self.run(self.tool("ar"), "rcsD", output, *objects, folder=folder)

    def shared(self, output: str, objects: Sequence[str], exports: str, folder: Path) -> None:
        self.run(
            self.compiler, *self.flags, "-shared", "-pthread", "-nostartfiles", f"-Wl,--version-script={exports}",
            f"-Wl,-soname,{output}", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,-z,noexecstack",
            "-o", output, *objects, *MATH, folder=folder,
        )  # fmt: skip

    def executable(self, output: str, sources: Sequence[str], folder: Path, *flags: str) -> None:
        """A static program."""
        self.run(
            self.compiler, *self.flags, *flags, "-static", "-Wl,--build-id=none", "-Wl,--gc-sections", "-s",
            "-o", output, *sources, *MATH, folder=folder,
        )  # fmt: skip


def toolchain(board: Board) -> Toolchain:
    """The compiler that the board names.

    Raises:
        MissingDependency: it is not installed.
    """
    compiler = found(board.compiler)
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return Toolchain(compiler, tuple(board.compiler_flags), version[0] if version else "unknown")


def found(tool: str) -> str:
    """Where a tool is.

    Raises:
        MissingDependency: nowhere.
    """
    place = shutil.which(tool)
    if place is None:
        own = "-" not in tool  # of this machine; cross tools have their machine before their name
        how = (
            "install your system's C compiler (Debian, Ubuntu: apt-get install gcc)"
            if own
            else "`make boards` installs it"
        )
        raise MissingDependency(
            f"compiling for {'this machine' if own else 'this board'} needs {tool}, which is not installed; {how}"
        )
    return place


def complaints(said: str) -> list[str]:
    """The lines of a tool's output that say what is wrong: its errors, without the warnings before them."""
    lines = said.splitlines()
    errors = [line for line in lines if "error" in line.lower() or "undefined reference" in line]
    return (errors or lines)[:SHOWN_LINES]
