"""What a user of a compiled folder meets: its C build files, `edgemem-run`, names and places that cannot be."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.boards import board
from edgemem.cli.main import cli
from edgemem.errors import CheckFailed, MissingDependency, ModelFileError, UsageError
from edgemem.runtimes.aot.compiler import compile_model
from edgemem.runtimes.aot.emit_calls import identifier, prefix
from edgemem.runtimes.aot.toolchain import toolchain
from tests.aot_programs import model_file

TINY = (
    'name = "tiny"\ntitle = "t"\nkind = "linux"\ncore = "native"\ncompiler = "gcc"\nruntime = "aot"\nram_bytes = 4096\n'
)


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`m.onnx`, a small spotter, compiled into `program` by the command line, with its picture."""
    folder = tmp_path_factory.mktemp("a host")  # with a space
    model_file("kws-lmuformer", folder).rename(folder / "m.onnx")
    command = ["compile", str(folder / "m.onnx"), "-o", str(folder / "program"), "--name", "Model", "--report"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "memory.svg" in done.stderr.replace("\n", "")
    return folder


HEARS = """\
#include <model.h>
#include <model_frontend.h>
int main(void)
{
    static float room[MODEL_FRONTEND_FLOATS], row[MODEL_FRONTEND_WIDTH];
    static const int16_t silence[4 * 16000];
    const int16_t *samples = silence;
    size_t count = sizeof silence / sizeof *silence;
    edgemem_frontend_stream sound;
    edgemem_frontend_reset(&model_frontend, &sound, room);
    return model_check() == MODEL_OK && edgemem_frontend_push(&model_frontend, &sound, &samples, &count, row) ? 0 : 1;
}
"""


def test_pkg_config_has_the_front_end_and_bears_spaces(spotter: Path, tmp_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    said = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "model"], capture_output=True, text=True, check=True,
        env={"PKG_CONFIG_PATH": str(spotter / "program"), "PATH": "/usr/bin:/bin"},
    ).stdout  # fmt: skip
    (tmp_path / "hears.c").write_text(HEARS)
    command = ["gcc", "-std=c11", "-o", "hears", "hears.c", *shlex.split(said)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert subprocess.run([tmp_path / "hears"]).returncode == 0


def test_edgemem_run_explains_itself(spotter: Path) -> None:
    command = spotter / "program" / "edgemem-run"
    helped = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and not helped.stderr
    output = edgemem.load(spotter / "m.onnx").contract.outputs[0]
    for word in ("--features", "--serve", "16-bit", "raw", f"{output.name} {output.dtype} {list(output.shape)}"):
        assert word in helped.stdout
    wrong = subprocess.run([command, "--nothing"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", helped.stdout)
    served = subprocess.run([command, "--serve"], input=b"\x01\x00" * 99, capture_output=True)
    assert served.returncode == 2 and b"one of the commands S G P R, byte 1 came" in served.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("flags", [[], ["--features"]])
def test_edgemem_run_says_when_it_cannot_write(spotter: Path, flags: list[str]) -> None:
    inputs = edgemem.load(spotter / "m.onnx").contract.inputs
    bytes_in = sum(int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize for p in inputs)
    given = bytes(2 * 16000) if not flags else bytes(bytes_in)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [spotter / "program" / "edgemem-run", *flags], input=given, stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1 and done.stderr == b"model: standard output cannot be written\n"


def test_the_picture_names_the_kernel_of_every_tensor(spotter: Path) -> None:
    manifest = json.loads((spotter / "program" / "manifest.json").read_text())
    titles = re.findall("<title>(.*)</title>", (spotter / "program" / "memory.svg").read_text())
    assert len(titles) == len(manifest["arena"])
    for row, title in zip(manifest["arena"], titles, strict=True):
        if row["first"] < 0:
            assert title.startswith("input, ") and manifest["calls"][row["last"]]["symbol"] in title
            continue
        call = manifest["calls"][row["first"]]
        assert f"call {row['first']}, {call['symbol']}" in title
        assert row["kind"] != "tensor" or all("×".join(map(str, shape)) in title for shape in call["result"])
    assert any(title.startswith("input, ") for title in titles) and any("last read by" in title for title in titles)


@pytest.mark.parametrize("name", ["a b", "9 lives", "", "naïve", "-x", "_hidden"])
def test_a_name_that_no_c_function_has_is_refused_at_once(spotter: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--name {name!r} begins the names of C functions: a letter"):
        compile_model(spotter / "m.onnx", board("host"), tmp_path / "p", name=name)
    assert not list(tmp_path.iterdir())


def test_names_of_models_and_ports_become_c() -> None:
    assert [prefix(name) for name in ("9 lives", "Kws-Tiny", "_x", "")] == ["m9_lives", "kws_tiny", "m_x", "m"]
    assert [identifier(name) for name in ("1", "input.1", "float", "logits")] == ["_1", "input_1", "_float", "logits"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("command", ["compile", "quantize"])
def test_a_place_that_takes_no_files_is_named_as_it_was_given(spotter: Path, command: str) -> None:
    done = CliRunner().invoke(cli, [command, str(spotter / "m.onnx"), "-o", "/proc/x"])
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith("/proc/x cannot be written: /proc ")


def test_a_board_that_is_not_there_is_refused_before_the_compiler_is_loaded(spotter: Path) -> None:
    seen = (
        "import sys; from click.testing import CliRunner; from edgemem.cli.main import cli\n"
        f"done = CliRunner().invoke(cli, ['compile', {str(spotter / 'm.onnx')!r}, '-o', 'x', '--board', 'nope'])\n"
        "assert \"no board 'nope'\" in str(done.exception), done.output\n"
        "assert not {'tvm', 'onnx', 'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", seen], check=True)


def test_the_host_compiler_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"this machine needs gcc, .*apt-get install gcc") as missing:
        toolchain(board("host"))
    assert "make boards" not in str(missing.value)


def test_a_folder_of_another_board_or_runtime_is_refused(spotter: Path, tmp_path: Path) -> None:
    folder = spotter / "program"
    assert edgemem.load(folder, board="host").runtime == "aot"
    with pytest.raises(UsageError, match="was compiled for the board host, --board rpi4 came; leave --board out"):
        edgemem.load(folder, board="rpi4")
    done = CliRunner().invoke(cli, ["run", str(folder), "--board", "mps2_an386", "--input", "-"])
    assert "was compiled for the board host, --board mps2_an386 came" in str(done.exception)
    other = tmp_path / "p"
    other.mkdir()
    manifest = json.loads((folder / "manifest.json").read_text()) | {"runtime": "opencl"}
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="holds a program of the opencl runtime, not of aot"):
        edgemem.load(other, runtime="aot")


def test_verify_knows_all_boards_before_it_builds_one(spotter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def built(*arguments: object) -> None:
        raise AssertionError("a board was built")

    monkeypatch.setattr("edgemem.cli.verify.on_boards", built)
    done = CliRunner().invoke(cli, ["verify", str(spotter / "m.onnx"), "--board", "host", "--board", "nope"])
    assert "no board 'nope'" in str(done.exception)


def test_a_board_that_is_too_small_leaves_the_others_their_results(spotter: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ["verify", str(spotter / "m.onnx"), "--board", str(tmp_path / "tiny.toml"), "--board", "host"]
    done = CliRunner().invoke(cli, [*command, "--steps", "20", "--json"])
    assert isinstance(done.exception, CheckFailed) and "does not fit tiny" in str(done.exception)
    report = json.loads(done.stdout)
    stages = {stage["name"]: stage for stage in report["stages"]}
    small = stages.pop(str(tmp_path / "tiny.toml"))
    assert not report["ok"] and not small["holds"]
    assert "does not fit tiny" in small["refused"]
    assert {"weights", "torch", "ort", "host", "host reset"} <= set(stages)
    assert all(stage["holds"] for stage in stages.values())
