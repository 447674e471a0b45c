"""How long a step takes, and how far that is from what the machine can do: candidates take turns in rounds.

    roofline   max(bytes / read bandwidth at that footprint, multiply-accumulates / peak), measured in the same rounds;
               the peak of products of bytes where a file has them and the processor an instruction for them (VNNI)
    p50, p99   of single calls of `stream.step`, over all rounds, each candidate after a while of its own steps
    first      the first call after the others had their turn: the caches are full of what they read
    best       the shortest call, and its distance from the shortest roofline: what a busy machine leaves to compare
    c_p50      the compiled step called from C in a loop, median of the rounds
    pool       what the threads of such a step cost: they wake and meet as often, and compute nothing

The machine's mood hits every candidate of a round alike, so ratios are medians of the ratios in each round.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemem import inspect, peers
from edgemem.errors import CompileError, MissingDependency
from edgemem.modelfile import ModelFile, open_model
from edgemem.onnxfile import Node
from edgemem.program import Array, Program, load
from edgemem.trial import random_inputs

ROUND_SECONDS = 0.01  # of each candidate in each round
WARM_SECONDS = 0.02  # before them, not counted: probes and steps called from C read what was read just before, too
SECOND_CORE_SECONDS = 0.1  # the same on several threads: so long does a core that slept take to come to its speed
MULTIPLIED = 12  # vectors in each turn of the probe of multiply-accumulates
PIECES, PIECE_SECONDS = 9, 0.001  # of a probe in each round
INPUTS = 16  # chunks that a candidate cycles through
PAGE_BYTES = 4096

PROBE = r"""
#include <stddef.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif
typedef float v __attribute__((vector_size(BYTES), aligned(BYTES), may_alias));
#define EACH(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
#define MORE(do) EACH(do) do(8) do(9) do(10) do(11)
#define START(w) v sum##w = {w}; /* different, so that no compiler makes one chain of all */
#define READ(w) sum##w += p[w];
#define MULTIPLY(w) sum##w = a * sum##w + b;
#define SUM(w) total += sum##w;
/* Reads `bytes` (a multiple of eight vectors) `repeats` times. */
float probe_read(const char *data, size_t bytes, long repeats)
{
    v total = {0};
    long r;
    EACH(START)
    for (r = 0; r < repeats; ++r) {
        const v *p = (const v *)data, *end = (const v *)(data + bytes);
        for (; p != end; p += 8) { EACH(READ) }
    }
    EACH(SUM)
    return total[0];
}
/* Multiply-accumulates on registers: twelve vectors in each turn, as eight wait for each other now and then. */
float probe_multiply(long repeats)
{
    v total = {0}, a = total + 0.5f, b = total + 0.25f;
    long r;
    MORE(START)
    for (r = 0; r < repeats; ++r) { MORE(MULTIPLY) }
    MORE(SUM)
    return total[0];
}
/* Four products of bytes in each lane, summed: sixteen vectors in each turn, for the instruction takes long.
   0 where the processor has no such instruction. */
