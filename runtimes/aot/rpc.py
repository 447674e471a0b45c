"""Measure a program on a real board through TVM's own RPC server; only the measurement needs TVM there.

    board   python -m tvm.exec.rpc_server --port 9090
    here    edgemem bench k.onnx --board rpi4 --rpc rpi4.local:9090

What is sent is the static library of the program linked with a shim, which exports one function of TVM's FFI. It steps
the program on inputs of its own making, and runs the probes that give the board's roofline, in the same rounds.
"""

from __future__ import annotations

import math
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgemem import contract as contracts
from edgemem.boards import Board
from edgemem.contract import Contract
from edgemem.digests import canonical
from edgemem.errors import CompileError, EdgememError, UsageError
from edgemem.measure import PROBE, ROUND_SECONDS, new_row, vector_bytes
from edgemem.modelfile import open_model
from edgemem.runtimes.aot.compiler import compile_model
from edgemem.runtimes.aot.emit_calls import upper
from edgemem.runtimes.aot.emit_header import C_TYPES
from edgemem.runtimes.aot.emit_run import members, nbytes, room
from edgemem.runtimes.aot.importer import require_tvm
from edgemem.runtimes.aot.load import read_manifest
from edgemem.runtimes.aot.toolchain import toolchain
from edgemem.text import first_line

STEP, PERCENTILE, READ, MULTIPLY = range(4)  # what the shim can be asked for
CONNECT_SECONDS = 10.0
VECTOR_BYTES = 16  # of a probe on a board without vectors: the compiler takes them apart

SHIM = r"""
#define _POSIX_C_SOURCE 200809L
#include "NAME.h"
#include <stdlib.h>
#include <time.h>
PROBE
/* A value of TVM's FFI: a tag (1 integer, 3 floating point), four bytes of zero, the value. */
typedef struct { int32_t tag; uint32_t zero; union { int64_t i; double f; } value; } any;

static uint64_t in_room[IN_ROOM + 1], out_room[OUT_ROOM + 1];
static _Alignas(BIG_ALIGNMENT) unsigned char state[BIG_STATE_BYTES], arena[BIG_ARENA_BYTES];
static double times[1 << 16];
static size_t count;
static uint32_t seed = 1;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static uint32_t drawn(void)
{
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static int ordered(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Single steps for some microseconds; their median, or a negative error code. */
static double steps_us(double budget)
{
    NAME_inputs inputs;
    NAME_outputs outputs;
    unsigned char *in = (unsigned char *)in_room, *out = (unsigned char *)out_room;
    const double end = now_us() + budget;
    (void)in, (void)out;
MEMBERS
    if (NAME_reset(state, sizeof state) != BIG_OK) return -1;
    for (count = 0; count < sizeof times / sizeof times[0]; ++count) {
        double begin;
        int error;
FILL
        begin = now_us();
        if (count > 0 && begin > end) break;
        error = NAME_step(&inputs, &outputs, state, sizeof state, arena, sizeof arena);
        if (error != BIG_OK) return -error;
        times[count] = now_us() - begin;
    }
    qsort(times, count, sizeof times[0], ordered);
    return times[count / 2];
}

/* To read a span of so many bytes that was read just before. */
static double read_us(size_t bytes)
{
    const size_t whole = (bytes / (8 * BYTES) + 1) * 8 * BYTES;
    static unsigned char *data;
    static size_t held;
    static volatile float sink;
    long i, repeats = 1 + (long)(400000 / whole);
    double pieces[9];
    if (held != whole) {
        free(data);
        if (posix_memalign((void **)&data, 4096, whole) != 0) return -1;
        for (held = 0; held < whole; ++held) data[held] = 1;
    }
    for (i = 0; i < 9; ++i) {
        const double begin = now_us();
        sink = probe_read((const char *)data, whole, repeats);
        pieces[i] = (now_us() - begin) / (double)repeats;
    }
    qsort(pieces, 9, sizeof pieces[0], ordered);
    return pieces[4] * (double)bytes / (double)whole;
}

static double multiply_us(double macs)
{
    static volatile float sink;
    double pieces[9];
    long i;
    for (i = 0; i < 9; ++i) {
        const double begin = now_us();
        sink = probe_multiply(20000);
        pieces[i] = now_us() - begin;
    }
    qsort(pieces, 9, sizeof pieces[0], ordered);
    return pieces[4] / 20000 * macs / (8 * BYTES / 4);
}

int __tvm_ffi_edgemem_bench(void *self, const any *arguments, int32_t number, any *result)
{
    const int64_t what = number == 2 ? arguments[0].value.i : -1, amount = number == 2 ? arguments[1].value.i : 0;
    (void)self;
    result->tag = 3;
    result->zero = 0;
    result->value.f = what == 0 ? steps_us((double)amount)
        : what == 1 ? times[count * (size_t)amount / 100]
        : what == 2 ? read_us((size_t)amount)
        : what == 3 ? multiply_us((double)amount) : -1;
    return 0;
}
"""


