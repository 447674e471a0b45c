"""Programs of other boards under their emulators, and `edgemem-run`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.errors import InputError, MissingDependency, ModelFileError, StreamError
from edgemem.trial import poisoned, trial
from tests.aot_programs import compiled, model_file, needs

CASES = (
    ("rpi4", "kws-lmuformer"),
    ("stm32mp157d_dk1", "rwkv4"),
    ("rpi_zero2w_32", "kws-lmuformer"),
    ("visionfive2", "kws-lmuformer"),
    ("bpi_f3", "rwkv4"),
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rwkv4.onnx`, `kws-lmuformer.onnx`, and `host`: the first compiled for this machine."""
    folder = tmp_path_factory.mktemp("boards")
    model_file("kws-lmuformer", folder)
    compiled(model_file("rwkv4", folder), folder / "host")
    return folder


@pytest.mark.parametrize(("name", "model"), CASES)
def test_an_emulated_board_computes_what_the_host_does(files: Path, tmp_path: Path, name: str, model: str) -> None:
    needs(name)
    compiled(files / f"{model}.onnx", tmp_path / "p", name)
    program = edgemem.load(tmp_path / "p")
    assert program.runtime == f"aot on {name}"
    found = trial(edgemem.load(files / f"{model}.onnx"), program, 200)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 4):
        assert fresh.tobytes() == reset.tobytes(), tensor


def test_state_goes_on_on_a_board(files: Path, tmp_path: Path) -> None:
    """A snapshot of this machine is resumed by the emulated board, which refuses what the contract forbids."""
    needs("rpi4")
    compiled(files / "rwkv4.onnx", tmp_path / "p", "rpi4")
    here, there = edgemem.load(files / "host").stream(), edgemem.load(tmp_path / "p").stream()
    for token in (1, 7, 3, 10):
        here.step(np.array([[token]]))
    there.restore(here.snapshot())
    np.testing.assert_allclose(there.step(np.array([[5]])), here.step(np.array([[5]])), rtol=1e-4, atol=1e-5)
    program = edgemem.load(tmp_path / "p")
    with pytest.raises(InputError, match="outside its range"):
        program.step({"tokens": np.array([[11]])}, program.new_state())


USER = """\
#include <model.h>
#include <stdio.h>
_Alignas(MODEL_ALIGNMENT) static unsigned char state[MODEL_STATE_BYTES], arena[MODEL_ARENA_BYTES];
int main(void)
{
    static float logits[11];
    const int64_t token = 3;
    const model_inputs inputs = {&token};
    const model_outputs outputs = {logits};
    if (model_check() != MODEL_OK || model_reset(state, sizeof state) != MODEL_OK) return 1;
    if (model_step(&inputs, &outputs, state, sizeof state, arena, sizeof arena) != MODEL_OK) return 2;
    return fwrite(logits, sizeof logits, 1, stdout) != 1;
}
"""
CMAKE = """\
cmake_minimum_required(VERSION 3.16)
project(user C)
find_package(model REQUIRED)
foreach(kind model model_shared)
  add_executable(with_${kind} user.c)
  target_link_libraries(with_${kind} PRIVATE edgemem::${kind})
endforeach()
"""


def test_other_builds_find_the_program(files: Path, tmp_path: Path) -> None:
    """pkg-config and CMake, from a folder that was moved; both give the first step's logits."""
    moved = tmp_path / "moved"
    shutil.copytree(files / "host", moved)
    (tmp_path / "user.c").write_text(USER)
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    wanted = edgemem.load(files / "host").stream().step(np.array([[3]])).tobytes()
    tools = [tool for tool in ("pkg-config", "cmake") if shutil.which(tool)]
    if not tools:
        pytest.skip("neither pkg-config nor cmake is installed")
    if "pkg-config" in tools:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "model"], env={"PKG_CONFIG_PATH": str(moved), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        subprocess.run(["gcc", "-std=c11", "-o", tmp_path / "user", tmp_path / "user.c", *flags], check=True)
        assert subprocess.run([tmp_path / "user"], capture_output=True, check=True).stdout == wanted
    if "cmake" in tools:
        made = tmp_path / "made"
        for command in (["cmake", "-S", tmp_path, "-B", made, f"-Dmodel_DIR={moved}"], ["cmake", "--build", made]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
        for program in ("with_model", "with_model_shared"):
            assert subprocess.run([made / program], capture_output=True, check=True).stdout == wanted


def test_edgemem_run_streams_standard_input(files: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 11, 25)
    command = [files / "host" / "edgemem-run"]
    done = subprocess.run(command, input=tokens.astype("<i8").tobytes(), capture_output=True, check=True)
    stream = edgemem.load(files / "host").stream()
    wanted = np.concatenate([stream.step(np.array([[token]])).ravel() for token in tokens])
    assert done.stdout == wanted.astype("<f4").tobytes()


def test_edgemem_run_says_what_is_wrong(files: Path) -> None:
    command = [files / "host" / "edgemem-run"]
    cut = subprocess.run(command, input=b"\1\0\0\0\0\0\0\0\2", capture_output=True)
    assert cut.returncode == 2 and b"in the middle of a chunk" in cut.stderr
    outside = subprocess.run(command, input=b"\x7f" + bytes(7), capture_output=True)
    assert outside.returncode == 1 and b"error 5" in outside.stderr
    assert subprocess.run([*command, "--what"], input=b"", capture_output=True).returncode == 2


def test_a_board_without_its_emulator_is_named(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "host", tmp_path / "p")
    path = tmp_path / "p" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["board"] |= {"name": "far", "core": "cortex-a72", "emulator": ["no-such-emulator"]}
    path.write_text(json.dumps(manifest))
    with pytest.raises(MissingDependency, match="compiled for far: no-such-emulator is not installed"):
        edgemem.load(tmp_path / "p")
    manifest["board"]["emulator"] = []
    path.write_text(json.dumps(manifest))
    with pytest.raises(MissingDependency, match="it has no emulator"):
        edgemem.load(tmp_path / "p")
    (tmp_path / "p" / "edgemem-run").write_bytes(b"")
    with pytest.raises(ModelFileError, match="edgemem-run is not the file of its manifest"):
        edgemem.load(tmp_path / "p")


def test_a_board_program_that_dies_is_reported(files: Path, tmp_path: Path) -> None:
    from edgemem.runtimes.aot.remote import RemoteState

    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho out of luck >&2\nexit 7\n")
    dying.chmod(0o755)
    with pytest.raises(StreamError, match="ended with code 7: out of luck"):
        RemoteState([str(dying)], edgemem.load(files / "host").contract)


def test_verify_names_the_boards(files: Path) -> None:
    from edgemem.cli.main import cli

    needs("rpi4")
    command = ["verify", str(files / "rwkv4.onnx"), "--runtime", "aot", "--board", "rpi4", "--steps", "200", "--json"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    stages = {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert {"aot", "aot reset", "rpi4", "rpi4 reset"} <= set(stages) and stages["rpi4"]["steps"] == 200