int probe_dots(long repeats)
{
#ifdef __AVX512VNNI__
    __m512i sums[16], a = _mm512_set1_epi32(0x01020304), total = _mm512_setzero_si512();
    long r;
    int w;
    __asm__ volatile("" : "+v"(a)); /* not known to the compiler, which could compute the sums by itself */
#pragma GCC unroll 16
    for (w = 0; w < 16; ++w) sums[w] = _mm512_set1_epi32(w);
    for (r = 0; r < repeats; ++r) {
#pragma GCC unroll 16
        for (w = 0; w < 16; ++w) sums[w] = _mm512_dpbusd_epi32(sums[w], a, a);
    }
#pragma GCC unroll 16
    for (w = 0; w < 16; ++w) total = _mm512_add_epi32(total, sums[w]);
    return _mm512_reduce_add_epi32(total) | 1;
#else
    (void)repeats;
    return 0;
#endif
}
void probe_steps(int (*step)(const void *), const void *bound, long repeats)
{
    long r;
    for (r = 0; r < repeats; ++r) step(bound);
}
"""


@dataclass
class Row:
    """What was measured of one program: microseconds per call, all of them and by round."""

    runtime: str
    file: str
    threads: int
    bytes_per_step: int
    macs_per_step: int
    byte_macs_per_step: int
    calls_us: list[float] = field(default_factory=list)
    firsts_us: list[float] = field(default_factory=list)
    rounds_us: list[float] = field(default_factory=list)
    c_rounds_us: list[float] = field(default_factory=list)
    pool_rounds_us: list[float] = field(default_factory=list)
    rooflines_us: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """What scripts rely on: times in microseconds, bytes of a step, and how far it is from the roofline."""
        p50 = statistics.median(self.calls_us)
        result = {
            "runtime": self.runtime,
            "file": self.file,
            "threads": self.threads,
            "p50_us": round(p50, 3),
            "p99_us": round(float(np.percentile(self.calls_us, 99)), 3),
            "best_us": round(min(self.calls_us), 3),
            "spread": round(spread(self.rounds_us), 4),
            "bytes_per_step": self.bytes_per_step,
            "macs_per_step": self.macs_per_step,
            "byte_macs_per_step": self.byte_macs_per_step,
            "gb_per_s": round(self.bytes_per_step / p50 / 1e3, 3),
            "roofline_us": round(statistics.median(self.rooflines_us), 3),
            "roofline_ratio": round(self.ratio(self.rounds_us), 3),
            "best_roofline_ratio": round(min(self.calls_us) / min(self.rooflines_us), 3),
        }
        if self.firsts_us:
            result["first_us"] = round(statistics.median(self.firsts_us), 3)
        if self.c_rounds_us:
            result["c_p50_us"] = round(statistics.median(self.c_rounds_us), 3)
            result["c_roofline_ratio"] = round(self.ratio(self.c_rounds_us), 3)
        if self.pool_rounds_us:
            result["pool_us"] = round(statistics.median(self.pool_rounds_us), 3)
        return result

    def ratio(self, times: Sequence[float]) -> float:
        """Median over the rounds of time / roofline of the same round."""
        return statistics.median(t / limit for t, limit in zip(times, self.rooflines_us, strict=True))


def spread(values: Sequence[float]) -> float:
    """Half the distance between the quartiles, as a fraction of the median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / middle