def measure_on_board(
    files: Sequence[Path],
    board: Board,
    address: str,
    rounds: int = 20,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Compile every file for a board, run it there, and give what `edgemem.measure.measure` gives.

    Raises:
        UsageError: the address is not HOST:PORT, or the board runs no Linux.
        EdgememError: no RPC server answers there, or it cannot load or run the program.
        ModelFileError, ContractError, CompileError, MissingDependency: as of `compile_model`.
    """
    require_tvm()
    if board.kind != "linux":
        raise UsageError(
            f"{board.name} is no Linux board: no RPC server runs there; edgemem verify counts its instructions"
        )
    remote = connected(address)
    rows, machine = [], {"board": board.name, "rpc": address}
    with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
        asked = []
        for index, file in enumerate(files):
            library = shim(file, board, Path(folder) / str(index))
            row = new_row(f"aot on {board.name}", file, 1, open_model(file))
            asked.append(sent(remote, library))
            rows.append(row)
        for _ in range(rounds):
            for row, ask in zip(rows, asked, strict=True):
                row.rooflines_us.append(max(ask(READ, row.bytes_per_step), ask(MULTIPLY, row.macs_per_step)))
                row.rounds_us.append(ask(STEP, round(ROUND_SECONDS * 1e6)))
                row.calls_us += [ask(PERCENTILE, percent) for percent in range(100)]
            tick()
    return {"machine": machine, "rows": [row.to_json() for row in rows]}


def connected(address: str) -> Any:
    """A session of the RPC server at HOST:PORT.

    Raises:
        UsageError: no HOST:PORT.
        EdgememError: nothing answers there.
    """
    from tvm import rpc

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"--rpc wants HOST:PORT, got {address!r}")
    try:  # TVM itself would wait for minutes
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        return rpc.connect(host, int(port))
    except (OSError, RuntimeError) as error:
        raise EdgememError(
            f"no RPC server at {address} ({first_line(error)}); "
            "start one on the board: python -m tvm.exec.rpc_server --port PORT"
        ) from error


def sent(remote: Any, library: Path) -> Callable[[int, int], float]:
    """The shim's function on the board.

    Raises:
        EdgememError: the board cannot load it; so the function, where the board loses the program or a step fails.
    """
    try:
        remote.upload(str(library))
        function = remote.load_module(library.name)["edgemem_bench"]
    except Exception as error:  # TVM raises plain errors of its own kind
        raise EdgememError(f"the RPC server cannot load the program: {first_line(error)}") from error

    def ask(what: int, amount: int) -> float:
        try:
            value = float(function(what, amount))
        except Exception as error:
            raise EdgememError(f"the RPC server lost the program: {first_line(error)}") from error
        if value < 0:
            raise EdgememError(f"the program on the board fails with code {-value:.0f}; compile it again")
        return value

    return ask


def shim(file: Path, board: Board, folder: Path) -> Path:
    """The model compiled for the board and linked with the shim, as a shared library.

    Raises:
        CompileError: the C compiler of the board fails.
    """
    compile_model(file, board, folder / "program", name="measured")
    manifest = read_manifest(folder / "program")
    contract = contracts.decode(canonical(manifest["contract"]))
    library = folder / f"edgemem_{folder.name}.so"
    (folder / "shim.c").write_text(shim_text(manifest["name"], contract))
    vectors = vector_bytes() if board.is_host else max(VECTOR_BYTES, (board.vector_bits or 0) // 8)
    tools = toolchain(board)
    native = ["-march=native"] if board.is_host else []
    command = [tools.compiler, *tools.flags, *native, "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-Wno-psabi",
               f"-DBYTES={vectors}", f"-I{folder / 'program'}", "-o", str(library), str(folder / "shim.c"),
               str(folder / "program" / f"{manifest['name']}.a")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{tools.compiler} cannot compile what measures on {board.name}:\n{done.stderr[:500]}")
    return library


def shim_text(name: str, contract: Contract) -> str:
    """The shim of one program."""
    ports = members(contract.inputs, "inputs", "in") + "\n" + members(contract.outputs, "outputs", "out")
    replaced = {"NAME": name, "BIG": upper(name), "PROBE": PROBE, "MEMBERS": ports, "FILL": filled(contract)}
    replaced |= {"IN_ROOM": str(room(contract.inputs) // 8), "OUT_ROOM": str(room(contract.outputs) // 8)}
    text = SHIM
    for word in ("MEMBERS", "FILL", "IN_ROOM", "OUT_ROOM", "PROBE", "BIG", "NAME"):
        text = text.replace(word, replaced[word])
    return text


def filled(contract: Contract) -> str:
    """C text that draws one chunk of input; `valid` counts are full."""
    lines, offset = [], 0
    for port in contract.inputs:
        kind = C_TYPES[port.dtype]
        count = math.prod(port.shape)
        if port.role == "valid":
            value = str(contract.chunk.frames)
        elif port.range is not None:
            low, high = port.range
            value = f"{low} + ({kind})(drawn() % {high - low + 1}u)"
        else:
            value = f"({kind})((float)drawn() / 8388608.0f - 1.0f)"
        lines.append(
            f"        {{ size_t k; for (k = 0; k < {count}; ++k) (({kind} *)(void *)(in + {offset}))[k] = {value}; }}"
        )
        offset += -(-nbytes(port) // 8) * 8
    return "\n".join(lines)
