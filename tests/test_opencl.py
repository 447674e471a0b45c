"""The opencl runtime on PoCL: programs, streams, snapshots, the host program in C, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.boards import board
from edgemem.cli.main import cli
from edgemem.errors import ConfigError, DeviceError, InputError, ModelFileError, UsageError
from edgemem.quant import quantize
from edgemem.trial import poisoned, random_inputs, trial
from tests.aot_programs import model_file
from tests.gpus import needs_pocl

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
pytest.importorskip("pyopencl", reason="pyopencl is not installed: pip install 'edgemem[opencl]'")

FAMILIES = ("rwkv4", "kws-lmuformer", "memformer", "folding")
SCHEMES = {"f16": "f16", "w8": "w8", "w4g32": "w4", "vq:dim=4,codes=16": "vq"}  # and the kernel of every product


pytestmark = needs_pocl


def compiled(path: Path, folder: Path) -> Path:
    """A model file as a folder for PoCL, by the command."""
    result = CliRunner().invoke(cli, ["compile", str(path), "--board", "pocl", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`rwkv4.onnx`, and `rwkv4` as its program."""
    folder = tmp_path_factory.mktemp("opencl")
    compiled(model_file("rwkv4", folder), folder / "rwkv4")
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_families_compute_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    path = model_file(name, tmp_path)
    program = edgemem.load(path, runtime="opencl", board="pocl")
    found = trial(edgemem.load(path), program, 24)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 3):
        assert fresh.tobytes() == reset.tobytes(), tensor


@pytest.mark.parametrize("scheme", SCHEMES)
def test_narrow_weights_are_widened_in_the_kernel(scheme: str, files: Path, tmp_path: Path) -> None:
    quantize(files / "rwkv4.onnx", tmp_path / "q.onnx", scheme, smallest=32)
    program = edgemem.load(compiled(tmp_path / "q.onnx", tmp_path / "p"))
    found = trial(edgemem.load(tmp_path / "q.onnx"), program, 16)
    assert found.holds, found.first_divergence
    products = json.loads((tmp_path / "p" / "manifest.json").read_text())["products"]
    assert {product["kernel"] for product in products} == {SCHEMES[scheme]}


def test_products_of_bytes_start_where_onnxruntime_does(files: Path, tmp_path: Path) -> None:
    """Of activations that are rounded, the command allows one step of int8, from equal states."""
    path = tmp_path / "q.onnx"
    quantize(files / "rwkv4.onnx", path, "w8a8-dynamic", smallest=32)
    wanted = ["verify", str(path), "--reference", str(files / "rwkv4.onnx"), "--runtime", "opencl"]
    result = CliRunner().invoke(cli, [*wanted, "--board", "pocl", "--steps", "12", "--json"])
    report = json.loads(result.output)
    assert report["ok"] and [s["name"] for s in report["stages"]][-2:] == ["pocl", "pocl reset"]


def test_a_stream_goes_on_in_another_runtime(files: Path) -> None:
    tokens = np.array([[3], [1], [4], [1], [5], [9], [2], [6]])
    here, there = edgemem.load(files / "rwkv4.onnx").stream(), edgemem.load(files / "rwkv4").stream()
    assert there.program.runtime == "opencl"
    whole = [here.step(token[None]) for token in tokens]
    here.reset()
    for token in tokens[:3]:
        here.step(token[None])
    there.restore(here.snapshot())
    for token, wanted in zip(tokens[3:6], whole[3:6], strict=True):
        np.testing.assert_allclose(there.step(token[None]), wanted, rtol=1e-4, atol=1e-5)
    here.restore(there.snapshot())
    for token, wanted in zip(tokens[6:], whole[6:], strict=True):
        np.testing.assert_allclose(here.step(token[None]), wanted, rtol=1e-4, atol=1e-5)


def test_streams_of_one_program_do_not_mix(files: Path) -> None:
    program = edgemem.load(files / "rwkv4")
    first, second = program.stream(), program.stream()
    alone = [program.stream().step(np.array([[2]])), first.step(np.array([[7]]))]
    np.testing.assert_array_equal(second.step(np.array([[2]])), alone[0])
    assert not np.array_equal(alone[0], alone[1])


