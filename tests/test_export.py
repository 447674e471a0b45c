"""Export: standard step graphs that compute what torch computes, the same bytes every time, or nothing at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import edgemem
from edgemem import modelfile
from edgemem.errors import ExportError
from edgemem.export import export_model, to_onnx
from edgemem.export.graph import REFUSED
from edgemem.models import build_model
from edgemem.module import StreamingModule, scan, start_state
from edgemem.state import Port, StateTensor
from edgemem.weights import altered_tensors, stored_tensors
from tests import zoo
from tests.cell import EXAMPLE, Cell, State


class Learned(Cell):
    """Starts from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(4))
        self.state = (StateTensor("hidden", (4,), start="first"),)


class Delay(nn.Module):
    """Outputs that are states as they came, and a state that is an input as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.state = (StateTensor("older", (3,)), StateTensor("old", (3,)))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return state["older"], {"older": state["old"], "old": x}


class TwoOutputs(StreamingModule):
    """Tokens and features in, two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.state = (StateTensor("sum", (3,)),)
        self.inputs = (Port("token", (), "int64", "tokens", low=0, high=4), Port("x", (3,)))
        self.outputs = (Port("y", (3,), role="values"), Port("z", (1,), role="values"))

    def step(self, x: dict[str, Tensor], state: State) -> tuple[Any, State]:  # type: ignore[override]
        total = 0.9 * state["sum"] + x["x"] * self.table(x["token"])
        return {"y": total, "z": total.sum(dim=-1, keepdim=True)}, {"sum": total}

    def chunk(self, x: dict[str, Tensor], state: State, valid: Tensor | None = None) -> tuple[Any, State]:  # type: ignore[override]
        y, state = self.step({name: u[:, 0] for name, u in x.items()}, state)
        return {name: u[:, None] for name, u in y.items()}, state


