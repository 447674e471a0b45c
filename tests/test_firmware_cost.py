"""Instructions before a build: what kernels do is counted right, prices are fitted right, and models that no price was
fitted to take what was predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.boards import board, names
from edgemem.cli.compile import prediction_lines
from edgemem.runtimes.firmware import cost
from tests.firmware import integer_spotter, manifest, needs

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
# Sizes and families that `bench.boards` does not fit to.
UNSEEN: Mapping[str, tuple[str, dict[str, object]]] = {
    "rwkv4": ("rwkv4", {"layers": 1, "width": 40, "vocab": 32}),
    "gru": ("kws-gru", {"layers": 1, "width": 24}),
}


def counted(folder: Path, path: Path, on: str) -> tuple[float, dict[str, Any]]:
    """Instructions of a step, and what was predicted."""
    from edgemem.runtimes.aot.compiler import compile_model

    needs(on)
    compile_model(path, board(on), folder, name="model")
    count, _ = edgemem.load(folder).instructions(4)  # type: ignore[attr-defined]
    return count, manifest(folder)["prediction"]


@pytest.mark.parametrize("on", ["mps2_an385", "mps2_an386", "mps3_an547"])
def test_integer_steps_take_what_was_predicted(tmp_path: Path, on: str) -> None:
    count, predicted = counted(tmp_path / "fw", integer_spotter(tmp_path), on)
    assert abs(predicted["instructions"] / count - 1) <= predicted["error"] < 0.5


@pytest.mark.parametrize(("on", "name"), [("mps2_an386", "rwkv4"), ("riscv32_virt", "gru")])
def test_float_steps_take_what_was_predicted(tmp_path: Path, on: str, name: str) -> None:
    from edgemem.export import export_model

    export_model(UNSEEN[name][0], tmp_path / "m.onnx", UNSEEN[name][1], seed=2)
    count, predicted = counted(tmp_path / "fw", tmp_path / "m.onnx", on)
    assert abs(predicted["instructions"] / count - 1) <= predicted["error"] < 0.5


def test_what_a_product_does_is_counted(tmp_path: Path) -> None:
    """A matrix-vector product of 24 x 16: every weight read and multiplied once, every input once for each panel."""
    import torch
    from torch import nn

    from edgemem.export import to_onnx
    from edgemem.runtimes.aot.compiler import generated
    from edgemem.runtimes.firmware import work

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(24, 16, bias=False)
            self.state = (edgemem.StateTensor("last", (16,)),)

        def step(self, x: Any, state: Any) -> Any:
            y = self.linear(x)
            return y + state["last"], {"last": y}

    to_onnx(Product(), torch.zeros(1, 1, 24), tmp_path / "p.onnx")
    program = generated(tmp_path / "p.onnx", board("mps2_an386"))
    calls = work.of_program(program)
    assert len(calls) == len(program.source.plan.calls)
    (product,) = [call for call in calls if call.get("float", 0) > 32]
    assert product["call"] == 1
    assert product["float"] in (2 * 24 * 16, 2 * 24 * 16 + 16)  # where the sum with the state is part of it
    assert 24 * 16 < product["load"] <= 24 * 16 * 1.5 + 32


def test_prices_are_found_and_none_is_below_nothing() -> None:
    from bench.boards import LEAST_ERROR, UNTRIED_ERROR, Counted, fitted, table

    rng, prices = np.random.default_rng(0), {"call": 20.0, "load": 2.0, "float": 1.5, "store": 0.0}
    rows = []
    for index in range(4):
        work = [{term: float(rng.integers(1, 500)) for term in prices} for _ in range(12)]
        kernels = [sum(prices[term] * count for term, count in call.items()) for call in work]
        row = {"board": "b", "instructions_per_step": sum(kernels) + 300.0}
        rows.append(Counted("key", f"model {index}", work, kernels, row))
    found = fitted(rows)
    assert found[cost.START] == pytest.approx(300.0, abs=200)  # pulled: steps say little of it
    for term, price in prices.items():
        assert found[term] == pytest.approx(price, abs=0.05), term
    assert table(rows)["error"] == LEAST_ERROR and table(rows)["left_out"]
    assert table(rows[:1])["error"] == UNTRIED_ERROR  # nobody was left out


def test_a_kernel_that_no_price_is_known_of_costs_what_most_do() -> None:
    prices = {"sum": 5.0, "sum.elements": 2.0, "other": 9.0, "other.elements": 7.0, "other.macs": 1.0}
    work = [{"sum": 1, "sum.elements": 10, "sum.macs": 99}, {"gelu": 1, "gelu.elements": 10, "gelu.macs": 20}]
    assert cost.instructions(work, prices) == 5 + 20 + 9 + 70 + 20
    entry = {"prices": prices, "error": 0.1, "error_of_unknown_kernels": 0.7}
    assert cost.error_of(work[:1], entry) == 0.1 and cost.error_of(work, entry) == 0.7


def test_a_board_whose_core_nobody_counts_on_gets_no_prediction() -> None:
    assert cost.predicted(board("esp32c3"), True, [], 0.02) is None
    assert prediction_lines(None) == ["a step: no emulated board has this core, so its instructions are not predicted"]
    real = {name: cost.key_of(board(name), True) for name in ("nucleo_f446re", "rpi_pico", "rpi_pico2")}
    assert set(real.values()) <= set(cost.tables()), real


def test_cycles_lie_between_what_the_tables_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 instructions, give or take a tenth, at 1 to 2 cycles: at two clocks, with waits for flash at the faster."""
    entry = {"low": 1.0, "high": 2.0, "bytes": 3.2, "source": "a table"}
    prices = {
        "error": 0.1, "error_of_unknown_kernels": 0.7, "board": "mps2_an386", "prices": {"start": 0.0, "sum": 4.0}
    }  # fmt: skip
    monkeypatch.setattr(cost, "timings", lambda: {"cortex-m4 integer": entry})
    monkeypatch.setattr(cost, "tables", lambda: {"cortex-m4 integer": prices})
    found = cost.predicted(board("nucleo_f446re"), True, [{"sum": 100.0}], 40e-6)
    assert found is not None and found.cycles == (round(400 / 1.1), round(800 / 0.9))
    fast, slow = found.times
    waits = 400 / 0.9 * 5 * 3.2 / 16
    assert fast.clock_hz == 180e6 and fast.seconds == pytest.approx((400 / 1.1 / 180e6, (800 / 0.9 + waits) / 180e6))
    assert slow.clock_hz == 16e6 and slow.seconds == pytest.approx((400 / 1.1 / 16e6, 800 / 0.9 / 16e6))
    assert fast.keeps_up is True and slow.keeps_up is None  # 0.57 and 1.4 of real time
    assert cost.time_of(16_000_000, 800, 900, 40e-6).keeps_up is False
    assert cost.time_of(16_000_000, 800, 900, None).load is None
    assert prediction_lines(cost.facts(found)) == [
        "a step: about 400 instructions (within 10%, by counts on mps2_an386), 364 to 889 cycles (a table)",
        "  at 180 MHz 2.02 µs to 7.41 µs, 5% to 19% of real time: it keeps up",
        "  at 16 MHz 22.7 µs to 55.6 µs, 57% to 139% of real time: it may be too slow "
        "(the clock that the firmware starts with)",
    ]
    assert cost.predicted(board("nrf52840_dk"), True, [], None).times[0].clock_hz == 64_000_000  # type: ignore[union-attr]


