"""From generated text to an image: Makefile, CMakeLists.txt, and a build by the former."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from edgemem.boards import Board
from edgemem.errors import CompileError, MissingDependency
from edgemem.runtimes.aot.toolchain import complaints, found
from edgemem.runtimes.firmware import elf

IMAGE = "firmware.elf"
SHARED = "src"  # folder of what is not the model's
EXAMPLES = "examples"  # folder of other programs than the firmware
MAIN = f"{SHARED}/main.c"
COMMON = ("main.c", "selftest.c", "serve.c", "memory.c", "counter.c", "marks.c", "console_text.c")
HEADERS = ("console.h", "counter.h", "edgemem_model.h", "marks.h", "selftest.h", "serve.h", "snapshot.h", "start.h")
SNAPSHOT_HEADERS = ("flash.h", "flash_place.h", "registers.h")
ROM_HEADERS = {"rp": ("rom_rp.h",), "esp32c3": ("rom_esp32c3.h",)}
CORTEX_M, RISCV = ("start_cortex_m.c", "math_error.c"), ("start_riscv.S", "fault_riscv.c")
CFLAGS = ("-std=gnu99", "-Os", "-Wall", "-Wextra", "-ffreestanding", "-ffunction-sections",
          "-fdata-sections", "-fno-common", "-fno-ident", "-g0")  # fmt: skip
LDFLAGS = (
    "-nostdlib",
    "-Tfirmware.ld",
    "-Wl,--gc-sections",
    "-Wl,-z,noexecstack",  # objects of the C library say nothing of that
    "-Wl,--build-id=none",
    "-Wl,--strip-debug",
)
FAST = ("-O2", "-ffp-contract=off")  # of kernels that are C text
RISCV_BOOTS = ("riscv", "esp32c3")
BOOT2_BYTES = 252
MICROPHONE = "microphone"  # the example that takes another driver than the one beside it


@dataclass(frozen=True)
class Sound:
    """The part of a project that takes sound, see `sound.py`; paths from its folder."""

    sources: tuple[str, ...]
    fast: tuple[str, ...]  # those of them that are compiled for speed
    examples: dict[str, tuple[str, ...]]  # sources by image
    ram_bytes: int
    fixed: bool  # whether features are computed in fixed point


def c_files(board: Board, snapshots: bool) -> list[str]:
    """The shared sources that a board needs, with or without `snapshots` of the state."""
    assert board.console is not None
    files = [*COMMON, f"console_{board.console.kind}.c"]
    files += ["snapshot.c", f"flash_{board.flash_driver or 'none'}.c"] if snapshots else []
    files += RISCV if board.boot in RISCV_BOOTS else CORTEX_M
    files += ["soft_math.c"] if soft(board) else []
    files += [f"boot_{board.boot}.S"] if board.boot in ("rp2040", "rp2350", "esp32c3") else []
    return files


def headers(board: Board, snapshots: bool) -> list[str]:
    """The shared headers that these include."""
    more = (*SNAPSHOT_HEADERS, *ROM_HEADERS.get(str(board.flash_driver), ())) if snapshots else ()
    return [*HEADERS, *more]


def soft(board: Board) -> bool:
    """Whether floats are integer programs on this core."""
    return board.float_abi == "soft" or board.abi == "ilp32"


def copy_sources(board: Board, folder: Path, snapshots: bool) -> list[str]:
    """Put the shared sources and headers into a project; the paths of the sources in it."""
    names = c_files(board, snapshots)
    for name in [*names, *headers(board, snapshots)]:
        text = resources.files("edgemem.runtimes.firmware").joinpath("c", name).read_text()
        (folder / SHARED / name).write_text(text)
    return [f"{SHARED}/{name}" for name in names]


def quiet(board: Board) -> str:
    """RISC-V's linker warns of code in RAM, which this driver needs; an older one knows neither warning nor option."""
    if board.flash_driver != "esp32c3":
        return ""
    option = "no-warn-rwx-segments"
    return f" $(if $(findstring {option},$(shell $(CC) -nostdlib -Wl,--help)),-Wl,--{option})"


