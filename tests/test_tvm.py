"""The tvm runtime: on this machine's processor, and programs for CUDA that are written without a GPU."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.cli.main import cli
from edgemem.errors import CompileError, DeviceError, MissingDependency, ModelFileError, UsageError
from edgemem.quant import quantize
from edgemem.trial import poisoned, random_inputs, trial
from tests.aot_programs import model_file
from tests.gpus import graphs_replayed, has_gpu, needs_gpu, needs_nvrtc

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

FAMILIES = ("rwkv4", "kws-lmuformer", "memformer", "folding")
MACHINES = {"jetson_orin_nano": 87, "jetson_xavier_nx": 72, "h200": 90}
AARCH64, X86_64, CUDA = 183, 62, 190  # of an ELF file's machine


@pytest.fixture(scope="module")
def rwkv4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_file("rwkv4", tmp_path_factory.mktemp("tvm"))


def compiled(path: Path, board: str, folder: Path) -> Path:
    result = CliRunner().invoke(cli, ["compile", str(path), "--board", board, "--runtime", "tvm", "-o", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def elf(data: bytes) -> tuple[int, int, set[str]]:
    """Machine, flags and names of sections of a 64-bit ELF file."""
    assert data[:5] == b"\x7fELF\x02"
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    (flags,) = struct.unpack_from("<I", data, 48)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
    text = data[headers[names][4] :]
    return machine, flags, {text[h[0] : text.index(b"\0", h[0])].decode() for h in headers}


def graphs(text: str) -> list[list[str]]:
    """The kernels of the graph that each function of a step replays, from an executable's text.

    No kernel lies outside, and no two functions share a captured graph: each has an index of its own.
    """
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("@") and line.endswith(":"):
            inside = lines[line[1:-1]] = []
        elif line.startswith("  call "):
            inside.append(line)

    def kernels(function: str) -> list[str]:
        called = [line.split()[1] for line in lines[function]]
        return [name for name in called if not name.startswith("vm.builtin.")]

    replays = [[line for line in lines[turn] if "cuda_graph.run_or_capture" in line] for turn in ("even", "odd")]
    assert not kernels("even") and not kernels("odd") and [len(found) for found in replays] == [1, 1]
    matches = [re.search(r"f\[(\w+)\], %\d+, i(\d+)", found[0]) for found in replays]
    assert all(matches) and len({match[2] for match in matches if match}) == 2
    return [kernels(match[1]) for match in matches if match]


def test_the_virtual_machine_computes_what_onnxruntime_does(rwkv4: Path) -> None:
    program = edgemem.load(rwkv4, runtime="tvm", board="host")
    found = trial(edgemem.load(rwkv4), program, 32)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 3):
        assert fresh.tobytes() == reset.tobytes(), tensor


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_is_one_graph(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel of a step lies in its graph; graphs that are replayed with their first addresses compute the same.

    On this machine's processor, where the graphs of CUDA are played: streams take turns, so states change places.
    """
    from edgemem.boards import board
    from edgemem.runtimes.vm import generate
    from edgemem.runtimes.vm.folder import load_folder, write_folder

    monkeypatch.setattr(generate, "captures", lambda target: True)
    held: list[generate.Generated] = []
    plain = generate.generated
    monkeypatch.setattr(generate, "generated", lambda *given: held.append(plain(*given)) or held[0])
    path = model_file(name, tmp_path)
    write_folder(path, board("host"), tmp_path / "p")
    assert graphs(held[0].executable.as_text()) == [held[0].calls] * 2
    with graphs_replayed() as replayed:
        program = load_folder(tmp_path / "p")
        found = trial(edgemem.load(path), program, 24)
        assert found.holds, found.first_divergence
        for tensor, fresh, reset in poisoned(program, 3):
            assert fresh.tobytes() == reset.tobytes(), tensor
        assert len(replayed) == 2
        rng = np.random.default_rng(0)
        chunks = [random_inputs(program.contract, rng) for _ in range(8)]
        first, second, alone = program.new_state(), program.new_state(), program.new_state()
        wanted = [copies(program.step(chunk, alone)) for chunk in chunks]
        given = [copies(program.step(chunk, state)) for chunk in chunks for state in (first, second)]
        for index, outputs in enumerate(wanted):
            for output in given[2 * index : 2 * index + 2]:
                assert all(np.array_equal(output[port], outputs[port]) for port in outputs), index
        for name, array in first.get().items():
            assert np.array_equal(array, second.get()[name]) and np.array_equal(array, alone.get()[name]), name