@pytest.mark.parametrize("name", zoo.NAMES)
@pytest.mark.parametrize("chunk", [1, 3])
def test_every_model_becomes_a_standard_graph(name: str, chunk: int, tmp_path: Path) -> None:
    contract = export_model(name, tmp_path / "m.onnx", zoo.SMALL.get(name, {}), seed=1, chunk=chunk)
    model = onnx.load(tmp_path / "m.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert not {node.op_type for node in model.graph.node} & REFUSED
    assert contract.parity[-1].steps >= 256 and contract.parity[-1].max_abs_error <= contract.parity[-1].tolerance
    opened = modelfile.open_model(tmp_path / "m.onnx")
    assert opened.contract == contract
    assert altered_tensors(opened, stored_tensors(opened)) == []
    module, _ = build_model(name, zoo.SMALL.get(name, {}), seed=1)
    tensors = stored_tensors(opened)
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(tensors[key], value.numpy())
    for key, value in start_state(module).items():
        np.testing.assert_array_equal(modelfile.start_values(opened)[key], value.detach().numpy())
    assert not model.doc_string and all(not node.doc_string and not node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("name", ["rwkv4", "lm-memformer"])
def test_two_exports_are_the_same_bytes_in_any_process(name: str, tmp_path: Path) -> None:
    export_model(name, tmp_path / "a.onnx", zoo.SMALL[name], seed=1)
    code = (
        "from edgemem.export import export_model; import sys; "
        f"export_model({name!r}, sys.argv[1], {zoo.SMALL[name]!r}, seed=1)"
    )
    environment = {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "b.onnx"], check=True, env=environment, capture_output=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize("name", ["rwkv4", "lmu", "kws-lmuformer", "lm-memformer", "folding"])
def test_chunk_sizes_exchange_state_in_mid_stream(name: str, tmp_path: Path) -> None:
    streams = []
    for chunk in (1, 4):
        export_model(name, tmp_path / f"{chunk}.onnx", zoo.SMALL[name], seed=1, chunk=chunk)
        streams.append(edgemem.load(tmp_path / f"{chunk}.onnx").stream())
    module, _ = build_model(name, zoo.SMALL[name], seed=1)
    length = module.segment_length
    x = zoo.inputs(module, 1, 12 * length)
    whole = scan(module, x)[0][0].detach().numpy()
    one, four = streams
    rows = [one.push(x[0, : 3 * length].numpy()).values]
    four.restore(one.snapshot())
    rows.append(four.push(x[0, 3 * length : 9 * length].numpy()).values)
    one.restore(four.snapshot())  # two segments of it wait for a chunk of four
    rows.append(one.push(x[0, 9 * length :].numpy()).values)
    rows.append(one.flush().values)
    np.testing.assert_allclose(np.concatenate(rows), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [Cell(), Learned(), Delay()])
@pytest.mark.parametrize(("chunk", "batch"), [(1, 1), (3, 2)])
def test_a_users_module_needs_only_state_and_step(module: nn.Module, chunk: int, batch: int, tmp_path: Path) -> None:
    to_onnx(module, EXAMPLE, tmp_path / "m.onnx", chunk=chunk, batch=batch)
    x = torch.randn(batch, 3 * chunk + (chunk > 1), 3)
    stream = edgemem.load(tmp_path / "m.onnx").stream()
    rows = [rows.values for rows in stream.run([x[0].numpy() if batch == 1 else x.numpy()])]
    y = np.concatenate(rows, axis=0 if batch == 1 else 1)
    wanted = scan(module, x)[0].detach().numpy()
    np.testing.assert_allclose(y, wanted[0] if batch == 1 else wanted, rtol=1e-5, atol=1e-6)


def test_parameters_that_are_zero_or_one_stay_in_the_file(tmp_path: Path) -> None:
    cell = Cell()
    nn.init.zeros_(cell.mix.bias)
    to_onnx(cell, EXAMPLE, tmp_path / "m.onnx")
    opened = modelfile.open_model(tmp_path / "m.onnx")
    np.testing.assert_array_equal(stored_tensors(opened)["mix.bias"], np.zeros(4, np.float32))


def test_several_inputs_and_outputs_go_by_name(tmp_path: Path) -> None:
    contract = to_onnx(TwoOutputs(), None, tmp_path / "m.onnx")
    assert [port.name for port in contract.inputs] == ["token", "x"]
    stream = edgemem.load(tmp_path / "m.onnx").stream()
    y = stream.step({"token": np.array([2]), "x": np.ones(3, np.float32)[None]})
    assert set(y) == {"y", "z"} and y["y"].shape == (1, 3)


def test_weights_beyond_the_limit_lie_beside_the_model(tmp_path: Path) -> None:
    module = Cell(64)
    to_onnx(module, EXAMPLE, tmp_path / "m.onnx")
    contract = to_onnx(module, EXAMPLE, tmp_path / "e.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.onnx", "m.onnx"]
    again = to_onnx(module, EXAMPLE, tmp_path / "e.onnx", external_from=1000)
    assert again.model.digest == contract.model.digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.onnx", "e.onnx.data", "m.onnx"]
    x = np.ones((5, 3), np.float32)
    a, b = (edgemem.load(tmp_path / name).stream().push(x).values for name in ("m.onnx", "e.onnx"))
    np.testing.assert_array_equal(a, b)


class KeepsItsState(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self.last = getattr(self, "last", torch.zeros(4)) + 1.0
        return super().step(x, state)


class NoState(nn.Module):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return x, {}


class KeepsAList(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.past: list[Tensor] = []

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self.past.append(x)
        y, state = super().step(x, state)
        return y + self.past[-1].sum(), state


class Counts(Cell):
    """Its part counts in a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.mix.steps = 0

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        self.mix.steps += 1
        y, state = super().step(x, state)
        return y * self.mix.steps, state


class NoStep(nn.Module):
    state = (StateTensor("hidden", (3,)),)

    def forward(self, x: Tensor) -> Tensor:
        return x


class LosesState(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return super().step(x, state)[0], {}


class GrowsState(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, _ = super().step(x, state)
        return y, {"hidden": torch.cat([y, y], dim=-1)}


class Branches(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().step(x, state)
        return (y if y.sum() > 0 else -y), state


class FourierPart(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x).real


class Fourier(Cell):
    def __init__(self) -> None:
        super().__init__()
        self.spectrum = FourierPart()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().step(x, state)
        return y + self.spectrum(y).sum(dim=-1, keepdim=True), state


class Part(nn.Module):
    """Scales, then applies one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale)


class With(Cell):
    """A function two modules deep."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Part(function)])

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().step(x, state)
        return self.blocks[0](y), state


class Noisy(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().step(x, state)
        return y + torch.rand_like(y), state


class LooksAhead(Cell):
    def chunk(self, x: Tensor, state: State, valid: Tensor | None = None) -> tuple[Tensor, State]:
        y = self.mix(torch.cat([x.flip(1), state["hidden"][:, None].expand(-1, x.shape[1], -1)], dim=-1))
        return y, {"hidden": y[:, -1]}


class Writes(Cell):
    """Keeps its state by writing into it."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, state)
        state["hidden"].mul_(0.5)  # of zeros, at first: nothing to be seen
        return y, {"hidden": state["hidden"] + after["hidden"]}


class WritesItsInput(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        x[:, 0] = 1.0
        return super().step(x, state)


class ReadsAnother(Cell):
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return super().step(x, {"hidden": state["memory"]})


class OneResult(Cell):
    def step(self, x: Tensor, state: State) -> Tensor:  # type: ignore[override]
        return super().step(x, state)[0]


class Logarithm(Cell):
    """Of a number with a sign: NaN from the first step on."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = super().step(x, state)
        return torch.log(y), state


class Grows(Cell):
    """Twice as large every step: infinite after 128."""

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden = 2.0 * state["hidden"] + self.mix(torch.cat([x, x, x[:, :1]], dim=-1)).abs()
        return torch.tanh(hidden), {"hidden": hidden}


class Masks(Cell):
    """The score of a place that was never filled is -infinity, in an output and in a state."""

    def __init__(self, start: float = -1e30) -> None:
        super().__init__()
        self.state = (*self.state, StateTensor("scores", (3,), start=start))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = super().step(x, state)
        scores = torch.cat([state["scores"][:, 1:], y[:, :1]], dim=-1)
        scores = torch.where(scores < -1e29, -float("inf"), scores)
        return torch.cat([torch.softmax(scores, dim=-1), scores], dim=-1), {**after, "scores": scores}


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Writes(), "state hidden is modified in place by Writes .*; do not modify states or inputs: compute a new"),
        (WritesItsInput(), "input x is modified in place by WritesItsInput"),
        (ReadsAnother(), r"ReadsAnother.step reads 'memory', which is no state of it; declared are hidden: correct"),
        (OneResult(), r"OneResult.step returns Tensor; the output and the new states by name were wanted: `return y"),
        (Masks(-float("inf")), "state scores starts from -inf, and a start value is finite; .* -1e30"),
        (Logarithm(), "Logarithm itself gives NaN in y at step 0, from finite inputs.*keep logarithms, roots"),
        (Grows(), r"Grows itself gives infinity in hidden_out at step 1\d\d, from finite inputs"),
        (With(lambda x: torch.from_numpy(x.numpy())), r"blocks.0 \(test_export.py:\d+\) leaves torch by .numpy\(\)"),
        (KeepsItsState(), "last of KeepsItsState changed during a step"),
        (KeepsAList(), "past of KeepsAList changed during a step: state in an attribute is frozen"),
        (Counts(), "mix.steps of Counts changed during a step"),
        (NoState(), "NoState declares no state"),
        (NoStep(), r"NoStep has no step\(x, state\)"),
        (LosesState(), "state hidden is declared but not returned"),
        (GrowsState(), r"state hidden: torch.float32\[1, 4\] goes in, torch.float32\[1, 8\] comes out"),
        (Branches(), r"Branches \(test_export.py:\d+\) depends on its data.*torch.where"),
        (With(lambda x: x if x.sum() > 0 else -x), r"blocks.0 \(test_export.py:\d+\) depends on its data.*torch.where"),
        (Fourier(), "spectrum: operator aten.fft_rfft.*time domain"),
        (Noisy(), "operator aten.rand.*as an input"),
        (With(torch.special.i0e), "blocks.0: operator prims.bessel_i0e.default has no form in standard ONNX; write"),
        (With(lambda x: x + x[x > 0].sum()), "blocks.0: operator aten.index.Tensor.*torch.where with a mask"),
        (With(lambda x: nn.functional.dropout(x, 0.5, True)), "blocks.0: operator aten.dropout.*evaluation mode"),
        (LooksAhead(), "changes by .* 1 frame after it"),
        (Cell().double(), "must be float32 to be exported"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(
    module: nn.Module, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=message):
        to_onnx(module, EXAMPLE, tmp_path / "m.onnx")
    assert "def forward" not in "".join(capfd.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_infinity_that_masks_is_a_number(tmp_path: Path) -> None:
    assert to_onnx(Masks(), EXAMPLE, tmp_path / "m.onnx").parity[-1].steps == 256


@pytest.mark.parametrize("module", [Branches(), With(lambda x: x * float(x.max().item()))])
def test_words_of_torch_for_data_are_not_the_users(module: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="an `if`, a number or a shape is made of the values of a tensor") as caught:
        to_onnx(module, EXAMPLE, tmp_path / "m.onnx")
    assert not any(word in str(caught.value) for word in ("guard", "unhinted", "u0", "zuf"))


def test_examples_that_do_not_say_enough_are_refused(tmp_path: Path) -> None:
    for example, message in (
        (None, "declares no inputs"),
        (torch.zeros(3), r"\[3\] came"),
        (
            np.zeros((1, 1, 3), np.float32),
            r"example x: a torch tensor .* was wanted, ndarray came; for example torch.zer",
        ),
        ((EXAMPLE,), "was wanted, tuple came"),
        ({}, "example has no tensors"),
        (torch.zeros(1, 1, 5), r"Cell.step fails on \[1, 1, 5\] \(RuntimeError at .*\): mat1 and mat2 shapes"),
        (torch.zeros(1, 1, 3, dtype=torch.int64), "valid range nobody can guess"),
    ):
        with pytest.raises(ExportError, match=message):
            to_onnx(Cell(), example, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="a torch module was wanted, function came"):
        to_onnx(lambda x: x, EXAMPLE, tmp_path / "m.onnx")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="chunk=0"):
        to_onnx(Cell(), EXAMPLE, tmp_path / "m.onnx", chunk=0)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_differs_from_torch_is_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemem.export import exporter

    kept = exporter.graph.step_graph

    def spoiled(*arguments: Any) -> Any:
        model = kept(*arguments)
        import onnx_ir

        bias = model.graph.initializers["mix.bias"]
        bias.const_value = onnx_ir.tensor(bias.const_value.numpy() + 0.5, name="mix.bias")
        return model

    monkeypatch.setattr(exporter.graph, "step_graph", spoiled)
    (tmp_path / "m.onnx").write_bytes(b"older")
    with pytest.raises(ExportError, match=r"differs from torch by .* first at (y|hidden_out) at step 0"):
        to_onnx(Cell(), EXAMPLE, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_bytes() == b"older"


def test_training_mode_and_weights_are_left_as_they_were(tmp_path: Path) -> None:
    module = Cell().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_onnx(module, EXAMPLE, tmp_path / "m.onnx")
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
