"""Quantized files: what is stored, what streams, what is refused. Every scheme runs on every model of the zoo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper
from torch import nn

import edgemem
from edgemem import load
from edgemem.cli.main import cli
from edgemem.errors import ContractError, InputError, SnapshotError, UsageError
from edgemem.export import export_model, to_onnx
from edgemem.modelfile import open_model
from edgemem.program import Array
from edgemem.quant import quantize
from edgemem.quant import state as states
from edgemem.quant.scheme import names, parsed
from edgemem.quant.w8 import quantized
from edgemem.quant.w8a8 import JOINS, MOVES
from edgemem.trial import random_inputs, trial
from edgemem.verify import verify
from tests.quantizing import Files, random_data
from tests.zoo import NAMES as ALL
from tests.zoo import settings_of

SCHEMES = {
    "f16": 0.01,
    "w8": 0.2,
    "w8a8-dynamic": 0.2,
    "w8a8": 1.0,
    "w4g32": 1.0,
    "vq:dim=2,codes=64": 0.8,
}  # the largest relative error on small random models, their recurrences quantized too
OTHERS = {"w8a8-outlier", "memory-vq"}  # have files of tests of their own: test_outliers.py, test_vq.py
STEPS = 40
NAMES = ("lm-rwkv4", "lmu", "memformer", "folding")  # of every family
FEW = 8  # elements: the small models have small matrices
pytestmark = pytest.mark.usefixtures("short_calibration")


def test_every_scheme_is_tested() -> None:
    assert {parsed(scheme)[0].name for scheme in SCHEMES} | OTHERS == set(names())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_shrinks_and_streams_every_model(zoo: Files, name: str, scheme: str, tmp_path: Path) -> None:
    data = random_data(zoo(name), tmp_path / "data.npz")
    report = quantize(zoo(name), tmp_path / "q.onnx", scheme, calibrate=data, smallest=FEW, steps=STEPS)
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    assert report.bytes_after < report.bytes_before
    assert not {choice.name for choice in report.skipped} & {choice.name for choice in report.tensors}
    assert report.certificate.max_rel_error < SCHEMES[scheme]
    stream = load(tmp_path / "q.onnx").stream()
    rng = np.random.default_rng(0)
    inputs = {n: x for n, x in random_inputs(stream.contract, rng).items() if n != "valid"}
    outputs = stream.step(inputs if len(inputs) > 1 else next(iter(inputs.values())))
    assert np.isfinite(outputs).all()


@settings(
    max_examples=3,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_any_small_model_of_the_zoo_quantizes_and_streams(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(ALL), label="model")
    config = data.draw(settings_of(name), label="settings")
    scheme = data.draw(st.sampled_from([*SCHEMES, "w8a8-outlier"]), label="scheme")
    folder = tmp_path_factory.mktemp("any")
    export_model(name, folder / "m.onnx", config, seed=1)
    examples = random_data(folder / "m.onnx", folder / "x.npz")
    try:
        quantize(folder / "m.onnx", folder / "q.onnx", scheme, calibrate=examples, smallest=1, steps=8)
    except UsageError as error:  # codebooks and scales of a few weights may be larger than the weights
        assert "would not shrink" in str(error)
        return
    program = load(folder / "q.onnx")
    state, rng = program.new_state(), np.random.default_rng(0)
    for _ in range(4):
        outputs = program.step(random_inputs(program.contract, rng), state)
        assert all(np.isfinite(value).all() for value in outputs.values())


matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-8, 8, width=32))


@given(matrices)
def test_int8_weights_are_within_half_a_step(rows: Array) -> None:
    q, scale = quantized(rows)
    step = scale.astype(np.float64)[:, None]
    assert q.dtype == np.int8 and np.abs(q.astype(int)).max(initial=0) <= 127
    assert (np.abs(q * step - rows) <= step * 0.5 + 1e-12).all()


def test_tiny_weights_keep_a_step_of_their_own() -> None:
    rows = np.array([[1e-7, -2e-7], [0.0, 0.0], [100.0, -50.0]], np.float32)
    q, scale = quantized(rows)
    np.testing.assert_allclose(q * scale.astype(np.float32)[:, None], rows, rtol=0.01)


def restored(model: onnx.ModelProto, name: str) -> Array | None:
    """A parameter as a quantized file holds it: float16, or int8 times its scale."""
    stored = {t.name: numpy_helper.to_array(t).astype(np.float32) for t in model.graph.initializer}
    axes = {n.input[0]: n.attribute[0].i for n in model.graph.node if n.op_type == "DequantizeLinear"}
    for base, turned in ((name, False), (f"{name}.T", True)):
        value = stored.get(f"{base}.f16")
        if f"{base}.q" in stored:
            q, rows = stored[f"{base}.q"], stored.get(f"{base}.scale.rows")
            scale = rows if rows is not None else np.expand_dims(stored[f"{base}.scale"], 1 - axes[f"{base}.q"])
            value = q * scale
        if value is not None:
            return value.T if turned else value
    return None


@pytest.mark.parametrize("name", ["lm-rwkv4", "memformer", "kws-lmuformer", "folding"])
def test_int8_file_computes_what_its_dequantized_weights_compute(zoo: Files, name: str, tmp_path: Path) -> None:
    """The oracle is the float file with every weight replaced by (int8 times scale), read by the ONNX library."""
    quantize(zoo(name), tmp_path / "q.onnx", "w8", smallest=FEW, steps=STEPS)
    plain, narrow = onnx.load(zoo(name)), onnx.load(tmp_path / "q.onnx")
    pairs = [(numpy_helper.to_array(t).tobytes(), restored(narrow, t.name)) for t in plain.graph.initializer]
    known = dict(pairs) | {content: value for content, value in pairs if value is not None}
    assert sum(value is not None for value in known.values()) > 10
    for tensor in plain.graph.initializer:
        value = known[numpy_helper.to_array(tensor).tobytes()]  # equal tensors are stored once, under one name
        if value is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    onnx.save(plain, tmp_path / "plain.onnx")
    found = trial(load(tmp_path / "plain.onnx"), load(tmp_path / "q.onnx"), STEPS, relative=1e-4)
    assert found.holds, found.first_divergence


@pytest.mark.parametrize("scheme", SCHEMES)
def test_equal_input_gives_equal_bytes(zoo: Files, scheme: str, tmp_path: Path) -> None:
    data = random_data(zoo("lmu"), tmp_path / "data.npz")
    for name in ("a.onnx", "b.onnx"):
        quantize(zoo("lmu"), tmp_path / name, scheme, calibrate=data, smallest=FEW, steps=STEPS)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("model", "scheme", "state"),
    [
        ("lmu", "w8a8-outlier", "f32"),
        ("kws-lmuformer", "vq:dim=8,codes=64,tune=2", "f32"),
        ("lmu", "w8", "auto"),
        ("folding", "memory-vq:dim=4,codes=8,tune=2", "f32"),
    ],
)
def test_what_is_trained_or_searched_gives_equal_bytes_too(
    zoo: Files, model: str, scheme: str, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codebooks after training, outlier sets, and states chosen by their drift."""
    monkeypatch.setattr(states, "DRIFT_STEPS", 200)
    data = random_data(zoo(model), tmp_path / "data.npz", 1024)
    for name in ("a.onnx", "b.onnx"):
        report = quantize(zoo(model), tmp_path / name, scheme, calibrate=data, state=state, smallest=FEW, steps=STEPS)
        assert scheme[:2] != "vq" or any(choice.choice.startswith("codes") for choice in report.tensors)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_embeddings_are_looked_up_row_by_row(zoo: Files, tmp_path: Path) -> None:
    quantize(zoo("lm-rwkv4"), tmp_path / "q.onnx", "w8", smallest=FEW, steps=STEPS)
    model = open_model(tmp_path / "q.onnx").onnx
    readers = [node.op_type for node in model.nodes if "emb.weight.q" in node.inputs]
    assert readers == ["Gather"] and model.initializers["emb.weight.q"].dtype == "int8"