def machine() -> dict[str, str | int | None]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if "model name" in line), platform.processor())
    return {"cpu": name, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def vector_bytes() -> int:
    """Of this processor's widest registers of numbers, at least those that every one has."""
    info = Path("/proc/cpuinfo")
    flags = info.read_bytes() if info.exists() else b""
    return 64 if b"avx512f" in flags else 32 if b"avx2" in flags else 16


class Probe:
    """What the machine can do, by a few lines of C compiled for it."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        """`threads` probe together, each its share."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise MissingDependency("measuring needs a C compiler for its read and multiply probes; install gcc")
        source, library = folder / "probe.c", folder / "probe.so"
        source.write_text(PROBE)
        self.vector_bytes = vector_bytes()
        flags = ["-march=native", "-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
        flags += ["-O3", "-ffp-contract=fast", f"-DBYTES={self.vector_bytes}", "-shared", "-fPIC"]
        done = subprocess.run([compiler, *flags, "-o", library, source], capture_output=True, text=True)
        if done.returncode:
            raise CompileError(
                f"{compiler} cannot compile the probes of the roofline; install a GCC for this machine:\n"
                f"{done.stderr.strip()[-500:]}"
            )
        self._library = ctypes.CDLL(str(library))
        self._library.probe_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long]
        self._library.probe_multiply.argtypes = [ctypes.c_long]
        self._library.probe_dots.argtypes = [ctypes.c_long]
        self._library.probe_steps.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
        self._room: dict[int, Array] = {}
        self._threads, self._pool = threads, ThreadPoolExecutor(threads) if threads > 1 else None

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _timed(self, call: Callable[[int, int], object]) -> float:
        """As `timed`, of `call(thread, repeats)` on all threads at once."""
        pool = self._pool
        if pool is None:
            return timed(lambda repeats: call(0, repeats))
        return timed(lambda repeats: list(pool.map(call, range(self._threads), [repeats] * self._threads)))

    def read_us(self, nbytes: int) -> float:
        """Microseconds to read a span of that many bytes that was read just before."""
        unit = 8 * self.vector_bytes
        share = max(1, nbytes // self._threads // unit) * unit
        whole = share * self._threads
        if whole not in self._room:
            raw = np.ones(whole + PAGE_BYTES, np.uint8)
            start = -raw.ctypes.data % PAGE_BYTES
            self._room[whole] = raw[start : start + whole]
        address = self._room[whole].ctypes.data
        return self._timed(lambda t, n: self._library.probe_read(address + t * share, share, n)) * nbytes / whole

    def multiply_us(self, count: int) -> float:
        """Microseconds for that many multiply-accumulates of float32 on registers."""
        turn = 1000 * self._threads * MULTIPLIED * self.vector_bytes // 4
        return self._timed(lambda _, n: self._library.probe_multiply(1000 * n)) * count / turn

    def dots_us(self, count: int) -> float:
        """Microseconds for that many multiply-accumulates of bytes on registers, as fast as the processor can."""
        if count == 0:
            return 0.0
        if not self._library.probe_dots(1):
            return self.multiply_us(count)
        turn = 1000 * self._threads * 16 * 64
        return self._timed(lambda _, n: self._library.probe_dots(1000 * n)) * count / turn

    def steps_us(self, step: Any, bound: Any) -> float:
        """Microseconds per call of a compiled step, called from C."""
        address = ctypes.cast(step, ctypes.c_void_p)
        return timed(lambda n: self._library.probe_steps(address, bound, n))


def timed(call: Callable[[int], object]) -> float:
    """Microseconds per repeat of `call(repeats)`: the median of short pieces, so that an interruption costs one."""
    begin = time.perf_counter()
    call(3)
    repeats = max(1, int(PIECE_SECONDS / max(1e-7, (time.perf_counter() - begin) / 3)))
    pieces = []
    for _ in range(PIECES):
        begin = time.perf_counter()
        call(repeats)
        pieces.append((time.perf_counter() - begin) / repeats * 1e6)
    return statistics.median(pieces)


def step_bytes(model: ModelFile) -> int:
    """Bytes that a step must read: every weight once (of a table that is looked up, the rows), and the states."""
    shapes = {name: kind.shape for name, kind in model.onnx.values.items()}
    constants = model.onnx.initializers
    total = inspect.state_bytes(model)
    for name, initializer in constants.items():
        readers = [node for node in model.onnx.nodes if name in node.inputs]
        if not readers:
            continue
        if all(is_lookup(node, name, constants) for node in readers):
            rows = sum(abs(int(np.prod(shapes.get(node.outputs[0], (0,))))) for node in readers)
            elements = int(np.prod(initializer.shape)) or 1
            total += min(initializer.nbytes, rows * initializer.nbytes // elements)
        else:
            total += initializer.nbytes
    return total


def is_lookup(node: Node, name: str, constants: Mapping[str, object]) -> bool:
    """Whether a node reads rows of the constant `name` by an index that is not constant."""
    return node.op_type == "Gather" and node.inputs[0] == name and node.inputs[1] not in constants


@dataclass(frozen=True)
class Candidate:
    """What takes turns: `times` steps for a while and gives the microseconds of each step.

    For callers in C, `bare` is the step and `pool` what its threads cost.
    """

    row: Row
    times: Callable[[float], list[float]]
    bare: tuple[Any, Any] | None = None
    pool: tuple[Any, Any] | None = None


def measure(
    files: Sequence[Path],
    runtimes: Sequence[str],
    threads: int = 1,
    rounds: int = 20,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
    against: Sequence[str] | Mapping[Path, Sequence[str]] = (),
    originals: Mapping[Path, Path] | None = None,
    boards: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Time every file in every runtime and peer, all of them in turn in each round; `tick` follows each round.

    `boards` names what a runtime compiles for, where there is a choice. `against` names the peers of all files, or of
    each. A peer that makes its own form of a float32 model takes the one in `originals` for a quantized file. A peer
    that cannot run a file, or computes something else, is listed under `skipped` with the reason.

    Raises:
        ModelFileError, ContractError: a file is not a model.
        MissingDependency: a runtime, a C compiler or a peer's environment is not installed.
        CompileError: the C compiler fails.
    """
    beside = against if isinstance(against, Mapping) else dict.fromkeys(files, against)
    others = list(dict.fromkeys(name for names in beside.values() for name in names))
    for name in others:
        peers.interpreter(name)
    with tempfile.TemporaryDirectory(prefix="edgemem-") as folder, ExitStack() as stack:
        probe = Probe(Path(folder), threads)
        stack.callback(probe.close)
        candidates = [candidate(file, name, threads, seed, (boards or {}).get(name)) for file in files
                      for name in runtimes]  # fmt: skip
        skipped = []
        pairs = [(file, name) for file in files for name in beside.get(file, ())]
        for index, (file, name) in enumerate(pairs):
            work = Path(folder) / str(index)
            work.mkdir()
            found = peer_candidate(file, name, threads, seed, work, stack, (originals or {}).get(file))
            candidates += [found] if isinstance(found, Candidate) else []
            skipped += [vars(found)] if isinstance(found, peers.Skipped) else []
        for each in candidates:
            each.times(ROUND_SECONDS)
        for _ in range(rounds):
            one_round(candidates, probe)
            tick()
    ordered = sorted((each.row for each in candidates), key=lambda row: [str(file) for file in files].index(row.file))
    result = {"machine": machine(), "rows": [row.to_json() for row in ordered]}
    if others:
        result |= {"skipped": skipped, "peers": {name: peers.versions(name) for name in others}}
    return result


def one_round(candidates: Sequence[Candidate], probe: Probe) -> None:
    """Time every candidate once, beside the roofline of this moment; all of it goes into their rows."""
    limits = {each.row.file: roofline_us(probe, each.row) for each in candidates}
    for each in candidates:
        row = each.row
        row.firsts_us.append(each.times(WARM_SECONDS if row.threads == 1 else SECOND_CORE_SECONDS)[0])
        times = each.times(ROUND_SECONDS)
        row.calls_us += times
        row.rounds_us.append(statistics.median(times))
        row.rooflines_us.append(limits[row.file])
        if each.bare is not None:
            row.c_rounds_us.append(probe.steps_us(*each.bare))
        if each.pool is not None:
            row.pool_rounds_us.append(probe.steps_us(*each.pool))


def roofline_us(probe: Probe, row: Row) -> float:
    products_us = probe.multiply_us(row.macs_per_step - row.byte_macs_per_step) + probe.dots_us(row.byte_macs_per_step)
    return max(probe.read_us(row.bytes_per_step), products_us)


def new_row(runtime: str, path: Path, threads: int, model: ModelFile) -> Row:
    work = inspect.macs_per_step(model), inspect.byte_macs_per_step(model)
    return Row(runtime, str(path), threads, step_bytes(model), *work)


def stepping(call: Callable[[], object]) -> Callable[[float], list[float]]:
    """Single calls for some seconds, each timed in microseconds."""

    def times_us(seconds: float) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e6)
        return times

    return times_us


def candidate(path: Path, runtime: str, threads: int, seed: int, board: str | None = None) -> Candidate:
    """`stream.step` on some random chunks, one after another, and the bare step if there is one."""
    model = open_model(path)
    program = load(path, runtime=runtime, threads=threads, **({} if board is None else {"board": board}))
    row = new_row(runtime, path, threads, model)
    stream = program.stream()
    chunks = list(steps_of(program, seed))
    turn = 0

    def call() -> object:
        nonlocal turn
        turn = (turn + 1) % INPUTS
        return stream.step(chunks[turn])

    bare, pool = (getattr(program, name, lambda: None)() for name in ("bare_step", "pool"))
    return Candidate(row, stepping(call), bare, pool)


def peer_candidate(
    path: Path, name: str, threads: int, seed: int, work: Path, stack: ExitStack, original: Path | None = None
) -> Candidate | peers.Skipped:
    """Another engine on the same chunks; `stack` ends it."""
    model = open_model(path)
    rng = np.random.default_rng(seed)
    drawn = [random_inputs(model.contract, rng) for _ in range(INPUTS)]
    chunks = {port.name: np.stack([chunk[port.name] for chunk in drawn]) for port in model.contract.inputs}
    if model.contract.valid_input is not None:
        chunks[model.contract.valid_input.name][...] = model.contract.chunk.frames
    peer = peers.started(name, model, chunks, threads, work, None if original is None else open_model(original))
    if isinstance(peer, peers.Skipped):
        return peer
    stack.callback(peer.close)
    return Candidate(new_row(name, path, threads, model), peer.round)


def steps_of(program: Program, seed: int) -> list[Any]:
    """Random chunks as `stream.step` takes them."""
    rng = np.random.default_rng(seed)
    ports = [port.name for port in program.contract.inputs if port.role != "valid"]
    chunks = [{name: value for name, value in random_inputs(program.contract, rng).items() if name in ports}
              for _ in range(INPUTS)]  # fmt: skip
    return chunks if len(ports) > 1 else [chunk[ports[0]] for chunk in chunks]