def objects_of(sources: Sequence[str]) -> str:
    return " ".join(str(Path(source).with_suffix(".o")) for source in sources)


def makefile(
    board: Board, name: str, sources: Sequence[str], kernels: Sequence[str], sound: Sound | None = None
) -> str:
    """GNU Make: `make` builds firmware.elf and firmware.bin, `make clip.elf` an example; `make run`, `make flash`.

    Without `kernels` as sources, they are an object.
    """
    sources = [source for source in sources if source != MAIN]
    objects = objects_of((*sources, *kernels))
    given = "" if kernels else f" {name}_kernels.o"
    quick = (*kernels, *(sound.fast if sound is not None else ()))
    fast = f"{objects_of(quick)}: CFLAGS += {' '.join(FAST)}" if quick else ""
    extra = example_rules(sound, given) if sound is not None else ""
    made = "" if sound is None else f" {objects_of([s for e in sound.examples.values() for s in e])} $(SOUND)"
    prefix = board.compiler.removesuffix("gcc")
    checksum = " -DBOOT_CHECKSUM=$(BOOT_CHECKSUM)" if board.boot == "rp2040" else ""
    uf2 = " firmware.uf2" if board.uf2_family is not None else ""
    boot = BOOT_RULE if board.boot == "rp2040" else ""
    return f"""\
# Generated by edgemem: {name} on {board.title}.
CROSS ?= {prefix}
CC := $(CROSS)gcc
OBJCOPY := $(CROSS)objcopy
CORE := {" ".join(board.compiler_flags)}
CFLAGS := {" ".join(CFLAGS)} -I. -I{SHARED} -Iapp
LDFLAGS := {" ".join(LDFLAGS)}{quiet(board)}
LIBRARIES := -Wl,--start-group -lm -lc -lgcc -Wl,--end-group
OBJECTS := {objects}
EXTRA ?=
PYTHON ?= python3
IMAGES := {" ".join(f"{image}.elf" for image in ("firmware", *(sound.examples if sound is not None else ())))}
# Yours: every file in app/ and in SOURCES joins; app/main.c in place of {MAIN}, app/microphone* in microphone.elf.
SOURCES ?=
APP := $(patsubst %,%.o,$(basename $(wildcard app/*.c app/*.S) $(SOURCES)))
MAIN := $(or $(filter app/main.o,$(APP)),{objects_of([MAIN])})
OWN := $(filter-out app/main.o app/microphone%,$(APP))
{boot}
all: firmware.bin{uf2}

$(IMAGES:.elf=.bin): %.bin: %.elf
\t$(OBJCOPY) -O binary $< $@

$(IMAGES:.elf=.hex): %.hex: %.elf
\t$(OBJCOPY) -O ihex $< $@
{targets(board)}
{fast}
firmware.elf: $(MAIN) $(OBJECTS) $(OWN){given} firmware.ld
\t$(CC) $(CORE) $(LDFLAGS) -Wl,-Map=$(@:.elf=.map) -o $@ $(filter %.o,$^) $(LIBRARIES)
{extra}
%.o: %.c $(wildcard *.h src/*.h app/*.h)
\t$(CC) $(CORE) $(CFLAGS) $(EXTRA) -c $< -o $@

%.o: %.S
\t$(CC) $(CORE) $(EXTRA){checksum} -c $< -o $@

{name}_weights.o: {name}_weights.bin

clean:
\trm -f {objects_of([MAIN])} $(OBJECTS) $(APP){made} *.elf *.map $(foreach kind,bin hex uf2,$(IMAGES:.elf=.$(kind)))

.PHONY: all clean run flash
"""


def targets(board: Board) -> str:
    """What brings an image to a board, or to its emulator."""
    rules = ""
    if board.uf2_family is not None:
        places = f"--base {board.flash_origin:#x} --family {board.uf2_family:#x}"
        rules += f"\n$(IMAGES:.elf=.uf2): %.uf2: %.bin\n\t$(PYTHON) uf2.py $< $@ {places}\n"
    if board.emulator:
        rules += f"\nrun: {IMAGE}\n\t{run_command(board)}\n"
    if board.flash_commands:
        first = board.flash_commands[0]
        files = [file for file in (IMAGE, "firmware.bin", "firmware.uf2") if file in first]
        rules += f"\nflash: {' '.join(files)}\n\t{first}\n"
    return rules