def test_every_core_that_is_counted_on_has_cycles_from_a_named_source() -> None:
    for key, entry in cost.timings().items():
        assert 0.5 <= entry["low"] <= entry["high"] <= 3, key
        assert 2 <= entry["bytes"] <= 4 and "Arm" in entry["source"], key
    kinds = {f"{board(name).core} integer" for name in names() if board(name).core.startswith("cortex-m")}
    assert kinds <= set(cost.timings())


def test_an_instruction_costs_what_its_core_s_table_says() -> None:
    from bench.cycles import Instruction, cycles

    def of(core: str, name: str, operands: str = "", taken: bool = False, before: str = "") -> tuple[int, int]:
        first, _, rest = before.partition(" ")
        return cycles(core, Instruction(2, name, operands), taken, Instruction(2, first, rest) if before else None)

    assert of("cortex-m0", "ldr") == (2, 2) and of("cortex-m0", "bne", taken=True) == (3, 3)
    assert of("cortex-m0", "bne") == (1, 1) and of("cortex-m0", "bl", taken=True) == (4, 4)
    assert of("cortex-m0", "pop", "{r4, r5, pc}", taken=True) == (7, 7)
    assert of("cortex-m0plus", "pop", "{r4, r5, pc}", taken=True) == (6, 6)
    assert of("cortex-m0", "ldr", "r0, [r1]", before="adds r1, #4") == (2, 2)
    assert of("cortex-m3", "ldr", "r0, [r1]", before="ldr r2, [r3]") == (1, 2) and of("cortex-m3", "mla") == (2, 2)
    assert of("cortex-m4", "mla") == (1, 1) and of("cortex-m4", "smlad") == (1, 1)
    assert of("cortex-m4", "sdiv") == (2, 12) and of("cortex-m4", "vldmia", "r1!, {s0-s3}") == (5, 5)
    assert of("cortex-m4", "vfma") == (3, 3) and of("cortex-m4", "bx", "lr", taken=True) == (2, 4)
    assert of("cortex-m4", "bic") == (1, 1) and of("cortex-m4", "bfi") == (1, 1)
    # An address from the instruction before comes a cycle late; so may a constant beside the code.
    assert of("cortex-m4", "ldr", "r0, [r1, #4]", before="add r1, r2, #4") == (2, 3)
    assert of("cortex-m4", "ldr", "r0, [r1, #4]", before="add r0, r2, #4") == (2, 2)
    assert of("cortex-m4", "ldr", "r0, [pc, #8]") == (2, 3) and of("cortex-m4", "str", "r0, [r1, r2]") == (1, 2)
    assert of("cortex-m4", "ldrd", "r0, r1, [r2]") == (3, 3) and of("cortex-m4", "vldr", "d0, [r2]") == (3, 3)
    assert of("cortex-m4", "vldr", "s0, [r2]") == (2, 2) and of("cortex-m4", "vstr", "s0, [r2]") == (1, 2)
    assert of("cortex-m4", "vmov", "s0, r1") == (1, 2) and of("cortex-m4", "vmov", "r0, r1, s0, s1") == (2, 2)
    assert of("cortex-m4", "vmov", "s0, s1") == (1, 1)
    assert of("cortex-m4", "ldr", "pc, [r0]", taken=True)[0] >= 5 and of("cortex-m4", "tbb", "[pc, r0]")[1] >= 6


