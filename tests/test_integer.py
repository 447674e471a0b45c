"""The step of a `w8a8` file in integers: near onnxruntime step by step, and the same bytes on every emulated core."""

from __future__ import annotations

import struct
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.cli.main import cli
from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.firmware import elf
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.factors import whole_numbers
from edgemem.runtimes.integer.lower import lowered
from edgemem.runtimes.integer.operation import Out
from edgemem.runtimes.integer.operators import norms
from edgemem.runtimes.integer.reference import IntegerProgram
from edgemem.runtimes.integer.states import as_float, as_integers
from edgemem.trial import random_state, trial
from edgemem.verify import FEW_STEPS, INT8_STEP
from tests.firmware import SPOTTER, manifest, needs

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
REAL = ("stm32f746g_disco", "nucleo_f446re", "nucleo_h743zi", "nrf52840_dk", "rpi_pico", "rpi_pico2", "esp32c3")
CORES = ("mps2_an385", "mps2_an386", "mps3_an547")  # portable, SMLAD, Helium


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small keyword spotter in `w8a8`, widths that no block of a kernel divides among them."""
    from edgemem.export import export_model

    folder = tmp_path_factory.mktemp("integer")
    export_model("kws-lmuformer", folder / "k.onnx", SPOTTER, seed=1)
    return quantized(folder / "k.onnx", folder / "k8.onnx")


def quantized(path: Path, into: Path) -> Path:
    from edgemem.quant import quantize

    width = edgemem.load(path).contract.inputs[0].shape[-1]
    np.save(into.with_suffix(".npy"), np.random.default_rng(4).standard_normal((96, width)).astype(np.float32))
    quantize(path, into, "w8a8", calibrate=into.with_suffix(".npy"), smallest=64, steps=16)
    return into


def test_a_step_in_integers_is_near_the_step_in_float(spotter: Path) -> None:
    """From onnxruntime's state, every output and state is within four steps of eight bits of it."""
    allowed = INT8_STEP * FEW_STEPS
    found = trial(edgemem.load(spotter), IntegerProgram(spotter), 64, relative=allowed, together=True)
    assert found.holds, found.first_divergence


def test_nothing_but_the_ends_and_wide_states_is_float(spotter: Path) -> None:
    step = lowered(IntegerProgram(spotter).model)
    wide = {s.name for s in edgemem.load(spotter).contract.states if s.quant.get("wide")}
    assert set(step.scales) == {s.name for s in edgemem.load(spotter).contract.states} - wide
    kinds = {operation.kind for operation in step.operations}
    assert {"product8", "product16", "layer_norm", "sum", "scale"} <= kinds
    for operation in step.operations:
        dtypes = {tensor.dtype for tensor in (*operation.reads, operation.write)}
        if operation.kind not in ("quantize", "dequantize", "wide", "move"):
            assert "float32" not in dtypes, operation.kind


@pytest.mark.parametrize("core", CORES)
def test_every_core_gives_the_same_bytes(spotter: Path, tmp_path: Path, core: str) -> None:
    """A free run of outputs and states, from the start and from a random state that the host has put there."""
    from edgemem.boards import board
    from edgemem.runtimes.aot.compiler import compile_model
    from edgemem.runtimes.firmware.proof import first_difference

    needs(core)
    compile_model(spotter, board(core), tmp_path / "fw", name="model")
    facts = manifest(tmp_path / "fw")
    assert facts["integer"]["step"] and facts["integer"]["state_scales"]
    for part in ("state", "arena", "io", "stack"):
        assert facts["budget"]["predicted"]["ram"][part] == facts["budget"]["linked"]["ram"][part], part
    program, reference = edgemem.load(tmp_path / "fw"), IntegerProgram(spotter)
    assert first_difference(program, reference, 24, 0) is None
    here, there = reference.new_state(), program.new_state()
    rng = np.random.default_rng(5)
    start = {s.name: random_state(s, rng) for s in reference.contract.states}
    here.set(start)
    there.set(start)
    x = {"features": rng.standard_normal((1, 1, SPOTTER["features"])).astype(np.float32)}
    np.testing.assert_array_equal(program.step(x, there)["logits"], reference.step(x, here)["logits"])
    assert all(there.get()[name].tobytes() == value.tobytes() for name, value in here.get().items())
    assert there.stack_bytes() <= facts["budget"]["predicted"]["ram"]["stack"]  # type: ignore[attr-defined]