def run_command(board: Board) -> str:
    """QEMU with the board's console on this terminal."""
    assert board.console is not None
    uart = board.console.kind == "uart"
    link = ["-serial", "stdio"] if uart else ["-semihosting-config", "enable=on,target=native", "-serial", "null"]
    return shlex.join([*board.emulator, "-display", "none", "-monitor", "none", *link, "-kernel", IMAGE])


def example_rules(sound: Sound, given: str) -> str:
    """Images with another main than the firmware's."""
    rules = "".join(
        f"""\
{name}.elf: $(OBJECTS) $(SOUND) {own_objects(name, sources)}{given} firmware.ld
\t$(CC) $(CORE) $(LDFLAGS) -Wl,-Map=$(@:.elf=.map) -o $@ $(filter %.o,$^) $(LIBRARIES)

"""
        for name, sources in sound.examples.items()
    )
    return f"\nSOUND := {objects_of(sound.sources)}\n{rules}{EXAMPLES}/clip_data.o: $(wildcard {EXAMPLES}/clip.bin)\n"


def own_objects(name: str, sources: Sequence[str]) -> str:
    """Objects of an example; a driver of the user's own takes the place of that of a microphone."""
    if name != MICROPHONE:
        return f"{objects_of(sources)} $(OWN)"
    drivers = [source for source in sources if Path(source).name.startswith(f"{name}_")]
    rest = objects_of([source for source in sources if source not in drivers])
    driver = f"$(or $(filter app/{name}%,$(APP)),{objects_of(drivers)})"
    return f"{rest} {driver} $(OWN)"


BOOT_RULE = """\
include boot_checksum.mk
"""


def cmakelists(
    board: Board, name: str, sources: Sequence[str], kernels: Sequence[str], sound: Sound | None = None
) -> str:
    """CMake: the same build; give it `-DCMAKE_TOOLCHAIN_FILE=toolchain.cmake`."""
    checksum = "include(boot_checksum.cmake)\n" if board.boot == "rp2040" else ""
    common = [source for source in sources if source != MAIN]
    common += kernels if kernels else [f"{name}_kernels.o"]
    quick = (*kernels, *(sound.fast if sound is not None else ()))
    properties = f'set_source_files_properties({" ".join(quick)} PROPERTIES COMPILE_OPTIONS "{";".join(FAST)}")\n'
    properties = properties if quick else ""
    if not kernels:
        properties += f"set_source_files_properties({name}_kernels.o PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)\n"
    images = [image("firmware", f"${{MAIN}} {' '.join(common)} ${{OWN}}", "", binary=True)]
    for example, own in sound.examples.items() if sound is not None else ():
        assert sound is not None
        drivers = [s for s in own if example == MICROPHONE and Path(s).name.startswith(f"{MICROPHONE}_")]
        rest = [source for source in own if source not in drivers]
        mine = ["${DRIVER}" if example == MICROPHONE else "", "${OWN}"]
        files = " ".join((*rest, *sound.sources, *common, *filter(None, mine)))
        images.append(driver_choice(drivers) if example == MICROPHONE else "")
        images.append(image(example, files, " EXCLUDE_FROM_ALL"))
    return f"""\
# Generated by edgemem: {name} on {board.title}.
#   cmake -B build -DCMAKE_TOOLCHAIN_FILE=toolchain.cmake && cmake --build build
cmake_minimum_required(VERSION 3.16)
project(firmware C ASM)
file(GLOB APP CONFIGURE_DEPENDS RELATIVE ${{CMAKE_CURRENT_SOURCE_DIR}} app/*.c app/*.S)
set(OWN ${{APP}} ${{SOURCES}})
list(FILTER OWN EXCLUDE REGEX "app/(main\\.|{MICROPHONE})")
set(MAIN {MAIN})
if("app/main.c" IN_LIST APP)
  set(MAIN app/main.c)
endif()
{properties}set_source_files_properties({name}_weights.S PROPERTIES OBJECT_DEPENDS
  ${{CMAKE_CURRENT_SOURCE_DIR}}/{name}_weights.bin)
{"".join(images)}{checksum}"""


