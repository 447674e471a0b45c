"""The tvm runtime: on this machine's processor, and programs for CUDA that are written without a GPU."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.cli.main import cli
from edgemem.errors import CompileError, DeviceError, ModelFileError
from edgemem.quant import quantize
from edgemem.trial import poisoned, trial
from tests.aot_programs import model_file

tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

MACHINES = {"jetson_orin_nano": 87, "jetson_xavier_nx": 72, "h200": 90}
AARCH64, X86_64, CUDA = 183, 62, 190  # of an ELF file's machine


def has_gpu() -> bool:
    from edgemem.runtimes.vm.program import present

    return present(tvm.cuda(0))


def has_nvrtc() -> bool:
    from edgemem.errors import MissingDependency
    from edgemem.runtimes.vm.nvrtc import package

    try:
        return package("cuda_nvrtc", "lib").is_dir() and package("cuda_runtime", "include").is_dir()
    except MissingDependency:
        return False


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="NVRTC 12 is not installed: pip install 'edgemem[cuda]'")
needs_gpu = pytest.mark.skipif(not has_gpu(), reason="TVM finds no CUDA GPU on this machine")


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


@pytest.mark.parametrize("name", ["rwkv4", "kws-lmuformer"])
def test_the_virtual_machine_computes_what_onnxruntime_does(name: str, tmp_path: Path) -> None:
    path = model_file(name, tmp_path)
    program = edgemem.load(path, runtime="tvm", board="host")
    found = trial(edgemem.load(path), program, 32)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 3):
        assert fresh.tobytes() == reset.tobytes(), tensor


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
def test_products_of_bytes_are_dp4a(rwkv4: Path, tmp_path: Path) -> None:
    quantize(rwkv4, tmp_path / "q.onnx", "w8a8-dynamic", smallest=32)
    folder = compiled(tmp_path / "q.onnx", "jetson_orin_nano", tmp_path / "p")
    assert "__dp4a(" in (folder / "rwkv4.cu").read_text()
    products = json.loads((folder / "manifest.json").read_text())["products"]
    assert {(product["kernel"], product["reason"]) for product in products} == {("w8a8", "__dp4a")}


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
    with pytest.raises(DeviceError, match="a CUDA GPU was wanted, and TVM finds none"):
        edgemem.load(rwkv4, runtime="tvm")
    with pytest.raises(DeviceError, match="install NVIDIA's driver"):
        edgemem.load(compiled(rwkv4, "jetson_orin_nano", tmp_path / "p"))


def test_an_altered_program_is_refused(rwkv4: Path, tmp_path: Path) -> None:
    from edgemem.boards import board
    from edgemem.runtimes.vm.folder import load_folder, write_folder

    write_folder(rwkv4, board("host"), tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "manifest.json").read_text())
    manifest["inputs"] = manifest["inputs"][1:]
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="ports are not those of its contract"):
        load_folder(tmp_path / "p")
    (tmp_path / "p" / "rwkv4.so").write_bytes(b"\x7fELF")
    with pytest.raises(ModelFileError, match=r"rwkv4\.so is not the file of its manifest"):
        load_folder(tmp_path / "p")


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

    monkeypatch.setattr(state, "step", full)
    needed = r"failed on cpu.*: CUDA: out of memory; weights and state take [\d.]+ KiB"
    with pytest.raises(DeviceError, match=needed):
        loaded.step({"tokens": np.array([[1]])}, state)


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
