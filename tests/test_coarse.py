"""The proof of a quantized file can fail, however coarse its scheme is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgemem import coarse
from edgemem.compare import Comparison
from edgemem.errors import ContractError
from edgemem.modelfile import open_model
from edgemem.program import Array
from edgemem.quant import quantize
from edgemem.verify import verify
from tests.quantizing import Files, random_data

SCHEMES = ("f16", "w8", "w8a8-dynamic", "w8a8", "w4g32", "vq:dim=4,codes=8")
STEPS = 48
pytestmark = pytest.mark.usefixtures("short_calibration")


def zeroed(model: onnx.ModelProto, raw: str, output: str) -> None:
    """The output is zeros."""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    model.graph.node.append(helper.make_node("Mul", [raw, "nothing"], [output]))


def turned(model: onnx.ModelProto, raw: str, output: str) -> None:
    """The output has another sign: as large as it should be, and of no use."""
    model.graph.node.append(helper.make_node("Neg", [raw], [output]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_outputs_of_no_use_fail_the_proof_of_every_scheme(zoo: Files, scheme: str, tmp_path: Path) -> None:
    parent, path = zoo("lmu"), tmp_path / "q.onnx"
    quantize(parent, path, scheme, calibrate=random_data(parent, tmp_path / "x.npz"), smallest=8, steps=STEPS)
    assert verify(path, STEPS, reference=parent).ok
    output = open_model(path).contract.outputs[0].name
    for fault in (zeroed, turned):
        model = onnx.load(path)
        (made,) = [node for node in model.graph.node if output in node.output]
        made.output[list(made.output).index(output)] = "raw"
        fault(model, "raw", output)
        onnx.save(model, tmp_path / "bad.onnx")
        found = {stage.name: stage for stage in verify(tmp_path / "bad.onnx", STEPS, reference=parent).stages}
        assert not found[f"{scheme.partition(':')[0]} RMS"].holds, fault.__name__


def compared(reference: Array, value: Array, states: float) -> Comparison:
    """Outputs `y`, and a state whose error is `states` of its largest value."""
    found = Comparison()
    for step, (wanted, came) in enumerate(zip(reference, value, strict=True)):
        found.add(step, "y", wanted, came)
        found.add(step, "s_out", np.ones(1), np.full(1, 1 + states))
    return found


def test_a_largest_error_is_claimed_only_where_it_proves_something() -> None:
    y = np.random.default_rng(0).standard_normal((200, 4))
    assert coarse.tolerances(compared(y, 1.01 * y, 0.1), ["y"]) == {"relative_tolerance": 0.2}
    wide = coarse.tolerances(compared(y, 1.1 * y, 0.6), ["y"])  # of a state: 1.2 would let any output pass
    assert wide == {"rms_tolerance": pytest.approx(0.2)}
    assert coarse.tolerances(compared(y, -y, 0.6), ["y"]) == {"rms_tolerance": coarse.MOST}


@pytest.mark.parametrize(("factor", "ratio"), [(0.0, 1.0), (-1.0, 2.0), (0.5, 0.5)])
def test_rms_is_beside_the_outputs_own(factor: float, ratio: float) -> None:
    y = np.random.default_rng(1).standard_normal((50, 3))
    _, tensor = coarse.worst_output(compared(y, factor * y, 0.0), ["y"])
    assert tensor.rms_ratio == pytest.approx(ratio)
    assert (tensor.rms_error > coarse.rms_allowed(tensor, coarse.MOST)) == (ratio > coarse.MOST)


def test_nan_is_never_within_a_share() -> None:
    y = np.ones((3, 2))
    _, tensor = coarse.worst_output(compared(y, np.full_like(y, np.nan), 0.0), ["y"])
    assert tensor.rms_error > coarse.rms_allowed(tensor, coarse.MOST)


@pytest.mark.parametrize(
    ("quant", "wanted"),
    [
        ({"relative_tolerance": 0.2}, (0.2, coarse.MOST)),
        ({"rms_tolerance": 0.3}, (None, 0.3)),
        ({"rms_tolerance": 7.0}, (None, coarse.MOST)),
    ],
)
def test_what_a_contract_claims(quant: dict[str, float], wanted: tuple[float | None, float]) -> None:
    assert coarse.claimed(quant) == wanted


@pytest.mark.parametrize("quant", [{}, {"relative_tolerance": "much"}, {"rms_tolerance": float("nan")}])
def test_a_contract_that_claims_no_number_is_refused(quant: dict[str, object]) -> None:
    with pytest.raises(ContractError, match=r"contract field quant.* wanted, .* came"):
        coarse.claimed(quant)