def driver_choice(drivers: Sequence[str]) -> str:
    return f"""\
set(DRIVER ${{APP}})
list(FILTER DRIVER INCLUDE REGEX "app/{MICROPHONE}")
if(NOT DRIVER)
  set(DRIVER {" ".join(drivers)})
endif()
"""


def image(name: str, files: str, rest: str, binary: bool = False) -> str:
    """One image of a CMake project, and its bytes as they lie in flash."""
    copied = (
        f"""\
add_custom_command(TARGET {name}.elf POST_BUILD COMMAND ${{CMAKE_OBJCOPY}} -O binary {name}.elf {name}.bin
  BYPRODUCTS {name}.bin)
"""
        if binary
        else ""
    )
    return f"""\
add_executable({name}.elf{rest} {files})
target_compile_options({name}.elf PRIVATE $<$<COMPILE_LANGUAGE:C>:{";".join(CFLAGS)}>)
target_include_directories({name}.elf PRIVATE ${{CMAKE_CURRENT_SOURCE_DIR}} ${{CMAKE_CURRENT_SOURCE_DIR}}/{SHARED}
  ${{CMAKE_CURRENT_SOURCE_DIR}}/app)
target_link_options({name}.elf PRIVATE {" ".join(f for f in LDFLAGS if not f.startswith("-T"))}
  -T${{CMAKE_CURRENT_SOURCE_DIR}}/firmware.ld -Wl,-Map={name}.map)
target_link_libraries({name}.elf PRIVATE -Wl,--start-group m c gcc -Wl,--end-group)
{copied}"""


def toolchain_cmake(board: Board) -> str:
    flags = " ".join(board.compiler_flags)
    return f"""\
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(CMAKE_C_COMPILER {board.compiler})
set(CMAKE_ASM_COMPILER {board.compiler})
set(CMAKE_OBJCOPY {board.compiler.removesuffix("gcc")}objcopy)
set(CMAKE_C_FLAGS_INIT "{flags}")
set(CMAKE_ASM_FLAGS_INIT "{flags} -I${{CMAKE_CURRENT_LIST_DIR}} -Wa,-I${{CMAKE_CURRENT_LIST_DIR}}")
"""


def boot_checksum(data: bytes) -> int:
    """The CRC-32 that the RP2040's ROM wants behind the 252 bytes of its second stage.

    Polynomial 0x04c11db7, start value all ones, most significant bit first, nothing inverted at the end.
    """
    reflected = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    return int(f"{zlib.crc32(reflected) ^ 0xFFFFFFFF:032b}"[::-1], 2)


def write_boot_checksum(board: Board, folder: Path) -> None:
    """Assemble the second stage once, and give its checksum to both builds."""
    compiler = found(board.compiler)
    run([compiler, *board.compiler_flags, "-DBOOT_CHECKSUM=0", "-c", f"{SHARED}/boot_rp2040.S",
         "-o", "boot_rp2040.o"], folder)  # fmt: skip
    section = elf.read(folder / "boot_rp2040.o").section(".boot")
    assert section is not None
    (folder / "boot_rp2040.o").unlink()
    value = f"{boot_checksum(section.data[:BOOT2_BYTES]):#010x}"
    (folder / "boot_checksum.mk").write_text(f"BOOT_CHECKSUM := {value}\n")
    (folder / "boot_checksum.cmake").write_text(
        f"set_source_files_properties({SHARED}/boot_rp2040.S PROPERTIES COMPILE_DEFINITIONS BOOT_CHECKSUM={value})\n"
    )


def make(folder: Path, *arguments: str) -> None:
    """Build a project.

    Raises:
        MissingDependency: GNU Make is not installed.
        CompileError: a compiler or the linker failed.
    """
    if shutil.which("make") is None:
        raise MissingDependency("building firmware needs GNU Make, which is not installed; install the package `make`")
    run(["make", "-s", *arguments], folder)


def run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = "\n".join(complaints(done.stderr or done.stdout))
        raise CompileError(f"{' '.join(command[:2])} failed in the firmware project:\n{lines}")
