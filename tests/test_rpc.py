"""Measuring through TVM's own RPC server, here one of this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgemem.cli.main import cli
from edgemem.errors import EdgememError, UsageError
from tests.aot_programs import model_file

SERVER_SECONDS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """HOST:PORT of TVM's RPC server, running."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ports = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    process = subprocess.Popen([sys.executable, "-m", "tvm.exec.rpc_server", *ports])
    try:
        end = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert process.poll() is None and time.monotonic() < end, "TVM's RPC server did not start"
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(SERVER_SECONDS)


def test_a_board_is_measured_through_rpc(server: str, tmp_path: Path) -> None:
    """Files with index inputs and with floating-point ones, each in every round."""
    files = [str(model_file(name, tmp_path)) for name in ("rwkv4", "lmu")]
    done = CliRunner().invoke(cli, ["bench", *files, "--board", "host", "--rpc", server, "--rounds", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"] == {"board": "host", "rpc": server}
    assert [(row["runtime"], row["file"]) for row in found["rows"]] == [("aot on host", file) for file in files]
    for row in found["rows"]:
        assert 0 < row["p50_us"] <= row["p99_us"] and row["gb_per_s"] > 0 and row["roofline_ratio"] > 0


def test_addresses_where_nothing_answers(tmp_path: Path) -> None:
    from edgemem.boards import board
    from edgemem.runtimes.aot.rpc import measure_on_board

    with pytest.raises(UsageError, match="--rpc wants HOST:PORT, got 'here'"):
        measure_on_board([tmp_path / "m.onnx"], board("host"), "here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(EdgememError, match=r"no RPC server at 127\.0\.0\.1:\d+ \(.*refused.*tvm\.exec\.rpc_server"):
            measure_on_board([tmp_path / "m.onnx"], board("host"), f"127.0.0.1:{free.getsockname()[1]}")
    (tmp_path / "m.onnx").touch()
    alone = CliRunner().invoke(cli, ["bench", str(tmp_path / "m.onnx"), "--rpc", "h:1"])
    assert isinstance(alone.exception, UsageError) and "give both --board BOARD and --rpc" in str(alone.exception)
