"""README.md of a firmware folder: how to put it on its board and read it there, and where code of one's own goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgemem.boards import Board
from edgemem.runtimes.firmware import build
from edgemem.text import hertz

INTERRUPTS = {
    False: "Interrupt N of the chip calls `void irq_N(void)`, the system timer `void tick(void)`: define them.",
    True: "Interrupt N of the core, as mcause has it, calls `void irq_N(void)`: define it, and set mie and mstatus.",
}


def readme(
    board: Board, model: str, kernels: Sequence[str], sound: build.Sound | None, snapshots: Mapping[str, Any]
) -> str:
    """The page of `model`; `snapshots` as in the manifest."""
    parts = [head(board, model), console(board, model)]
    parts += [emulated(board)] if board.emulator else []
    parts += [flashed(board)] if board.flash_commands or not board.emulator else []
    parts += [clock(board)] if board.flash_commands or not board.emulator else []
    parts += [own_code(board, kernels, sound), state(board, snapshots)]
    return "\n".join(parts)


def head(board: Board, model: str) -> str:
    made = "firmware.elf, firmware.bin and firmware.uf2" if board.uf2_family is not None else "firmware.elf and .bin"
    return f"""\
# {model} on {board.title}

`make` builds {made} again; so does CMake, `cmake -B build -DCMAKE_TOOLCHAIN_FILE=toolchain.cmake && cmake --build
build`. `manifest.json` says what everything weighs, `firmware.ld` where it lies. Facts of the board: {board.source}.
"""


def console(board: Board, model: str) -> str:
    assert board.console is not None
    port = (
        "semihosting: the emulator, or the debugger, prints it"
        if board.console.kind == "semihosting"
        else f"{board.console.wires or 'the UART of board.h'}; {board.console.baud} baud, 8 bits, no parity, 1 stop bit"
    )
    return f"""\
## What it says

The console is {port}. After a reset:

    edgemem {model} on {board.name}
    PASS
    state from the start
    ready

`PASS`: the outputs of the test vectors are those that were computed when this was compiled. Otherwise it says `FAIL`,
the index of the first output that differs, what was wanted and what came, and stops. `state from flash`: it goes on
from a snapshot. After `ready` it answers a host, see `src/serve.h`.
"""


def emulated(board: Board) -> str:
    assert board.console is not None
    ends = (
        "At the end of its input it stops; QEMU's exit status is 0 after PASS and 1 after FAIL, so that `make run <\n"
        "/dev/null` is a check."
        if board.console.kind == "semihosting"
        else "Ctrl-C ends QEMU."
    )
    return f"""\
## Under QEMU

`make run`, which is

    {build.run_command(board)}

{ends}
"""


def flashed(board: Board) -> str:
    if board.flash_commands:
        ways = "\n".join(f"    {command}" for command in board.flash_commands)
        text = f"`make flash` runs the first of these; each needs its tool, and the board plugged in:\n\n{ways}\n"
    else:
        text = f"Write firmware.bin to address {board.flash_origin:#010x} with your vendor's tool.\n"
    by_hand = f"\nOr {board.flash_by_hand}.\n" if board.flash_by_hand is not None else ""
    return f"## On the board\n\n{text}{by_hand}"


def clock(board: Board) -> str:
    """Of the core, as the start-up leaves it."""
    assert board.clock_hz is not None
    start = board.start_clock_hz or board.clock_hz
    most = "" if start == board.clock_hz else f", the chip runs at up to {hertz(board.clock_hz)}"
    left = "as its ROM leaves it" if board.boot == "esp32c3" else f"at {hertz(start)}"
    return f"""\
## The clock

The start-up leaves the core {left}{most}: the time of a step depends on that, `edgemem compile` says it. For another
clock define `void board_clock(void)`, which is called first (`src/start.h`): wait states of the flash, PLL, switch. The
divider of the console in `src/board.h` is for the clock after the start-up.
"""


def own_code(board: Board, kernels: Sequence[str], sound: build.Sound | None) -> str:
    """Where the rest of a product goes, and what cannot be built again."""
    given = (
        ""
        if kernels
        else "The kernels are an object, made for the core of this board: another CORE in the Makefile wants "
        "`edgemem compile` again.\n\n"
    )
    interrupts = f"\n{INTERRUPTS[board.boot in build.RISCV_BOOTS]}\n" if board.interrupts else ""
    examples = (
        ""
        if sound is None
        else f"Examples that hear: `make {' '.join(f'{name}.elf' for name in sound.examples)}`, see `examples/`.\n\n"
    )
    return f"""\
## Your own code

{given}{examples}`src/main.c` shows the calls: `edgemem_reset()` once, `edgemem_step()` for every chunk;
`edgemem_inputs` and `edgemem_outputs` of `src/edgemem_model.h` say where the numbers go.

Every C and assembler file in a folder `app/` joins the images (or name yours by `make SOURCES="..."`): `app/main.c` in
place of `src/main.c`, files called `app/microphone*` in place of the driver of `microphone.elf`. `edgemem compile` into
this folder writes `src/` and `examples/` anew, and leaves `app/` alone.
{interrupts}"""


def state(board: Board, snapshots: Mapping[str, Any]) -> str:
    if not snapshots["bank_bytes"]:
        why = snapshots["left_out"] or "the board file names no flash_page_bytes"
        return f"""\
## The state in flash

No flash is kept for snapshots ({why}): after a power cut it starts anew.
"""
    at = f"{snapshots['address']:#010x}, {snapshots['offset']:#x} from the start of flash"
    if board.flash_driver is None:
        return f"""\
## The state in flash

Two snapshots have room at {at}, and nothing writes them: define the four functions of `src/flash.h` for the flash of
this board, `src/flash_none.c` gives way to them.
"""
    tried = "" if board.emulator else " No emulator has this flash: the driver was built, and not run."
    return f"""\
## The state in flash

Two snapshots take turns at {at}; an image leaves them alone.
`snapshot_save(SNAPSHOT_WHOLE)` of `src/snapshot.h` writes the older one, `src/main.c` starts from the newer.{tried}
`python -m edgemem.runtimes.firmware.flash` makes such flash of a stream's snapshot, and reads it back.
"""
