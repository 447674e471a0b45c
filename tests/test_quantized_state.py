"""Narrow states: what collapses, what holds, and that the file does what the plan said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgemem import evaluation, load
from edgemem.errors import UsageError
from edgemem.modelfile import open_model
from edgemem.narrow import as_parent
from edgemem.program import Program
from edgemem.quant import quantize
from edgemem.quant.state import GOLDEN, POLICIES, Rounder
from edgemem.snapshot import fingerprint
from edgemem.tasks import Score
from edgemem.trial import poisoned
from edgemem.verify import verify
from tests.quantizing import output_error, sequence


def test_plain_int8_stands_still_and_the_other_policies_hold(slow: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = slow
    errors = {}
    for policy in POLICIES[1:]:
        out = tmp_path / f"{policy}.onnx"
        quantize(model, out, "w8", state=policy, calibrate=data, smallest=8, steps=50)
        errors[policy] = output_error(out, model)
    assert errors["i8"] > 0.4  # the mean hardly leaves 0
    assert errors["i8+dither"] < 0.06
    assert max(errors["i8+feedback"], errors["i16"], errors["f16"]) < 0.01


def test_auto_keeps_the_budget_and_writes_down_what_it_measured(slow: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = slow
    dithered = quantize(model, tmp_path / "d.onnx", "w8", state="auto", state_budget=0.1, calibrate=data, smallest=8)
    assert dithered.states == {"mean": "i8+dither"}
    report = quantize(model, tmp_path / "q.onnx", "w8", state="auto", state_budget=0.01, calibrate=data, smallest=8)
    assert report.states == {"mean": "i16"}
    found = open_model(tmp_path / "q.onnx").contract.quant["states"]
    assert isinstance(found, dict) and found["steps"] >= 5000
    assert found["relative_output_error"] <= 0.01 < found["alone"]["mean"]["i8"]
    assert report.state_bytes_after * 2 == report.state_bytes_before
    wide = quantize(model, tmp_path / "w.onnx", "w8", state="auto", state_budget=1e-9, calibrate=data, smallest=8)
    assert wide.states == {"mean": "f32"}


def test_auto_keeps_what_a_task_loses_within_the_budget(
    slow: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task whose metric is minus the distance to the float file: int8 stands still and is widened until it holds."""
    model, data = slow

    class Following:
        def refusal(self, contract: object) -> None:
            return None

        def evaluate(self, program: Program, limit: int | None = None, tick: object = None) -> Score:
            streams = load(model).stream(), program.stream()
            wanted, came = (np.stack([s.step(x) for x in sequence(300)]) for s in streams)
            return Score("closeness", 1.0 - float(np.abs(came - wanted).max() / np.abs(wanted).max()))

    monkeypatch.setattr(evaluation, "task", lambda name: Following())
    out, options = tmp_path / "q.onnx", {"calibrate": data, "smallest": 8, "steps": 20, "task": "following"}
    report = quantize(model, out, "w8", state="auto", state_budget=0.03, **options)  # type: ignore[arg-type]
    assert report.states["mean"] != "i8"
    found = open_model(out).contract.quant["states"]
    assert isinstance(found, dict) and found["task"] == "following" and found["steps"] >= 5000
    assert found["metric_loss"] <= 0.03 and found["relative_output_error"] > 0


def test_scores_know_which_way_is_worse() -> None:
    assert Score("accuracy", 0.9).worse_than(Score("accuracy", 1.0)) == pytest.approx(0.1)
    assert Score("bits_per_byte", 2.2).worse_than(Score("bits_per_byte", 2.0)) == pytest.approx(0.1)
    assert Score("token_error_rate", 0.1).worse_than(Score("token_error_rate", 0.2)) == 0.0


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_every_policy_verifies_resets_and_goes_on(slow: tuple[Path, Path], policy: str, tmp_path: Path) -> None:
    model, data = slow
    out = tmp_path / "q.onnx"
    quantize(model, out, "w8", state=policy, calibrate=data, smallest=8, steps=200)
    assert verify(out, 200, reference=model).ok
    assert all(a.tobytes() == b.tobytes() for _, a, b in poisoned(load(out), 8))
    x, program = sequence(40), load(out)
    whole, first, second = program.stream(), program.stream(), program.stream()
    wanted = [whole.step(row) for row in x]
    for row in x[:20]:
        first.step(row)
    first.snapshot(tmp_path / "s.safetensors")
    second.restore(tmp_path / "s.safetensors")
    np.testing.assert_array_equal([second.step(row) for row in x[20:]], wanted[20:])
    assert fingerprint(program.contract) != fingerprint(load(model).contract)


def test_the_widened_view_sets_and_gets_states(slow: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = slow
    quantize(model, tmp_path / "q.onnx", "w8", state="i8", calibrate=data, smallest=8, steps=20)
    view = as_parent(open_model(tmp_path / "q.onnx"), load(tmp_path / "q.onnx"), load(model))
    state = view.new_state()
    value = np.linspace(-0.5, 0.5, 8, dtype=np.float32)[None]
    state.set({"mean": value})
    assert state.get()["mean"].dtype == np.float32
    np.testing.assert_allclose(state.get()["mean"], value, atol=0.01)


def test_dither_rounds_up_as_often_as_the_remainder_says() -> None:
    rounder = Rounder("i8+dither", np.full(1, 127.0), (1, 1))
    rounded = [float(rounder(np.full((1, 1), 0.3, np.float32))[0, 0]) for _ in range(1000)]
    assert set(rounded) == {0.0, 1.0} and np.mean(rounded) == pytest.approx(0.3, abs=0.005)
    assert 0.6 < GOLDEN < 0.62


def test_wide_states_and_counters_stay_float32(models: Path, tmp_path: Path) -> None:
    report = quantize(models / "lm.onnx", tmp_path / "q.onnx", "w8", state="i8", smallest=8, steps=50)
    assert {p for n, p in report.states.items() if "wkv" in n} == {"f32"}
    assert {p for n, p in report.states.items() if n.endswith("shift")} == {"i8"}


def test_unknown_policies_are_refused(slow: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"unknown state policy 'i32' \(did you mean 'f32'\?\); there are f32, .* and auto"
    ):
        quantize(slow[0], tmp_path / "q.onnx", "w8", state="i32", calibrate=slow[1], smallest=8)
    with pytest.raises(UsageError, match=r"needs calibration data, and none ships"):
        quantize(slow[0], tmp_path / "q.onnx", "w8", state="i8", smallest=8)