def test_shipped_spotter_takes_a_quarter(models: Path, tmp_path: Path) -> None:
    report = quantize(models / "k.onnx", tmp_path / "q.onnx", "w8", steps=STEPS)
    assert report.ratio <= 0.27
    assert report.bytes_after == open_model(tmp_path / "q.onnx").onnx.weight_bytes
    assert report.bytes_before == open_model(models / "k.onnx").onnx.weight_bytes
    assert (
        sum(c.bytes_before - c.bytes_after for c in report.tensors) >= report.bytes_before - report.bytes_after - 4096
    )


def test_excluded_tensors_stay_as_they_are(zoo: Files, tmp_path: Path) -> None:
    quantize(zoo("kws-lmuformer"), tmp_path / "q.onnx", "w8", exclude=["head.*"], smallest=FEW, steps=STEPS)
    before, after = open_model(zoo("kws-lmuformer")).onnx, open_model(tmp_path / "q.onnx").onnx
    for name in ("head.weight.T", "head.bias"):
        np.testing.assert_array_equal(after.initializers[name].numpy(), before.initializers[name].numpy())


def test_the_contract_says_what_was_done(zoo: Files, tmp_path: Path) -> None:
    report = quantize(zoo("lmu"), tmp_path / "q.onnx", "w8", smallest=FEW, steps=512)
    contract = open_model(tmp_path / "q.onnx").contract
    assert contract.quant["scheme"] == "w8" and contract.quant["tensors"] == {c.name: c.choice for c in report.tensors}
    assert [proof.stage for proof in contract.parity] == ["onnx", "w8"]
    assert contract.model == open_model(zoo("lmu")).contract.model
    assert verify(tmp_path / "q.onnx", 200, reference=zoo("lmu")).ok