def test_a_model_without_integer_kernels_keeps_float_ones_and_says_why(tmp_path: Path) -> None:
    import torch

    from edgemem.export import to_onnx
    from edgemem.quant import quantize

    class Clamped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.state = (edgemem.StateTensor("level", (64,)),)
            self.drive = torch.nn.Linear(64, 64)

        def step(self, x: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            level = 0.5 * state["level"] + self.drive(x)
            return torch.clamp(level, -1.0, 1.0), {"level": level}

    to_onnx(Clamped(), torch.zeros(1, 1, 64), tmp_path / "w.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32))
    quantize(tmp_path / "w.onnx", tmp_path / "q.onnx", "w8a8", calibrate=tmp_path / "x.npy", steps=8)
    with pytest.raises(NotInteger, match="Clip of numbers that are not whole"):
        IntegerProgram(tmp_path / "q.onnx")
    needs("mps2_an386")
    done = CliRunner().invoke(
        cli, ["compile", str(tmp_path / "q.onnx"), "--board", "mps2_an386", "-o", str(tmp_path / "fw")]
    )
    assert done.exit_code == 0, done.output
    assert "the step keeps float kernels: Clip of numbers that are not whole" in " ".join(done.stderr.split())


def test_a_picture_shows_every_tensor_of_the_arena(spotter: Path, tmp_path: Path) -> None:
    """No two tensors that live at the same time share a byte, and all lie inside the arena."""
    from xml.etree import ElementTree

    needs("mps2_an385")
    command = ["compile", str(spotter), "--board", "mps2_an385", "-o", str(tmp_path / "fw"), "--report"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0 and "the step runs in integers" in done.stderr
    facts = manifest(tmp_path / "fw")
    rows = facts["arena"]
    boxes = ElementTree.parse(tmp_path / "fw" / "memory.svg").findall(".//{*}rect/{*}title")
    assert len(boxes) == len(rows) > 10
    for index, a in enumerate(rows):
        assert a["offset"] >= 0 and a["offset"] + a["bytes"] <= facts["bytes"]["arena"]
        for b in rows[:index]:
            apart = a["offset"] + a["bytes"] <= b["offset"] or b["offset"] + b["bytes"] <= a["offset"]
            assert apart or a["last"] < b["first"] or b["last"] < a["first"]
    assert facts["bytes"]["arena"] <= 1.15 * facts["bytes"]["arena_lower_bound"]


def test_a_core_with_smlad_takes_fewer_instructions(spotter: Path, tmp_path: Path) -> None:
    """Of the int8 products; both counts are of the same core, and each repeats."""
    from edgemem.boards import board
    from edgemem.runtimes.aot.compiler import compile_model
    from edgemem.runtimes.firmware.counts import counted

    needs("mps2_an386")
    compile_model(spotter, board("mps2_an386"), tmp_path / "fw", name="model")
    counts = {}
    for flags in ("", "-DEDGEMEM_PORTABLE"):
        (tmp_path / f"spare{flags}").mkdir()
        found = counted(tmp_path / "fw", tmp_path / f"spare{flags}", 8, flags)
        counts[flags] = sum(k["instructions"] for k in found["kernels"] if k["primfunc"] == "product8")
        assert found["instructions_per_step"] > counts[flags] > 0 or flags
    assert counts["-DEDGEMEM_PORTABLE"] > 1.2 * counts[""]  # short rows; 1.6 times on those of the shipped spotter


@pytest.mark.parametrize("name", ["mps2_an386", "mps2_an500"])
def test_kernels_call_no_library_for_a_word(name: str, tmp_path: Path) -> None:
    """Firmware is freestanding, where a compiler leaves `memcpy` a call, for each two numbers of a product at worst."""
    from edgemem.boards import board
    from edgemem.runtimes.firmware import build

    needs(name)
    target, folder = board(name), resources.files("edgemem.runtimes.integer").joinpath("c")
    for file in ("edgemem_integer", "edgemem_power"):
        source = str(folder.joinpath(f"{file}.c"))
        command = [target.compiler, *target.compiler_flags, *build.CFLAGS, *build.FAST, "-c", source, "-o", f"{file}.o"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert not {"memcpy", "memmove", "memset"} & set(elf.read(tmp_path / f"{file}.o").symbols), file


@pytest.mark.parametrize("name", REAL)
def test_a_board_without_emulator_gets_the_image_that_it_starts_from(spotter: Path, tmp_path: Path, name: str) -> None:
    """Vector table, memory map, and what the ROM of the chip looks for."""
    from edgemem.boards import board
    from edgemem.runtimes.aot.compiler import compile_model

    needs(name)
    facts = board(name)
    compile_model(spotter, facts, tmp_path / "fw", name="model")
    image, data = elf.read(tmp_path / "fw" / "firmware.elf"), (tmp_path / "fw" / "firmware.bin").read_bytes()
    assert facts.flash_origin is not None and facts.flash_bytes is not None
    assert facts.ram_origin is not None and facts.ram_bytes is not None
    ram = range(facts.ram_origin, facts.ram_origin + facts.ram_bytes + 1)
    for section in (".stack", ".state", ".arena"):
        found = image.section(section)
        assert found is not None and found.address in ram and found.address + found.nbytes in ram, section
    assert len(data) <= facts.flash_bytes
    kept = manifest(tmp_path / "fw")
    assert len(data) <= kept["snapshots"]["offset"] == facts.flash_bytes - 2 * kept["snapshots"]["bank_bytes"]
    assert kept["snapshots"]["bank_bytes"] and "snapshot_save" in image.symbols
    assert kept["budget"]["predicted"]["ram"]["data"] >= kept["budget"]["linked"]["ram"]["data"]
    if name == "esp32c3":
        assert data[:8] == struct.pack("<II", 0xAEDB041D, 0xAEDB041D)
        return
    start = 256 if name == "rpi_pico" else 0
    stack, reset = struct.unpack_from("<II", data, start)
    assert stack == image.symbols["stack_end"][0] and stack in ram
    assert reset == image.symbols["reset"][0] | 1
    assert facts.flash_origin <= reset < facts.flash_origin + facts.flash_bytes
    if name == "rpi_pico":
        assert struct.unpack_from("<I", data, 252)[0] == slow_checksum(data[:252])
    if name == "rpi_pico2":
        block = struct.pack("<5I", 0xFFFFDED3, 0x10210142, 0x000001FF, 0, 0xAB123579)
        assert 0 <= data.find(block) < 4096 and data.find(block) % 4 == 0


def slow_checksum(data: bytes) -> int:
    """CRC-32 with the polynomial 0x04C11DB7, bit by bit, most significant first."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value >> 31 else 0)) & 0xFFFFFFFF
    return value


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=8), st.integers(12, 31))
def test_whole_numbers_are_the_nearest_that_fit(factors: list[float], bits: int) -> None:
    weights, shift = whole_numbers(np.array(factors), bits)
    assert np.abs(weights).max() < 2 ** (bits - 1) + 1
    assert np.abs(weights * 2.0**-shift - factors).max() <= 2.0 ** -(shift + 1) * (1 + 1e-9)
    assert np.abs(weights).max() >= 2 ** (bits - 3)  # no bit is given away


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 96), st.integers(1, 3), st.integers(0, 2**32 - 1), st.integers(1, 15))
def test_layer_norm_in_integers_is_layer_norm(count: int, rows: int, seed: int, size: int) -> None:
    """Within two steps of its result, whatever the spread of the row; a row of equal elements gives the bias."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-(2**size), 2**size, (rows, count)).astype(np.int16)
    x[0] = x[0, 0]
    gain, bias, scale = rng.uniform(0.2, 2, count), rng.uniform(-1, 1, count), 2.0**-11
    both, shift = whole_numbers(np.stack([gain, bias]) / scale, 29)
    tensors = [Tensor(i, "call", "", shape, "int16") for i, shape in enumerate(((rows, count), (count,), (count,)))]
    target = Tensor(3, "call", "", (rows, count), "int16")
    out = Out("int16", 0, -32768, 32767)
    operation = norms.layer_norm(tensors[0], 0, tensors[1], tensors[2], target, count**2, shift, out)
    came = operation.run([x.reshape(-1), both[0], both[1]]).reshape(rows, count) * scale
    wide = x.astype(np.float64)
    wanted = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1) * gain + bias
    np.testing.assert_allclose(came, np.clip(wanted, -16, 16), atol=2 * scale + 2.0**-14 * count**0.5)


def test_states_survive_the_way_to_integers_and_back() -> None:
    scales, held = {"a": 0.01}, {"a": np.array([-32768, -1, 0, 32767], np.int16), "b": np.array([0.5], np.float32)}
    there = as_float(held, scales)
    assert all(np.array_equal(value, held[name]) for name, value in as_integers(there, scales).items())
    assert as_integers({"a": np.array([np.nan, 1e9])}, scales)["a"].tolist() == [0, 32767]
