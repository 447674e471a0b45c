"""What `edgemem bench` counts and reports; no test here depends on how fast the machine is."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edgemem import measure
from edgemem.errors import CompileError
from edgemem.modelfile import open_model
from tests.aot_programs import model_file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file("rwkv4", tmp_path_factory.mktemp("bench"))


def test_threads_of_a_probe_share_what_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, spans = measure.Probe(tmp_path, threads=2), []

    class Recorder:
        def probe_read(self, address: int, size: int, repeats: int) -> None:
            spans.append((address, size))

    monkeypatch.setattr(probe, "_library", Recorder())
    monkeypatch.setattr(measure, "timed", lambda call: [call(1), 8.0][1])
    unit = 8 * probe.vector_bytes
    assert probe.read_us(2 * 1000 * unit) == 8.0
    probe.close()
    (first, size), (second, other) = sorted(spans)
    assert size == other == 1000 * unit and second == first + size


def test_a_step_reads_every_weight_once_but_of_a_table_only_its_row(file: Path) -> None:
    model = open_model(file)
    vocab, width = 11, 8
    table = vocab * width * 4
    used = sum(
        initializer.nbytes
        for name, initializer in model.onnx.initializers.items()
        if any(name in node.inputs for node in model.onnx.nodes)
    )
    states = sum(int(np.prod(state.shape)) * 4 for state in model.contract.states)
    assert measure.step_bytes(model) == used - table + width * 4 + states


def test_rows_have_what_scripts_rely_on(file: Path) -> None:
    from edgemem.cli.main import cli

    command = ["bench", str(file), "--runtime", "ort", "--runtime", "aot", "--rounds", "3", "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"]["cores"] >= 1
    assert [row["runtime"] for row in found["rows"]] == ["ort", "aot"]
    for row in found["rows"]:
        assert row["file"] == str(file) and row["threads"] == 1
        assert 0 < row["p50_us"] <= row["p99_us"] and row["spread"] >= 0 and row["roofline_us"] > 0
        assert row["gb_per_s"] == pytest.approx(row["bytes_per_step"] / row["p50_us"] / 1e3, rel=0.01, abs=0.001)
        assert ("c_p50_us" in row) == (row["runtime"] == "aot")


def test_the_roofline_is_the_tighter_of_two_limits() -> None:
    class Fixed:
        def read_us(self, nbytes: int) -> float:
            return nbytes / 100

        def multiply_us(self, count: int) -> float:
            return count / 10

        def dots_us(self, count: int) -> float:
            return count / 40

    row = measure.Row("aot", "f", 1, bytes_per_step=1000, macs_per_step=50, byte_macs_per_step=20)
    assert measure.roofline_us(Fixed(), row) == 10.0  # type: ignore[arg-type]
    row.macs_per_step = 500
    assert measure.roofline_us(Fixed(), row) == 48.0 + 0.5  # type: ignore[arg-type]
    row.rooflines_us, row.rounds_us, row.calls_us = [2.0, 4.0, 1.0], [4.0, 12.0, 2.0], [3.0, 5.0, 9.0]
    assert row.to_json()["roofline_ratio"] == statistics.median([2.0, 3.0, 2.0])
    assert row.to_json()["p50_us"] == 5.0


def test_what_others_left_in_the_caches_does_not_count() -> None:
    """Of a turn the steps of its first while are dropped, but for the first of all, which is shown as such."""

    class Fixed:
        def read_us(self, nbytes: int) -> float:
            return 4.0

        def multiply_us(self, count: int) -> float:
            return 0.0

        def dots_us(self, count: int) -> float:
            return 0.0

    asked: list[float] = []

    def times(seconds: float) -> list[float]:
        asked.append(seconds)
        return [90.0, 70.0, 8.0] if len(asked) % 2 else [8.0, 9.0, 8.0]

    row = measure.Row("aot", "f", 1, bytes_per_step=1000, macs_per_step=50, byte_macs_per_step=20)
    for _ in range(2):
        measure.one_round([measure.Candidate(row, times)], Fixed())  # type: ignore[arg-type]
    assert asked == [measure.WARM_SECONDS, measure.ROUND_SECONDS] * 2
    found = row.to_json()
    assert (found["first_us"], found["p50_us"], found["roofline_ratio"]) == (90.0, 8.0, 2.0)
    assert max(row.calls_us) == 9.0
    row.threads = 2
    measure.one_round([measure.Candidate(row, times)], Fixed())  # type: ignore[arg-type]
    assert asked[-2:] == [measure.SECOND_CORE_SECONDS, measure.ROUND_SECONDS]


@pytest.mark.parametrize("bytes_at_once", [True, False])
def test_the_probe_reads_and_multiplies_as_much_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_at_once: bool
) -> None:
    """Every repeat takes 8 us here; twelve chains of registers turn 1000 times in it. The C runs, and is recorded."""
    probe, calls = measure.Probe(tmp_path), []
    compiled = probe._library

    class Recorder:
        def probe_read(self, address: int, size: int, repeats: int) -> None:
            calls.append(("read", size * repeats))
            compiled.probe_read(address, size, repeats)

        def probe_multiply(self, turns: int) -> None:
            calls.append(("multiply", turns))
            compiled.probe_multiply(turns)

        def probe_dots(self, turns: int) -> bool:
            calls.append(("dots", turns))
            compiled.probe_dots(turns)
            return bytes_at_once

    monkeypatch.setattr(probe, "_library", Recorder())
    monkeypatch.setattr(measure, "timed", lambda call: [call(3), 8.0][1])
    for size in (1 << 12, 1 << 22):
        assert probe.read_us(size) == 8.0 and calls.pop() == ("read", 3 * size)
    floats = 12 * probe.vector_bytes // 4  # that a turn multiplies
    assert probe.multiply_us(5000 * floats) == 40.0 and calls.pop() == ("multiply", 3000)
    assert probe.dots_us(0) == 0 and not calls
    if bytes_at_once:
        assert probe.dots_us(5000 * 16 * 64) == 40.0 and calls == [("dots", 1), ("dots", 3000)]
    else:  # a processor that multiplies bytes no faster
        assert probe.dots_us(5000 * floats) == 40.0 and calls == [("dots", 1), ("multiply", 3000)]


def test_a_probe_that_does_not_compile_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PROBE", "no C")
    with pytest.raises(CompileError, match=r"(?s)cannot compile the probes.*error"):
        measure.Probe(tmp_path)


def test_finite_agrees_with_numpy() -> None:
    from edgemem.inputs import finite

    for values in ([1, 2], [np.nan, 1], [np.inf], [-np.inf, 0], [3e38, 3e38], []):
        array = np.array(values, np.float32)
        assert finite(array) == bool(np.isfinite(array).all())
        assert finite(array.reshape(1, -1)[:, ::-1]) == bool(np.isfinite(array).all())


def test_the_multiply_probe_keeps_eight_chains(tmp_path: Path) -> None:
    """Chains that start alike would be one to a compiler: the processor would look faster than it is."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed")
    measure.Probe(tmp_path)
    command = ["objdump", "-d", "--no-show-raw-insn", tmp_path / "probe.so"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    body = text[text.index("<probe_multiply>:") :].partition("\n\n")[0]
    assert len(re.findall(r"\s(v?f\w*madd\w*|v?mulps|fml[as]|vml[as]\S*|fmul)\s", body)) >= 8
