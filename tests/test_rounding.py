"""Rounding that a module makes larger widens what is allowed of its outputs; faults and chaos do not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgemem.compare import MARGIN, MOST, RELATIVE
from edgemem.errors import ExportError
from edgemem.export import export_model, to_onnx
from edgemem.modelfile import open_model
from edgemem.program import load
from edgemem.reference import TorchProgram, rebuilt
from edgemem.rounding import rounding_errors
from edgemem.state import StateTensor
from edgemem.trial import trial
from edgemem.verify import verify
from edgemem.weights import stored_tensors
from tests import cell
from tests.cell import Cell

HALF_PLACE = 2.0**-11  # half the distance of neighbours between 8,192 and 16,384 in float32
EXAMPLE = torch.zeros(1, 1, 1)
# One slot of three numbers that attends sharply and is normalised when it nearly vanishes: a step may make an error
# five times as large.
SHARP: dict[str, object] = {
    "heads": 1,
    "width": 3,
    "layers": 1,
    "slots": 1,
    "segment": 2,
    "temperature": 0.25,
    "features": 3,
}


class Rounding(nn.Module):
    """y = x + 1e4 - 1e4, which loses what lies behind the last place of 1e4; remembers x."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(1e4))
        self.state = (StateTensor("last", (1,)),)

    def step(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return (x + 0.5 * state["last"] + self.large) - self.large, {"last": x * 1.0}


class InFloat32(Rounding):
    """Has a tensor that is float32 whatever the module is."""

    def step(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return x @ torch.ones(1, 1) + self.large, {"last": x + state["last"]}


class Ricker(nn.Module):
    """h <- h exp(3 (1 - h)) + x / 1e9, which doubles errors in two steps and where exponentials round apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(3.0))
        self.state = (StateTensor("h", (8,), start=0.3, low=0.1, high=0.9),)

    def step(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        h = state["h"] * torch.exp(self.rate * (1 - state["h"])) + 1e-9 * x
        return h, {"h": h}


def program_of(module: nn.Module, folder: Path, example: Tensor = EXAMPLE) -> TorchProgram:
    """The module as a program, with the contract of its file."""
    to_onnx(module, example, folder / "m.onnx", certified_steps=2)
    return TorchProgram(module, open_model(folder / "m.onnx").contract)


def test_the_error_is_what_float32_loses(tmp_path: Path) -> None:
    program = program_of(Rounding(), tmp_path)
    errors = rounding_errors(program, program.contract, 400)
    assert 0.8 * HALF_PLACE < errors["y"] <= 1.01 * HALF_PLACE
    assert 0 < errors["last_out"] <= 2.0**-21  # inputs below 4, moved by one place


def test_a_module_that_cannot_run_in_float64_has_no_such_errors(tmp_path: Path) -> None:
    program = program_of(InFloat32(), tmp_path)
    assert rounding_errors(program, program.contract, 4) == {}


def test_a_fault_is_measured_by_the_reference_alone(tmp_path: Path) -> None:
    """A wrong weight of a module that does not make errors larger: 1e-5, as ever."""
    program = program_of(Cell(), tmp_path, cell.EXAMPLE)
    wrong = copy.deepcopy(program.module)
    with torch.no_grad():
        next(wrong.parameters()).mul_(1 + 1e-4)
    found = trial(program, TorchProgram(wrong, program.contract), 64)
    assert not found.holds and found.tolerance == RELATIVE * found.worst[1].max_reference
    assert found.worst[1].rounding > 0


def test_chaos_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"differs from torch by .* is allowed \(rounding moves torch itself by "):
        to_onnx(Ricker(), torch.zeros(1, 1, 8), tmp_path / "m.onnx", certified_steps=128)
    assert not (tmp_path / "m.onnx").exists()


def test_a_sharp_memformer_exports_and_a_wrong_weight_in_it_is_found(tmp_path: Path) -> None:
    export_model("memformer", tmp_path / "m.onnx", SHARP, seed=0)
    model = open_model(tmp_path / "m.onnx")
    assert verify(tmp_path / "m.onnx", 128).ok
    tensors = dict(stored_tensors(model))
    tensors["encoder.write.value.weight"] = tensors["encoder.write.value.weight"] * (1 + 2 * MOST)
    found = trial(rebuilt(model, tensors), load(tmp_path / "m.onnx"), 256)
    assert not found.holds
    assert found.worst[1].tolerance <= MOST * found.worst[1].max_reference
    assert MARGIN * found.worst[1].rounding > RELATIVE * found.worst[1].max_reference