def test_the_readme_says_what_was_counted() -> None:
    """Of the shipped spotters, from the result files beside the page."""
    import json
    import re

    root = Path(__file__).parents[1]
    rows = json.loads((root / "bench" / "results" / "boards.json").read_text())["rows"]
    spotters = json.loads((root / "bench" / "results" / "kws.json").read_text())
    text = " ".join((root / "README.md").read_text().split())

    def row(model: str, form: str, on: str) -> dict[str, Any]:
        return next(r for r in rows if (r["model"], r["form"], r["board"]) == (model, form, on))

    def millions(*key: str) -> float:
        return float(row(*key)["instructions_per_step"]) / 1e6

    large, small = row("kws-lmuformer", "w8a8", "mps2_an385"), row("kws-tiny", "w8a8", "microbit")
    found = re.search(r"takes (\d+) KiB of flash and (\d+) KiB of RAM on an M3", text)
    assert found is not None
    assert [int(n) for n in found.groups()] == [round(large["flash_bytes"] / 1024), round(large["ram_bytes"] / 1024)]
    found = re.search(r"takes ([\d.]+) million instructions on an M4F, ([\d.]+) on an M3 \(([\d.]+) in float\)", text)
    assert found is not None
    counted = [millions("kws-lmuformer", "w8a8", "mps2_an386"), millions("kws-lmuformer", "w8a8", "mps2_an385")]
    assert found.groups() == (f"{counted[0]:.2f}", f"{counted[1]:.2f}",
                              f"{millions('kws-lmuformer', 'float', 'mps2_an385'):.1f}")  # fmt: skip
    found = re.search(
        r"seventh of its weights and (\d+) % of clean .*: (\d+) KiB, ([\d.]+) KiB and ([\d.]+) million", text
    )
    assert found is not None
    assert found[1] == f"{100 * spotters['tiny']['accuracy']['clean']:.0f}"
    assert round(spotters["parameters"] / spotters["tiny"]["parameters"]) == 7
    assert found.groups()[1:] == (f"{small['flash_bytes'] / 1024:.0f}", f"{small['ram_bytes'] / 1024:.1f}",
                                  f"{small['instructions_per_step'] / 1e6:.2f}")  # fmt: skip
