"""Vector codes on a device: codes and codebooks in flash as they are in the file, and the bytes of this machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

import edgemem
from edgemem.boards import board
from edgemem.modelfile import open_model
from edgemem.trial import trial
from tests.firmware import manifest, needs

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
DIM, CODES = 4, 16
WIDTH = {"rwkv4": {"layers": 1, "width": 32, "vocab": 64}, "kws-lmuformer": {"layers": 1, "width": 24, "features": 16}}
# A core that rounds a product and a sum apart, one that rounds them once, one without floats.
CASES = (("mps2_an386", "rwkv4"), ("mps2_an500", "kws-lmuformer"), ("mps2_an385", "rwkv4"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models in vector codes, two codebooks each where `rwkv4`."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    folder, made = tmp_path_factory.mktemp("vq"), {}
    for name, scheme in (("rwkv4", "vq:dim=4,codes=16,residual=2"), ("kws-lmuformer", "vq:dim=4,codes=16")):
        export_model(name, folder / f"{name}.onnx", WIDTH[name], seed=1)
        made[name] = folder / f"{name}8.onnx"
        quantize(folder / f"{name}.onnx", made[name], scheme, smallest=512, steps=8)
    return made


@pytest.mark.parametrize(("on", "name"), CASES)
def test_codes_are_looked_up_in_flash(files: dict[str, Path], tmp_path: Path, on: str, name: str) -> None:
    """Every product that the scheme coded keeps its codes, books and scales and nothing else; the outputs agree."""
    from edgemem.runtimes.aot.compiler import compile_model
    from edgemem.runtimes.firmware.proof import first_difference
    from edgemem.runtimes.firmware.twin import twin

    needs(on)
    compile_model(files[name], board(on), tmp_path / "fw", name="model")
    facts, program = manifest(tmp_path / "fw"), edgemem.load(tmp_path / "fw")
    books = 2 if name == "rwkv4" else 1
    coded = [row["shape"] for row in facts["products"] if row["kernel"] == "vq"]
    calls = [call for call in facts["calls"] if "product_vq" in call["symbol"]]
    assert len(coded) == len(calls) >= 4
    for (inputs, outputs), call in zip(sorted(coded), sorted(calls, key=lambda c: c["weight_bytes"]), strict=False):
        assert call["weight_bytes"] < 2 * inputs * outputs  # half of its floats, whatever follows in the kernel
    least = sum(books * (i * o // DIM + CODES * DIM * 4) + 4 * o for i, o in coded)
    held = sum(call["weight_bytes"] for call in calls)
    biases = sum(4 * 2 * o for _, o in coded)  # of what follows a product in its kernel, and of a last panel
    assert least <= held <= least + biases + 64 * len(calls)
    assert facts["bytes"]["weights"] < 1.1 * open_model(files[name]).onnx.weight_bytes + 4096
    assert facts["budget"]["linked"]["flash"]["weights"] == facts["bytes"]["weights"]
    assert facts["bytes"]["arena"] < 4 * min(i * o for i, o in coded)  # no matrix is decoded there
    found = trial(edgemem.load(files[name]), program, 24)
    assert found.holds, found.first_divergence
    host = twin(files[name], board(on))
    if host is None:
        pytest.skip(f"{platform.machine()} cannot round as {on} does")
    assert first_difference(program, host, 24, 0) is None


def test_this_machine_knows_how_a_core_rounds() -> None:
    from edgemem.runtimes.aot.machine import machine
    from edgemem.runtimes.firmware.twin import fuses

    rounds = {name: fuses(machine(board(name))) for name in ("mps2_an385", "mps2_an386", "mps2_an500", "riscv32_virt")}
    assert rounds == {"mps2_an385": False, "mps2_an386": False, "mps2_an500": True, "riscv32_virt": True}


def test_a_twin_that_rounds_otherwise_gives_other_bytes(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison is not vacuous: products and sums rounded once here and twice there show at once."""
    from edgemem.runtimes.aot.compiler import compile_model
    from edgemem.runtimes.firmware import twin as twins
    from edgemem.runtimes.firmware.proof import first_difference

    needs("mps2_an500")
    compile_model(files["kws-lmuformer"], board("mps2_an500"), tmp_path / "fw", name="model")
    monkeypatch.setattr(twins, "FUSING", twins.PLAIN)
    host = twins.twin(files["kws-lmuformer"], board("mps2_an500"))
    if host is None:
        pytest.skip(f"{platform.machine()} cannot round as mps2_an500 does")
    assert first_difference(edgemem.load(tmp_path / "fw"), host, 24, 0) is not None