def test_the_host_program_in_c_gives_the_same_bytes(files: Path, tmp_path: Path) -> None:
    """Built without a warning, clean under sanitizers, and it refuses an index outside its range."""
    folder = tmp_path / "c"
    shutil.copytree(files / "rwkv4", folder)
    if not Path("/usr/include/CL/cl.h").exists():
        pytest.skip("the headers of OpenCL are not installed: make boards")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-fsanitize=address,undefined"]
    sources = ["main.c", "rwkv4.c", "edgemem_opencl.c"]
    subprocess.run(["gcc", *flags, *sources, "-lOpenCL", "-o", "program"], cwd=folder, check=True)
    program = edgemem.load(files / "rwkv4")
    state, rng = program.new_state(), np.random.default_rng(0)
    chunks = [random_inputs(program.contract, rng) for _ in range(5)]
    wanted = b"".join(a.tobytes() for chunk in chunks for a in program.step(chunk, state).values())
    given = b"".join(a.tobytes() for chunk in chunks for a in chunk.values())
    quiet = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # the driver keeps memory of its own

    def run(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["./program", *arguments], cwd=folder, input=data, capture_output=True, env=quiet)

    assert run(given, ".", "portable").stdout == wanted
    outside = run(np.array([[10_000]]).tobytes(), ".")
    assert outside.returncode == 1 and b"code 5" in outside.stderr
    assert b"code 5" in run(np.array([[-1]]).tobytes(), ".").stderr
    assert b"code 2" in run(b"", ".", "no such device").stderr
    (folder / "rwkv4_weights.bin").write_bytes(b"short")
    assert b"code 1" in run(b"", ".").stderr


@pytest.mark.parametrize("file", ["rwkv4.cl", "rwkv4_weights.bin"])
def test_an_altered_file_is_refused(file: str, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "rwkv4", tmp_path / "p")
    data = bytearray((tmp_path / "p" / file).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "p" / file).write_bytes(data)
    with pytest.raises(ModelFileError, match=f"{file} is not the file of its manifest"):
        edgemem.load(tmp_path / "p")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda step: step["launches"][0]["places"][0].update(offsets=[1 << 40, 0]), "bytes at"),
        (lambda step: step["launches"][0].update(threads=[0, 1, 1]), "malformed"),
        (lambda step: step["launches"][0].update(kernel="none"), "have no none"),
        (lambda step: step.pop("states"), "malformed"),
        (lambda step: step["inputs"].clear(), r"step has inputs {} \(bytes\), its contract {'tokens': 8}"),
        (lambda step: step["sizes"].update(weights=1 << 40), "the weights have .* bytes, the manifest's step wants"),
    ],
)
def test_a_manifest_that_points_elsewhere_is_refused(change: object, message: str, files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "rwkv4", tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    change(manifest["step"])  # type: ignore[operator]
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match=message):
        edgemem.load(tmp_path / "p")


def test_what_is_not_here_is_named(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"'mali-g610' in its name was wanted, this machine has .*pthread"):
        edgemem.load(files / "rwkv4.onnx", runtime="opencl", board="mali_g610")
    with pytest.raises(ConfigError, match="host has no OpenCL device; boards with one: adreno_640, intel_igpu"):
        edgemem.load(files / "rwkv4.onnx", runtime="opencl", board="host")
    wanted = ["compile", str(files / "rwkv4.onnx"), "--board", "pocl", "--runtime", "aot", "-o", str(tmp_path / "x")]
    result = CliRunner().invoke(cli, wanted)
    assert isinstance(result.exception, UsageError) and not (tmp_path / "x").exists()
    wanted = ["compile", str(files / "rwkv4.onnx"), "--board", "pocl", "--report", "-o", str(tmp_path / "x")]
    result = CliRunner().invoke(cli, wanted)
    assert isinstance(result.exception, UsageError) and not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="tokens"):
        edgemem.load(files / "rwkv4").stream().step(np.array([[10_000]]))


@pytest.mark.parametrize("name", ["mali_g610", "adreno_640", "intel_igpu"])
def test_programs_for_other_devices_are_written_here(name: str, files: Path, tmp_path: Path) -> None:
    wanted = ["compile", str(files / "rwkv4.onnx"), "--board", name, "-o", str(tmp_path / "p"), "--json"]
    result = CliRunner().invoke(cli, wanted)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    most = board(name).gpu
    assert most is not None
    assert all(np.prod(launch["threads"]) <= most.threads for launch in manifest["step"]["launches"])
    assert all(kernel["primfunc"] for kernel in manifest["kernels"])


