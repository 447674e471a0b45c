"""`edgemem bench`: the time of a step, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgemem.cli.options import json_option, print_json, progress_bar, stdout, table


@click.command("bench")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--runtime", "runtimes", multiple=True, default=("ort",), show_default=True, help="What to time.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Cores that a step may use.")
@click.option("--against", metavar="PEERS", help="Other engines: onnxruntime,openvino,litert.")
@click.option(
    "--install-peers", is_flag=True, help="First install those that are missing, each in its own environment."
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="Turns that each one takes.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the inputs.")
@json_option
def command(
    files: tuple[Path, ...],
    runtimes: tuple[str, ...],
    threads: int,
    against: str | None,
    install_peers: bool,
    rounds: int,
    seed: int,
    as_json: bool,
) -> None:
    """Time one step of each of FILES in each runtime, in turns, beside what the machine could do at best.

    \b
    edgemem bench r.onnx --runtime ort --runtime aot
    edgemem bench r.onnx k.onnx --runtime aot --json
    edgemem bench r.onnx --runtime aot --against onnxruntime,openvino,litert
    """
    from edgemem import peers
    from edgemem.measure import measure

    others = [name for name in (against or "").split(",") if name]
    if install_peers:
        with progress_bar() as progress:
            for name in progress.track(others, description="installing"):
                peers.install(name)
    with progress_bar() as progress:
        task = progress.add_task("timing", total=rounds)
        found = measure(files, runtimes, threads, rounds, seed, lambda: progress.advance(task), others)
    if as_json:
        print_json(found)
    else:
        show(found)


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
    console.print(table(heads, rows, title=f"{found['machine']['cpu']}, {found['machine']['cores']} cores"))
    for peer in found.get("skipped", []):
        console.print(f"{peer['runtime']} does not run {Path(peer['file']).name}: {peer['reason']}", highlight=False)
