"""`edgemem bench`: the time of a step, side by side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from edgemem.cli.options import json_option, print_json, progress_bar, stderr, stdout, table
from edgemem.errors import UsageError

HOST = "host"


@click.command("bench")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--runtime", "runtimes", multiple=True, default=("ort",), show_default=True, help="What to time.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Cores that a step may use.")
@click.option(
    "--against",
    metavar="PEERS",
    help="Other engines: onnxruntime,openvino,litert; with -int8, -int4: as they quantize.",
)
@click.option(
    "--original", type=click.Path(path_type=Path), help="The float32 model that they quantize, of a quantized file."
)
@click.option(
    "--install-peers", is_flag=True, help="First install those that are missing, each in its own environment."
)
@click.option("--rpc", metavar="HOST:PORT", help="Measure on a board where TVM's RPC server runs; with --board.")
@click.option(
    "--board", "board_name", metavar="BOARD", help="What runs at --rpc, an emulated microcontroller, or a GPU's board."
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Turns that each one takes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the inputs.")
@json_option
def command(
    files: tuple[Path, ...],
    runtimes: tuple[str, ...],
    threads: int,
    against: str | None,
    original: Path | None,
    install_peers: bool,
    rpc: str | None,
    board_name: str | None,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    """Time one step of each of FILES in each runtime, in turns, beside what the machine could do at best.

    \b
    edgemem bench r.onnx --runtime ort --runtime aot
    edgemem bench r.onnx k.onnx --runtime aot --json
    edgemem bench r.onnx --runtime aot --against onnxruntime,openvino,litert
    edgemem bench r8.onnx --runtime aot --against onnxruntime-int8,openvino-int8 --original r.onnx
    edgemem bench r.onnx --board rpi4 --rpc rpi4.local:9090
    edgemem bench r.onnx --runtime aot --runtime opencl --board pocl
    edgemem bench k8.onnx --board mps2_an386 --json     instructions of an emulated microcontroller, kernel by kernel

    p50 and p99 are what half and 99 of 100 steps stay below; spread is half the distance between the quartiles of the
    turns, beside their median. From C: the step called without Python. GB/s: the bytes of a step over p50. × roofline:
    p50 over the least time in which this machine's processor could read those bytes and do the multiplications.
    """
    if board_name and not rpc and is_bare(board_name):
        on_emulator(files, board_name, as_json)
        return
    boards = {} if rpc or board_name is None else boards_of_runtimes(board_name, runtimes)
    if rpc or (board_name and not boards):
        on_board(files, board_name, rpc, rounds, as_json)
        return
    runtimes = tuple(dict.fromkeys((*runtimes, *(name for name in boards if name != "tvm" or board_name != HOST))))
    from edgemem import peers
    from edgemem.measure import measure

    others = [name for name in (against or "").split(",") if name]
    if install_peers:
        with progress_bar() as progress:
            for name in progress.track(others, description="installing"):
                peers.install(name)
    originals = {} if original is None else dict.fromkeys(files, original)
    with progress_bar() as progress:
        task = progress.add_task("timing", total=rounds)
        found = measure(files, runtimes, threads, rounds, seed, lambda: progress.advance(task), others, originals,
                        boards)  # fmt: skip
    print_json(found) if as_json else show(found)


def boards_of_runtimes(board_name: str, runtimes: tuple[str, ...]) -> dict[str, str]:
    """The board of each runtime that takes one here: a GPU's, or this machine's processor for `tvm`."""
    from edgemem.boards import board

    described = board(board_name)
    if described.gpu is not None:
        return {described.runtime: board_name}
    return {"tvm": board_name} if board_name == HOST and "tvm" in runtimes else {}


def is_bare(board_name: str) -> bool:
    from edgemem.boards import board

    return board(board_name).kind == "bare"


def on_emulator(files: tuple[Path, ...], board_name: str, as_json: bool) -> None:
    """Instructions of a step on an emulated microcontroller."""
    from edgemem.boards import board
    from edgemem.runtimes.firmware.counts import bench

    with stderr().status(f"counting on {board_name}"):
        found = bench(files, board(board_name))
    if as_json:
        print_json(found)
        return
    rows = []
    for row in found["rows"]:
        rows.append((Path(row["file"]).name, "step", f"{row['instructions_per_step']:,.0f}"))
        kinds = Counter[str]()
        for kernel in row["kernels"]:
            kinds[kernel["primfunc"]] += kernel["instructions"]
        rows += [("", kind, f"{count:,.0f}") for kind, count in kinds.most_common()]
    stdout().print(table(("file", "kernel", "instructions"), rows, title=board_name))


def on_board(files: tuple[Path, ...], board_name: str | None, rpc: str | None, rounds: int, as_json: bool) -> None:
    """The same of a board, over the network."""
    if not rpc or not board_name:
        raise UsageError(
            "a board is measured where its RPC server runs: give both --board BOARD and --rpc HOST:PORT; without "
            "--rpc, --board names an emulated microcontroller, the board of a GPU, or host with --runtime tvm"
        )
    from edgemem.boards import board
    from edgemem.runtimes.aot.rpc import measure_on_board

    with progress_bar() as progress:
        task = progress.add_task("timing", total=rounds)
        found = measure_on_board(files, board(board_name), rpc, rounds, lambda: progress.advance(task))
    print_json(found) if as_json else show(found)


def show(found: dict[str, Any]) -> None:
    """The rows as a table."""
    rows = [
        (
            Path(row["file"]).name,
            row["runtime"],
            f"{row['p50_us']:.1f}",
            f"{row['p99_us']:.1f}",
            f"{row['spread']:.1%}",
            f"{row['c_p50_us']:.1f}" if "c_p50_us" in row else "–",
            f"{row['gb_per_s']:.1f}",
            f"{row['roofline_ratio']:.2f}" + (f" ({row['c_roofline_ratio']:.2f} from C)" if "c_p50_us" in row else ""),
        )
        for row in found["rows"]
    ]
    heads = ("file", "runtime", "p50 µs", "p99 µs", "spread", "from C µs", "GB/s", "× roofline")
    console = stdout()
    machine = found["machine"]
    where = (
        f"{machine['cpu']}, {machine['cores']} cores" if "cpu" in machine else f"{machine['board']}, {machine['rpc']}"
    )
    console.print(table(heads, rows, title=where))
    for row in found["rows"]:
        if "pool_us" in row:
            console.print(
                f"{Path(row['file']).name}: {row['threads']} threads cost {row['pool_us']:.1f} µs of a step",
                highlight=False,
            )
    for peer in found.get("skipped", []):
        console.print(f"{peer['runtime']} does not run {Path(peer['file']).name}: {peer['reason']}", highlight=False)