def test_quantizing_twice_is_refused(zoo: Files, tmp_path: Path) -> None:
    quantize(zoo("lmu"), tmp_path / "q.onnx", "w8", smallest=FEW, steps=STEPS)
    with pytest.raises(ContractError, match=r"quantized already \(scheme w8\)"):
        quantize(tmp_path / "q.onnx", tmp_path / "r.onnx", "f16")
    assert not (tmp_path / "r.onnx").exists()


@pytest.mark.parametrize(
    ("scheme", "options", "message"),
    [
        ("w9", {}, r"unknown scheme 'w9' \(did you mean 'w8'\?\); there are f16, w8,"),
        ("w8", {"state": "i7"}, r"unknown state policy 'i7' \(did you mean 'i"),
        ("w8", {"smallest": 10**6}, "no tensor of .* has 1000000 elements, so nothing .*; lower --smallest"),
        ("w8:bits=4", {}, "scheme w8 takes no settings, 'bits=4' came; write w8 alone"),
        ("vq:dims=4", {}, r"scheme vq has no setting 'dims=4' \(did you mean 'dim'\?\); it has dim=4,"),
        (None, {}, "scheme must be a text such as 'w8', got None"),
        ("w8", {"state": None}, "state must be a text such as 'f32', got None"),
        ("w8", {"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ("w8", {"steps": -5}, "steps must be a whole number of at least 1, got -5"),
        ("w8", {"smallest": -3}, "smallest must be a whole number of at least 0, got -3"),
        ("w8", {"state_budget": -1}, "state_budget must be a share above 0, such as 0.005, got -1"),
        ("w8", {"state_budget": float("nan")}, "state_budget must be a share above 0"),
        (
            "w8",
            {"exclude": "blocks.0.*"},
            r"exclude must be a list of globs, got the text 'blocks.0.\*'; write exclude=",
        ),
        ("w8", {"exclude": [7]}, r"exclude must be a list of globs, .* got 7 in it"),
        ("w8", {"exclude": ["nothing*"]}, "names no tensor"),
        ("w8", {"exclude": ["*"]}, "would not shrink .*: every tensor is excluded or too small; exclude less"),
        ("w8", {"task": "kws"}, "task kws: lmu does not fit"),
        ("w8a8-outlier:percent=0", {}, "percent must lie in 1 to 100, got 0"),
        ("w8a8-outlier:percent=101", {}, "percent must lie in 1 to 100, got 101"),
        ("w8a8:calibrator=median", {}, "calibrator must be one of .*, got 'median'"),
        ("vq:dim=0", {}, "dim of at least 1.* were wanted"),
        ("vq:codes=1", {}, "codes of 2 to 65536 .* were wanted"),
        ("vq:residual=9", {}, "residual of 1 to 8 were wanted"),
        ("memory-vq:codes=257", {}, "codes of 2 to 256 were wanted"),
    ],
)
def test_what_cannot_work_is_refused(
    zoo: Files, scheme: str | None, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, InputError), match=message):
        quantize(zoo("lmu"), tmp_path / "q.onnx", scheme, **{"steps": STEPS, **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


class Contraction(nn.Module):
    """h = tanh(h + x W), the product written as an Einsum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(0.1 * torch.randn(32, 32))
        self.state = (edgemem.StateTensor("h", (32,)),)

    def step(self, x, state):  # type: ignore[no-untyped-def]
        h = torch.tanh(state["h"] + torch.einsum("bi,ij->bj", x, self.weight))
        return h, {"h": h}


def test_a_matrix_that_an_unknown_operator_reads_comes_with_a_warning(tmp_path: Path) -> None:
    to_onnx(Contraction(), torch.zeros(1, 1, 32), tmp_path / "m.onnx")
    report = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "w8", steps=STEPS)
    (warning,) = [text for text in report.warnings if "Einsum" in text]
    assert "weight [32, 32] becomes float16" in warning and "write the product as x @ W" in warning
    assert report.ratio == pytest.approx(0.5, abs=0.01)
    half = quantize(tmp_path / "m.onnx", tmp_path / "h.onnx", "f16", steps=STEPS)
    assert not any("Einsum" in text for text in half.warnings)


class Recalling(nn.Module):
    """y = x S' with S a sum that grows, left in float32: a product of two activations, one of them wide."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(8, 32)
        self.state = (edgemem.StateTensor("total", (4, 8), wide=True),)

    def step(self, x: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = state["total"] + self.value(x).reshape(-1, 4, 8)
        return (x.unsqueeze(1) @ total.transpose(1, 2)).squeeze(1), {"total": total}


@pytest.mark.parametrize("name", ["memformer", "folding", "recalling"])
def test_products_of_two_activations_are_of_int16(zoo: Files, name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if name == "recalling":
        torch.manual_seed(0)
        to_onnx(Recalling(), torch.randn(1, 4, 8), path)
    else:
        path = zoo(name)
    quantize(path, tmp_path / "q.onnx", "w8a8", calibrate=random_data(path, tmp_path / "x.npz"), smallest=FEW)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "q.onnx"), data_prop=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    constant = {tensor.name for tensor in graph.initializer}
    pairs = 0
    for node in (node for node in graph.node if node.op_type == "MatMul"):
        sources = [stored(made, source) for source in node.input]
        if not constant.intersection(sources):
            pairs += 1
            assert [kinds[source] for source in sources] == [onnx.TensorProto.INT16] * 2
    assert pairs


def stored(made: dict[str, onnx.NodeProto], name: str) -> str:
    """What a factor is read from: the integers behind its moves and its DequantizeLinear."""
    while name in made and made[name].op_type in MOVES | JOINS:
        name = made[name].input[0]
    return made[name].input[0] if name in made and made[name].op_type == "DequantizeLinear" else name


class Bounded(nn.Module):
    """A recurrence between bounds, of padded inputs: two operators with constants that say how."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(40, 32)
        self.state = (edgemem.StateTensor("h", (32,)),)

    def step(self, x: torch.Tensor, state: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        padded = nn.functional.pad(x, (4, 4), value=0.25)
        h = torch.clamp(0.5 * state["h"] + self.inner(padded), -0.75, 0.75)
        return h, {"h": h}


def test_constants_that_say_how_stay_as_they_are(tmp_path: Path) -> None:
    """An integer step keeps the bounds of Clip and the value of Pad as constants, which compilers want."""
    torch.manual_seed(0)
    to_onnx(Bounded(), torch.randn(1, 4, 32), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32))
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "w8a8", calibrate=tmp_path / "x.npy")
    graph = onnx.load(tmp_path / "q.onnx").graph
    made = {name for node in graph.node for name in node.output}
    settings_of_operators = [name for n in graph.node if n.op_type in ("Pad", "Clip") for name in n.input[1:] if name]
    assert settings_of_operators and not made.intersection(settings_of_operators)
    pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    assert verify(tmp_path / "q.onnx", 32, ("aot",), reference=tmp_path / "m.onnx").ok


def test_the_parent_is_not_written_over(zoo: Files, tmp_path: Path) -> None:
    path = Path(shutil.copy(zoo("lmu"), tmp_path / "m.onnx"))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"would replace .*m\.onnx, which `verify --reference` needs"):
        quantize(path, tmp_path / "." / "m.onnx", "w8", smallest=FEW, steps=STEPS)
    assert path.read_bytes() == before


def test_verify_finds_a_wrong_scale_and_a_wrong_parent(zoo: Files, tmp_path: Path) -> None:
    quantize(zoo("lmu"), tmp_path / "q.onnx", "w8", smallest=FEW, steps=STEPS)
    model = onnx.load(tmp_path / "q.onnx")
    scale = next(t for t in model.graph.initializer if t.name == "head.weight.T.scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float16(1.5), scale.name))
    onnx.save(model, tmp_path / "wrong.onnx")
    report = verify(tmp_path / "wrong.onnx", STEPS, reference=zoo("lmu"))
    assert [s.name for s in report.stages if not s.holds] == ["weights", "w8"]
    alone = verify(tmp_path / "wrong.onnx", STEPS)
    assert [s.first for s in alone.stages if not s.holds] == ["a tensor, which differs from its digest"]
    with pytest.raises(ContractError, match="is not the parent"):
        verify(tmp_path / "q.onnx", STEPS, reference=zoo("folding"))
    without = verify(tmp_path / "q.onnx", STEPS)
    assert without.ok and [s.reference for s in without.stages] == [
        "contract",
        "torch (recorded)",
        "parent (recorded)",
        "fresh stream",
    ]


def test_command_line(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.onnx"
    arguments = ["quantize", str(models / "k.onnx"), "-o", str(out), "--scheme", "w8", "--steps", "20"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0 and "head.weight" in shown.stdout and "×" in shown.stdout
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert {"scheme", "bytes_before", "bytes_after", "tensors", "quality"} <= set(found)
    assert found["scheme"] == "w8" and found["bytes_after"] < found["bytes_before"]
    assert {"name", "bytes_before", "bytes_after", "max_abs_error"} <= set(found["tensors"][0])


def test_the_help_lists_every_scheme_setting_and_policy() -> None:
    shown = CliRunner().invoke(cli, ["quantize", "--help"]).stdout
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    for name in names():
        settings = {word.strip(";,") for word in rows[name].split()}
        assert set(parsed(name)[1]) <= settings, name
    words = {word.strip(".,") for word in shown.split()}
    assert {*states.POLICIES, "auto"} <= words


def test_the_package_shows_what_it_gives() -> None:
    assert {"quantize", "Report"} <= set(dir(edgemem.quant))


def test_snapshots_move_between_a_float_file_and_a_quantized_one_of_the_same_states(zoo: Files, tmp_path: Path) -> None:
    """Weights may be narrower; states that are stored in another form are another model's."""
    quantize(zoo("lmu"), tmp_path / "q.onnx", "w8", smallest=FEW, steps=STEPS)
    quantize(zoo("lmu"), tmp_path / "half.onnx", "w8", smallest=FEW, steps=STEPS, state="f16")
    wide, narrow = load(zoo("lmu")).stream(), load(tmp_path / "q.onnx").stream()
    x = np.ones((3, 3), np.float32)
    wide.push(x)
    narrow.restore(wide.snapshot())
    assert narrow.position == wide.position
    fresh = load(tmp_path / "q.onnx").stream()
    assert not np.array_equal(narrow.step(x[:1]), fresh.step(x[:1]))  # it went on, and did not begin again
    back = load(zoo("lmu")).stream()
    back.restore(narrow.snapshot())
    with pytest.raises(SnapshotError, match="belongs to a model with fingerprint"):
        load(tmp_path / "half.onnx").stream().restore(wide.snapshot())
