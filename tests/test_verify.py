"""`verify` holds for what export wrote, and fails, by name, for every fault that is planted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem import modelfile
from edgemem.compare import Comparison
from edgemem.errors import ContractError, UsageError
from edgemem.program import Array, Program, StateBlock
from edgemem.verify import Report, verify

STEPS = 100


class Faulty(Program):
    """A program that computes right but for one fault."""

    runtime = "faulty"

    def __init__(self, path: Path) -> None:
        self.right = edgemem.load(path)
        self.contract = self.right.contract

    def new_state(self) -> StateBlock:
        return self.right.new_state()

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        return self.right.step(inputs, state)


class StaleState(Faulty):
    """Every tenth step leaves the state as it was before."""

    count = 0

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        self.count += 1
        before = state.get()
        outputs = {name: array.copy() for name, array in self.right.step(inputs, state).items()}
        if self.count % 10 == 0:
            state.set(before)
        return outputs


class OneStepDelay(Faulty):
    """The outputs come one step late."""

    last: dict[str, Array] | None = None

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        now = {name: array.copy() for name, array in self.right.step(inputs, state).items()}
        late, self.last = self.last or {name: np.zeros_like(a) for name, a in now.items()}, now
        return late


class ForgetfulReset(Faulty):
    """Reset leaves one state as it is."""

    def new_state(self) -> StateBlock:
        state = self.right.new_state()
        reset, kept = state.reset, next(iter(state.get()))

        def forgetful() -> None:
            before = state.get()[kept]
            reset()
            state.set({**state.get(), kept: before})

        state.reset = forgetful  # type: ignore[method-assign]
        return state


def failing(report: Report) -> dict[str, str | None]:
    return {stage.name: stage.first for stage in report.stages if not stage.holds}


@pytest.mark.parametrize("name", ["lmu.onnx", "lmu4.onnx", "lm.onnx"])
def test_an_exported_file_holds(models: Path, name: str) -> None:
    report = verify(models / name, STEPS)
    assert report.ok
    assert [stage.name for stage in report.stages] == ["weights", "torch", "ort", "ort reset"]
    assert all(stage.max_abs_error <= stage.tolerance for stage in report.stages)


@pytest.mark.parametrize(
    ("fault", "stage"), [(StaleState, "faulty"), (OneStepDelay, "faulty"), (ForgetfulReset, "faulty reset")]
)
def test_a_planted_fault_fails_by_name(models: Path, fault: type[Faulty], stage: str) -> None:
    path = models / "lmu.onnx"
    report = verify(path, STEPS, runtimes=(), programs={"faulty": fault(path)})
    found = failing(report)
    assert stage in found and not report.ok
    names = [
        *(f"{s.name}_out" for s in edgemem.load(path).contract.states),
        edgemem.load(path).contract.outputs[0].name,
    ]
    assert found[stage] is not None and found[stage].split()[0] in names


def test_a_planted_weight_fails_by_name(models: Path, tmp_path: Path) -> None:
    model = modelfile.open_model(models / "lmu.onnx")
    name = max(model.contract.model.tensors, key=lambda n: n.endswith("weight"))
    stored = model.onnx.initializers.get(name) or model.onnx.initializers[name + ".T"]
    data = bytearray((models / "lmu.onnx").read_bytes())
    place = data.find(bytes(stored.data))
    data[place : place + 4] = np.float32(3.0).tobytes()
    (tmp_path / "w.onnx").write_bytes(data)
    report = verify(tmp_path / "w.onnx", 8)
    assert failing(report) == {"weights": f"{name}, which differs from its digest"}
    assert str(report.stages[0]) == "1 tensor altered, none may be"


def test_a_program_with_another_weight_fails_by_name(models: Path, tmp_path: Path) -> None:
    """The file is right; what runs it read one number of it wrong."""
    model = modelfile.open_model(models / "lmu.onnx")
    data = bytearray((models / "lmu.onnx").read_bytes())
    place = data.find(bytes(model.onnx.initializers["head.bias"].data))
    data[place : place + 4] = np.float32(0.5).tobytes()
    (tmp_path / "w.onnx").write_bytes(data)
    report = verify(models / "lmu.onnx", STEPS, runtimes=(), programs={"faulty": edgemem.load(tmp_path / "w.onnx")})
    assert failing(report) == {"faulty": "y at step 0"}


def test_a_parent_file_can_be_the_reference(models: Path) -> None:
    report = verify(models / "lmu.onnx", STEPS, reference=models / "lmu.onnx")
    assert report.ok and [stage.reference for stage in report.stages] == ["ort", "fresh stream"]
    with pytest.raises(ContractError, match="is not the parent"):
        verify(models / "lmu.onnx", STEPS, reference=models / "lm.onnx")


def test_a_users_module_is_shown_as_recorded_or_compared_when_given(tmp_path: Path) -> None:
    import torch

    from edgemem.export import to_onnx
    from tests.cell import EXAMPLE, Cell

    module = Cell()
    to_onnx(module, EXAMPLE, tmp_path / "m.onnx")
    report = verify(tmp_path / "m.onnx", STEPS)
    assert report.ok
    assert [(s.name, s.reference) for s in report.stages] == [
        ("onnx", "torch (recorded)"),
        ("ort reset", "fresh stream"),
    ]
    assert [s.name for s in verify(tmp_path / "m.onnx", STEPS, module=module).stages] == ["torch", "ort", "ort reset"]
    with torch.no_grad():
        module.mix.bias += 0.1
    assert "ort" in failing(verify(tmp_path / "m.onnx", STEPS, module=module))


def test_steps_must_be_there(models: Path) -> None:
    with pytest.raises(UsageError, match="--steps must be at least 1, got 0"):
        verify(models / "lmu.onnx", 0)


def test_a_comparison_names_the_first_divergence_and_its_drift() -> None:
    found = Comparison()
    for step in range(2000):
        found.add(step, "y", np.ones(3), np.ones(3) + 1e-8 * (step + 0.5))
        found.add(step, "state_out", np.ones(2), np.ones(2))
    assert found.first_divergence == "y at step 1000"  # 1e-5 of 1 is allowed
    assert not found.holds
    np.testing.assert_allclose(found.drift_per_1000_steps, 1e-5, rtol=1e-6)
    np.testing.assert_allclose(found.max_abs_error, 1999.5e-8, rtol=1e-6)


def test_a_stand_in_for_infinity_does_not_widen_the_tolerance() -> None:
    """The exponent of an empty sum is -1e30: 1e-5 of that would allow anything."""
    found = Comparison()
    found.add(0, "wkv_max_out", np.array([-1e30, 1.0]), np.array([-1e30, 1.0]))
    found.add(1, "wkv_max_out", np.array([2.0, 1.0]), np.array([2.1, 1.0]))
    assert found.first_divergence == "wkv_max_out at step 1"


@pytest.mark.parametrize("kind", ["NaN", "infinity"])
def test_a_reference_that_gives_no_numbers_fails_by_name(kind: str, tmp_path: Path) -> None:
    """Two NaN at one place are no proof of anything."""
    import torch

    from edgemem.export import to_onnx
    from tests.cell import EXAMPLE, Cell

    to_onnx(Cell(), EXAMPLE, tmp_path / "m.onnx")
    module = Cell()
    with torch.no_grad():
        module.mix.bias.fill_(float("nan"))
    if kind == "infinity":
        module.mix.register_forward_hook(lambda *_: torch.full((1, 4), float("inf")))
        module.step = lambda x, state: (module.mix(torch.cat([x, state["hidden"]], dim=-1)), state)  # type: ignore[method-assign]
    report = verify(tmp_path / "m.onnx", STEPS, module=module)
    found = next(stage for stage in report.stages if stage.name == "ort")
    assert not found.holds and found.first == f"{kind} in y at step 0"
    assert f"torch itself gives {kind} in y at step 0" in str(found)


def test_nan_is_a_difference_unless_both_have_it() -> None:
    found = Comparison()
    found.add(0, "y", np.array([np.nan, 1.0]), np.array([np.nan, 1.0]))
    assert found.holds
    found.add(1, "y", np.array([1.0]), np.array([np.nan]))
    assert not found.holds and np.isfinite(found.max_abs_error)