def test_a_device_that_is_too_small_is_refused() -> None:
    """With the bytes that are needed, and those that are there."""
    from types import SimpleNamespace

    from edgemem.runtimes.opencl.device import check_room

    small = SimpleNamespace(
        global_mem_size=1 << 20, max_mem_alloc_size=1 << 18, name="GPU", platform=SimpleNamespace(name="Maker")
    )
    check_room(small, 1 << 19, 1 << 18, "model")
    with pytest.raises(DeviceError, match=r"model does not fit Maker: GPU: 2.0 MiB needed, .* the device has 1.0 MiB"):
        check_room(small, 1 << 21, 1 << 18, "model")
    with pytest.raises(DeviceError, match=r"512.0 KiB of it in one buffer; .*256.0 KiB in one"):
        check_room(small, 1 << 20, 1 << 19, "model")


def test_a_driver_that_is_too_old_is_named() -> None:
    from types import SimpleNamespace

    from edgemem.runtimes.opencl.device import check_version

    maker = SimpleNamespace(name="Maker")
    check_version(SimpleNamespace(version="OpenCL 3.0 of Maker", name="GPU", platform=maker))
    for version in ("OpenCL 1.1 of Maker", "embedded"):
        with pytest.raises(DeviceError, match=rf"Maker: GPU has a driver .* {version} came, OpenCL 1\.2 was wanted"):
            check_version(SimpleNamespace(version=version, name="GPU", platform=maker))


def test_a_stream_without_room_says_what_it_takes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyopencl as cl

    from edgemem.runtimes.opencl import program as programs

    program = edgemem.load(files / "rwkv4")

    class OutOfMemory(cl.Error):
        def __str__(self) -> str:
            return "clCreateBuffer failed: OUT_OF_RESOURCES"

    def full(program: object) -> None:
        raise OutOfMemory

    monkeypatch.setattr(programs, "OpenclState", full)
    with pytest.raises(
        DeviceError, match=r"no room for another stream: clCreateBuffer .*it takes [\d.]+ KiB, the device has .* GiB"
    ):
        program.new_state()


def test_streams_that_pause_without_room_say_what_they_take(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyopencl as cl

    state = edgemem.load(files / "rwkv4").new_state()

    class OutOfMemory(cl.Error):
        def __str__(self) -> str:
            return "clCreateBuffer failed: OUT_OF_RESOURCES"

    def full(*arguments: object) -> None:
        raise OutOfMemory

    monkeypatch.setattr(cl, "Buffer", full)
    with pytest.raises(DeviceError, match=r"no room for streams that pause: clCreateBuffer .*they take [\d.]+ KiB"):
        state.keep([0])


def test_two_compilations_give_the_same_bytes(files: Path, tmp_path: Path) -> None:
    again = compiled(files / "rwkv4.onnx", tmp_path / "again")
    for file in ("rwkv4.cl", "rwkv4_weights.bin", "rwkv4.c", "manifest.json"):
        assert (again / file).read_bytes() == (files / "rwkv4" / file).read_bytes(), file


def test_profile_shows_every_kernel(files: Path) -> None:
    """Each launch of a step in one row, with the time of the device's own clock and the bytes of its places."""
    result = CliRunner().invoke(cli, ["profile", str(files / "rwkv4"), "--steps", "3", "--json"])
    assert result.exit_code == 0, result.output
    found, manifest = json.loads(result.output), json.loads((files / "rwkv4" / "manifest.json").read_text())
    assert sum(row["calls"] for row in found["kernels"]) == len(manifest["calls"])
    assert {row["kernel"] for row in found["kernels"]} == set(manifest["calls"])
    assert all(0 < row["us"] <= found["total_us"] for row in found["kernels"])
    for row in found["kernels"]:
        launches = [launch for launch in manifest["step"]["launches"] if launch["kernel"] == row["kernel"]]
        assert row["bytes"] == sum(place["nbytes"] for launch in launches for place in launch["places"])
    wrong = CliRunner().invoke(cli, ["profile", str(files / "rwkv4"), "--runtime", "aot"])
    assert isinstance(wrong.exception, UsageError) and "is a program of opencl" in str(wrong.exception)


def test_bench_times_an_opencl_board(files: Path) -> None:
    command = ["bench", str(files / "rwkv4.onnx"), "--board", "pocl", "--rounds", "1", "--json"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)["rows"]
    assert [row["runtime"] for row in rows] == ["ort", "opencl"]
    assert all(row["p50_us"] > 0 and row["bytes_per_step"] == rows[0]["bytes_per_step"] for row in rows)
    alone = CliRunner().invoke(cli, ["bench", str(files / "rwkv4.onnx"), "--board", "rpi4"])
    assert isinstance(alone.exception, UsageError) and "give both --board BOARD and --rpc" in str(alone.exception)