def copies(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in outputs.items()}


def test_a_stream_goes_on_in_the_virtual_machine(rwkv4: Path) -> None:
    here, there = edgemem.load(rwkv4).stream(), edgemem.load(rwkv4, runtime="tvm", board="host").stream()
    for token in (1, 7, 3):
        here.step(np.array([[token]]))
    there.restore(here.snapshot())
    np.testing.assert_allclose(there.step(np.array([[5]])), here.step(np.array([[5]])), rtol=1e-4, atol=1e-5)


@needs_nvrtc
@pytest.mark.parametrize("board", sorted(MACHINES))
def test_a_program_for_cuda_holds_its_kernels(board: str, rwkv4: Path, tmp_path: Path) -> None:
    """Code of the board's host, and every kernel as machine code of its GPU's architecture."""
    folder = compiled(rwkv4, board, tmp_path / "p")
    manifest = json.loads((folder / "manifest.json").read_text())
    host, _, _ = elf((folder / "rwkv4.so").read_bytes())
    assert host == (AARCH64 if board.startswith("jetson") else X86_64)
    machine, flags, sections = elf((folder / "rwkv4.cubin").read_bytes())
    assert (machine, flags & 0xFF) == (CUDA, MACHINES[board])
    assert {f".text.{kernel['kernel']}" for kernel in manifest["kernels"]} <= sections
    assert manifest["board"]["gpu"]["arch"] == f"sm_{MACHINES[board]}"


@needs_nvrtc
@pytest.mark.parametrize(("scheme", "kernel"), [("w8a8-dynamic", "w8a8"), ("w8", "w8"), ("vq:dim=4,codes=16", "vq")])
def test_narrow_weights_on_cuda(scheme: str, kernel: str, rwkv4: Path, tmp_path: Path) -> None:
    """Every kernel of a step lies in its graph; products of bytes are dp4a instructions on every architecture."""
    from edgemem.boards import board
    from edgemem.runtimes.vm.generate import generated
    from edgemem.runtimes.vm.nvrtc import compiled as code_of

    quantize(rwkv4, tmp_path / "q.onnx", scheme, smallest=32)
    found = generated(tmp_path / "q.onnx", board("jetson_orin_nano"))
    assert {product.kernel for product in found.products} == {kernel}
    for inside in graphs(found.executable.as_text()):
        assert [f"{name}_kernel" for name in inside] == found.calls
    for arch in MACHINES.values() if kernel == "w8a8" else ():
        assert b"dp4a.s32.s32" in code_of(found.source, f"compute_{arch}", "PTX")


