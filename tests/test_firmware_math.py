"""Functions that no kernel has a polynomial of: the board's math library links, fits the budget and computes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import edgemem
from edgemem.export import to_onnx
from edgemem.runtimes.firmware.budget import MATH
from edgemem.trial import trial
from tests.aot_programs import compiled
from tests.firmware import manifest, needs


class Functions(nn.Module):
    """A little of every function that ONNX has and a step may use, on eight features."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.state = (edgemem.StateTensor("last", (8,)),)

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.linear(x) + 0.5 * state["last"]
        inside, above = 0.9 * torch.tanh(y), y.abs() + 0.1
        waves = torch.sin(3 * y) + torch.cos(50 * y) + torch.tan(inside)
        inverses = torch.asin(inside) + torch.acos(inside) + torch.atan(y) + torch.atanh(inside) + torch.asinh(y)
        hyperbolic = torch.sinh(inside) + torch.cosh(inside) + torch.acosh(1 + above)
        powers = torch.pow(above, inside) + torch.pow(above, 1.7) + torch.exp(inside) + torch.log(above)
        parts = torch.floor(y) + torch.ceil(y) + torch.trunc(y) + torch.round(y) + torch.fmod(y, 0.7)
        return waves + inverses + hyperbolic + 0.1 * powers + parts, {"last": inside}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("math") / "m.onnx"
    to_onnx(Functions(), torch.zeros(1, 1, 8), path)
    return path


@pytest.mark.parametrize("on", ["microbit", "mps2_an386", "riscv32_virt", "host"])
def test_every_function_links_and_computes(on: str, model: Path, tmp_path: Path) -> None:
    if on != "host":
        needs(on)
    compiled(model, tmp_path / "fw", on)
    program = edgemem.load(tmp_path / "fw")
    found = trial(edgemem.load(model), program, 16)
    assert found.holds, found.first_divergence
    if on != "host":
        within_the_budget(tmp_path / "fw", program)


def within_the_budget(folder: Path, program: Any) -> None:
    """The stack and the code that the math library takes are predicted, and no C library comes with it."""
    state = program.new_state()
    program.step({program.contract.inputs[0].name: torch.ones(1, 1, 8).numpy()}, state)
    facts = manifest(folder)["budget"]
    assert 0 < state.stack_bytes() <= facts["predicted"]["ram"]["stack"]
    assert facts["linked"]["ram"]["data"] <= facts["predicted"]["ram"]["data"]
    assert 0.9 < facts["predicted"]["flash"]["code"] / facts["linked"]["flash"]["code"] < 1.5
    text = (folder / "firmware.map").read_text()
    assert not re.search(r"\b(malloc|_sbrk|printf|impure_data)\b", text)


def test_functions_of_the_math_library_are_known_by_name() -> None:
    assert all(MATH.fullmatch(name) for name in ("sinf", "acoshf", "powf", "fmodf", "atan2f"))
    assert not any(MATH.fullmatch(name) for name in ("sqrtf", "model_k3", "sin", "memcpy"))