@needs_nvrtc
@pytest.mark.skipif(has_gpu(), reason="this machine has a CUDA GPU")
def test_tvm_compiles_no_kernel_itself(rwkv4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its library for CUDA is loaded, TVM would, by a compiler that the extra `cuda` does not install."""
    import tvm_ffi

    from edgemem.boards import board
    from edgemem.runtimes.vm.generate import KEEP_SOURCE, generated

    def refuse(*given: Any) -> None:
        raise AssertionError("TVM compiles")

    monkeypatch.setenv(KEEP_SOURCE, "0")
    tvm_ffi.register_global_func("ffi.Module.create.cuda", refuse)
    try:
        found = generated(rwkv4, board("h200"))
    finally:
        tvm_ffi.registry.remove_global_func("ffi.Module.create.cuda")
    assert found.source.count("__global__") >= 2 * len(found.kernels) and os.environ[KEEP_SOURCE] == "0"


def test_truth_values_are_read_one_by_one() -> None:
    """TVM's CUDA C++ reads a vector of them two bytes each, where one lies."""
    from tvm import te

    from edgemem.boards import board
    from edgemem.runtimes.gpu.schedules import scheduled
    from edgemem.runtimes.vm.generate import machine_of

    def attention(dtype: str) -> str:
        a, b = (te.placeholder((2, 64, 64), name=name) for name in "ab")
        mask = te.placeholder((2, 64, 64), dtype, name="mask")
        k = te.reduce_axis((0, 64), name="k")
        sums = te.compute((2, 64, 64), lambda n, i, j: te.sum(a[n, i, k] * b[n, j, k], axis=k), name="sums")
        kept = te.compute(sums.shape, lambda *at: te.if_then_else(mask[at].astype("bool"), sums[at], 0.0), name="kept")
        function, how = scheduled(te.create_prim_func([a, b, mask, kept]), machine_of(board("h200")).target)
        assert how == "dlight"
        return str(function.script())

    assert "T.vectorized" in attention("float32") and "T.vectorized" not in attention("bool")


@pytest.mark.parametrize("outputs", [1, 11])
def test_threads_without_an_output_write_nothing(outputs: int) -> None:
    """A block has eight outputs; sums that come out even must not make TVM forget that there may be fewer."""
    import tvm
    from tvm import te

    from edgemem.boards import board
    from edgemem.runtimes.gpu.products import summed
    from edgemem.runtimes.gpu.schedules import scheduled
    from edgemem.runtimes.vm.generate import as_source, cuda_source, machine_of

    target = machine_of(board("h200")).target
    x, w = te.placeholder((1, 64), name="x"), te.placeholder((outputs, 64), name="w")
    function, how = scheduled(te.create_prim_func([x, w, summed(x, (1, outputs), lambda n, k: w[n, k])]), target)
    with target, as_source():
        built = tvm.tirx.build(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target=target)
    before, written = cuda_source(built).split(";\n  }\n}")[0].rsplit("{\n", 1)
    assert how == "rows" and written.strip().startswith("product_ptr[") and f"< {outputs})" in before.splitlines()[-1]


@needs_nvrtc
def test_what_the_compiler_refuses_is_said() -> None:
    from edgemem.runtimes.vm.nvrtc import cubin

    with pytest.raises(CompileError, match=r"NVRTC refuses the kernels for sm_87: .*nothing"):
        cubin('extern "C" __global__ void k() { nothing(); }', "sm_87")
    with pytest.raises(CompileError, match="for sm_1"):
        cubin("", "sm_1")


@needs_nvrtc
@pytest.mark.skipif(has_gpu(), reason="this machine has a CUDA GPU")
def test_a_gpu_that_is_not_here_is_named(rwkv4: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"a CUDA GPU was wanted.*run the ONNX file itself \(--runtime ort\)"):
        edgemem.load(rwkv4, runtime="tvm")
    folder = compiled(rwkv4, "jetson_orin_nano", tmp_path / "p")
    result = CliRunner().invoke(cli, ["run", str(folder), "--input", "-"], input="a")
    assert isinstance(result.exception, DeviceError) and "compile it for this processor (--board host)" in str(
        result.exception
    )


def test_boards_say_what_cuda_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemem.boards import board
    from edgemem.cli.boards import ready
    from edgemem.runtimes.vm import nvrtc

    monkeypatch.setattr(nvrtc.util, "find_spec", lambda name: None)
    assert ready(board("cuda_host")) == "pip install 'edgemem[cuda]'"
    assert ready(board("host")) == "found"


def test_a_folder_is_verified_through_its_model(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"board": {"name": "h200"}}')
    result = CliRunner().invoke(cli, ["verify", str(tmp_path)])
    assert isinstance(result.exception, UsageError) and "made of, with --board h200" in str(result.exception)


class FakeDriver:
    """NVIDIA's driver as far as it is asked: its answers by function; a function's own code is 0 unless given."""

    def __init__(self, version: int = 13000, start: int = 0, devices: int = 1, broken: str = "") -> None:
        self.answers = {"cuDriverGetVersion": version, "cuDeviceGetCount": devices}
        self.start, self.broken = start, broken

    def __getattr__(self, name: str) -> Callable[[Any], int]:
        if name == "cuInit":
            return lambda flags: self.start

        def function(pointer: Any) -> int:
            pointer._obj.value = self.answers[name]
            return 999 if name == self.broken else 0

        return function


@pytest.mark.parametrize(
    ("library", "message"),
    [
        (
            FakeDriver(version=12040),
            "too old: it runs CUDA 12.4, TVM's programs want 13.0: install NVIDIA's driver, 580",
        ),
        (FakeDriver(start=100), "finds none: is one built in, and is it given to this container"),
        (FakeDriver(devices=0), "hidden by CUDA_VISIBLE_DEVICES"),
        (FakeDriver(start=803), r"does not start \(code 803\): .*reboot"),
        (FakeDriver(start=999), r"does not start \(code 999\): see nvidia-smi"),
        (FakeDriver(broken="cuDriverGetVersion"), r"fails in cuDriverGetVersion \(code 999\)"),
        (OSError("libcuda.so.1: no such file"), r"has no driver of NVIDIA's \(libcuda.so.1: no such file\): install"),
    ],
)
def test_what_is_wrong_with_the_driver_is_named(library: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemem.runtimes.vm import driver

    def opened(name: str) -> Any:
        assert name == "libcuda.so.1"
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(driver.ctypes, "CDLL", opened)
    with pytest.raises(DeviceError, match=message) as raised:
        driver.check_driver()
    assert "--runtime ort" in str(raised.value)
    library = FakeDriver()
    driver.check_driver()


@pytest.mark.skipif(has_gpu(), reason="this machine has a CUDA GPU")
def test_a_gpu_that_tvm_cannot_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver alone is not enough: TVM's library for CUDA and the CUDA runtime are wanted too."""
    from edgemem.runtimes.vm import program

    monkeypatch.setattr(program, "check_driver", lambda: None)
    with pytest.raises(MissingDependency, match=r"TVM's library for CUDA cannot be loaded .*'edgemem\[cuda\]'"):
        program.arch_here()
    monkeypatch.setattr(program, "load_runtime", lambda: None)
    with pytest.raises(DeviceError, match="NVIDIA's driver has a GPU, and TVM cannot use it"):
        program.arch_here()


def test_a_gpu_that_is_too_small_is_named() -> None:
    """With the bytes that are needed, and those that are free."""
    from edgemem.runtimes.vm.program import check_room

    class Device:
        available_global_memory = 3 << 20

        def __str__(self) -> str:
            return "cuda:0"

    check_room(Device(), "model", {"weights": 1 << 20, "workspace": 1 << 19, "state": 1 << 19})
    message = r"model does not fit cuda:0: 5\.0 MiB needed, 3\.0 MiB free\. Quantize it .*nvidia-smi"
    with pytest.raises(DeviceError, match=message):
        check_room(Device(), "model", {"weights": 1 << 20, "workspace": 1 << 20, "state": 1 << 20})


def test_an_altered_program_is_refused(rwkv4: Path, tmp_path: Path) -> None:
    from edgemem.boards import board
    from edgemem.runtimes.vm.folder import load_folder, write_folder

    write_folder(rwkv4, board("host"), tmp_path / "p")
    (tmp_path / "p" / "rwkv4.so").write_bytes(b"\x7fELF")
    with pytest.raises(ModelFileError, match=r"rwkv4\.so is not the file of its manifest"):
        load_folder(tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    manifest["bytes"].pop("workspace")
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="does not say how large the program is"):
        load_folder(tmp_path / "p")


def test_profile_and_bench_on_this_processor(rwkv4: Path) -> None:
    result = CliRunner().invoke(
        cli, ["profile", str(rwkv4), "--runtime", "tvm", "--board", "host", "--steps", "3", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert {"take", "layer_norm", "product_float"} <= {row["kernel"] for row in found["kernels"]}
    assert all(row["us"] > 0 and row["calls"] > 0 and row["bytes"] > 0 for row in found["kernels"])
    command = ["bench", str(rwkv4), "--runtime", "tvm", "--board", "host", "--rounds", "1", "--json"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert [row["runtime"] for row in json.loads(result.output)["rows"]] == ["tvm"]


def test_another_architecture_is_named(rwkv4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine whose GPU is a Hopper, a program for Orin says what it is for."""
    from edgemem.runtimes.vm import program

    monkeypatch.setattr(program, "arch_here", lambda: "sm_90")
    with pytest.raises(DeviceError, match="the program is for sm_87, this machine's GPU is sm_90"):
        program.device_of({"arch": "sm_87"})
    assert str(program.device_of({"arch": "sm_90"})).startswith("cuda")


def test_a_step_that_fails_says_what_it_needed(rwkv4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = edgemem.load(rwkv4, runtime="tvm", board="host")
    state = loaded.new_state()

    def full(*arguments: object) -> None:
        raise RuntimeError("CUDA: out of memory")

    monkeypatch.setattr(loaded, "steps", [full])
    needed = r"failed on cpu.*: CUDA: out of memory; a program and a stream take [\d.]+ KiB"
    with pytest.raises(DeviceError, match=needed):
        loaded.step({"tokens": np.array([[1]])}, state)
    monkeypatch.setattr(loaded, "room", full)
    with pytest.raises(DeviceError, match=needed):
        state.keep([0])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", ["rwkv4", "kws-lmuformer", "memformer", "folding"])
def test_families_on_a_gpu(name: str, tmp_path: Path) -> None:
    path = model_file(name, tmp_path)
    program = edgemem.load(path, runtime="tvm")
    found = trial(edgemem.load(path), program, 64)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 3):
        assert fresh.tobytes() == reset.tobytes(), tensor
