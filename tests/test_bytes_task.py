"""Byte-level language modelling: what a byte costs, the held-out excerpt, the models and their training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import timing
from bench.tasks.bytes import card, contexts, data, excerpt, page, train
from edgemem.checkpoints import packaged
from edgemem.errors import InputError
from edgemem.evaluation import evaluate
from edgemem.export import export_model, torch_program
from edgemem.models import build_model, fits_packaged, spec, specs
from edgemem.module import chunk
from edgemem.program import load
from edgemem.tasks import bytes as task
from tests import zoo

LANGUAGE_MODELS = tuple(name for name in specs() if name.startswith("lm-"))
TINY = train.Recipe(steps=12, batch=4, window=16, warm_up=0.2, rate=1e-2, judged=2, valid_bytes=65)


def text_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count).astype(np.uint8)


# --- the task ----------------------------------------------------------------------------------------------------


def test_cost_is_the_negative_logarithm_of_the_probability() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]])) + np.array([[7.0], [-900.0]])
    np.testing.assert_allclose(task.costs(logits, np.array([1, 1])), [2.0, -np.log2(0.8)], rtol=1e-12)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("count", [1, 5, 130])
def test_every_byte_is_scored_once_and_before_it_is_seen(name: str, count: int) -> None:
    """Against the whole-sequence form; the byte 0 stands before the text."""
    settings = zoo.SMALL[name]
    program = torch_program(name, 4, settings, seed=2)
    module, _ = build_model(name, settings, seed=2)
    text = text_of(count)
    given = torch.tensor([[task.BEGIN, *map(int, text[:-1])]])
    with torch.no_grad():
        logarithms = torch.log_softmax(module(given)[0].double(), dim=1).numpy()
    wanted = -logarithms[np.arange(count), text] / np.log(2)
    np.testing.assert_allclose(task.streamed(program.stream(), text), wanted, rtol=1e-4)


def test_the_excerpt_is_held_out_text() -> None:
    pieces, names = task.excerpt()
    assert pieces.shape == (len(names), excerpt.PIECE_BYTES) and pieces.dtype == np.uint8
    assert pieces.size <= excerpt.LARGEST_BYTES and len(set(names)) == len(names)
    assert all(data.split_of(name) == "test" for name in names)
    assert all(b"\ndef " in piece.tobytes() or b"\nclass " in piece.tobytes() for piece in pieces)


@pytest.mark.parametrize("name", ["lm-rwkv4", "lm-memformer"])
def test_a_file_costs_what_its_torch_module_costs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces, names = task.excerpt()
    monkeypatch.setattr(task, "excerpt", lambda: (pieces[:, :2048], names))
    export_model(name, tmp_path / "lm.onnx", zoo.SMALL[name], seed=1)
    program = torch_program(name, 16, zoo.SMALL[name], seed=1)
    file = evaluate(tmp_path / "lm.onnx", "bytes", limit=1)
    assert file.score.metric == "bits_per_byte" and file.score.details["bytes"] == 2048
    assert file.score.value == pytest.approx(task.evaluate(program, limit=1).value, abs=1e-4)
    assert 7.0 < file.score.value < 10.0  # random weights know nothing: 8 bits, and a little for being wrong
    early, later = file.score.details["early"], file.score.details["later"]
    assert file.score.value == pytest.approx((early + later) / 2)


def test_models_of_anything_else_are_refused(models: Path) -> None:
    with pytest.raises(InputError, match=r"task bytes: kws-lmuformer does not fit: .* takes features: float32\[80\]"):
        evaluate(models / "k.onnx", "bytes")
    contract = torch_program("rwkv4", 1, {"layers": 1, "width": 4, "vocab": 300}, seed=0).contract
    assert "tokens that are no bytes" in str(task.refusal(contract))


# --- what ships --------------------------------------------------------------------------------------------------

SHIPPED = tuple(name for name in LANGUAGE_MODELS if spec(name).checkpoint)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_writes_python(name: str) -> None:
    """On a text that no training saw it is far below the 4.6 bits that single bytes carry."""
    found = evaluate(name, "bytes", limit=1)
    assert found.score.value < 2.5
    assert found.weight_bytes > 4 * 1_500_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_of_halves_gives_the_same_singles_every_time(name: str) -> None:
    path = packaged(str(spec(name).checkpoint))
    assert path.stat().st_size <= 5_000_000 and path.with_suffix(".md").is_file()
    first, facts = build_model(name)
    second, _ = build_model(name)
    assert facts["source"]["kind"] == "checkpoint"  # type: ignore[index]
    for key, tensor in first.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, second.state_dict()[key])
        assert torch.equal(tensor, tensor.half().float()), "a value that float16 has not"


RESULTS = json.loads((timing.RESULTS / "bytes.json").read_text())["models"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_what_was_measured(name: str) -> None:
    entry = RESULTS[name]
    assert packaged(f"{name}.md").read_text() == card.card(name, entry)
    assert f"{entry['test']['bits_per_byte']:.3f} bits per byte" in card.card(name, entry)
    assert packaged(f"{name}.safetensors").stat().st_size == entry["checkpoint_bytes"]
    module, _ = build_model(name)
    assert sum(p.numel() for p in module.parameters()) == entry["parameters"]


def test_models_are_trained_alike() -> None:
    """But for how a step's bytes are cut."""
    free = {"window", "batch"}
    recipes = [RESULTS[name]["training"]["recipe"] for name in SHIPPED]
    assert len({json.dumps({k: v for k, v in r.items() if k not in free}, sort_keys=True) for r in recipes}) == 1
    assert len({r["window"] * r["batch"] for r in recipes}) == 1


def test_settings_that_no_weight_depends_on_keep_the_checkpoint() -> None:
    model = spec("lm-transformer")
    assert fits_packaged(model, model.config(context=7)) and not fits_packaged(model, model.config(layers=2))
    short, long = (build_model("lm-transformer", {"context": c}, seed=3)[0].state_dict() for c in (2, 9))
    assert all(torch.equal(short[key], long[key]) for key in long)


# --- training ----------------------------------------------------------------------------------------------------


def test_a_files_split_depends_on_its_name_alone() -> None:
    found = {split: [name for name, _ in data.files(split)] for split in data.SPLITS}
    assert not set(found["train"]) & set(found["test"]) and not set(found["train"]) & set(found["valid"])
    assert {data.split_of(name) for name in found["valid"]} == {"valid"}
    assert len(found["train"]) > 10 * len(found["test"]) > 100
    assert not any("test" in Path(name).parts for names in found.values() for name in names)
    known = {"json/decoder.py": "train", "json/encoder.py": "valid", "encodings/iso8859_6.py": "test"}
    assert {name: data.split_of(name) for name in known} == known
    valid = data.corpus("valid")
    first = data.files("valid")[0][1].read_bytes()
    assert valid[0] == data.BEGIN and valid[1 : len(first) + 1].tobytes() == first


def test_windows_of_a_row_are_consecutive_text() -> None:
    text = np.arange(1000) % 251 + 1
    source = train.windows(text.astype(np.uint8), TINY)
    (x, y), (later, _) = next(source), next(source)
    assert x.shape == y.shape == (4, 16)
    assert torch.equal(x[:, 1:], y[:, :-1]) and torch.equal(later[:, 0], y[:, -1])
    assert len(set(x[:, 0].tolist())) == 4


def test_rate_warms_up_and_falls() -> None:
    rates = [train.rate_at(step, TINY) for step in range(TINY.steps)]
    assert max(rates) == pytest.approx(TINY.rate) and rates.index(max(rates)) in (1, 2)
    assert rates[-1] < 0.2 * TINY.rate and rates[0] < TINY.rate


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_training_learns_and_repeats(name: str) -> None:
    text = np.frombuffer(b"abcdefgh" * 200, np.uint8)
    curves, weights = [], []
    for _ in range(2):
        model, _ = build_model(name, zoo.SMALL[name], seed=0)
        curves.append(train.train(model, text, text, TINY, lambda line: None))
        weights.append(model.state_dict())
    costs = [point["valid_bits_per_byte"] for point in curves[0]]
    assert costs[-1] < costs[0] < 9.0
    assert [point["valid_bits_per_byte"] for point in curves[1]] == costs
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_training_form_is_the_streaming_form(name: str) -> None:
    """In training mode a chunk goes on from a state as in evaluation mode, and the state takes no gradient back."""
    model, _ = build_model(name, zoo.SMALL[name], seed=1)
    model, x = model.double(), torch.from_numpy(text_of(16).astype(np.int64))[None]
    state = zoo.random_state(model, 1, seed=1)
    wanted, after = chunk(model.eval(), x, state)
    came, trained = chunk(model.train(), x, state)
    torch.testing.assert_close(came, wanted, rtol=1e-9, atol=1e-9)
    for key, tensor in after.items():
        torch.testing.assert_close(trained[key], tensor, rtol=1e-9, atol=1e-9)
    came.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- costs over contexts -----------------------------------------------------------------------------------------


def test_a_cache_grows_with_its_context_and_a_recurrent_state_does_not(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "TIMED_SECONDS", 0.01)
    rows = {}
    for context in (4, 64):
        settings = {**zoo.SMALL["lm-transformer"], contexts.CACHES["lm-transformer"]: context}
        export_model("lm-transformer", tmp_path / f"{context}.onnx", settings, seed=0, certified_steps=2)
        stream = load(tmp_path / f"{context}.onnx").stream()
        contexts.fill(stream, context, np.random.default_rng(0))
        counters = [array for key, array in stream.state.items() if key.endswith(".real")]
        assert len(counters) == 2 and all(float(array.max()) == context for array in counters)
        rows[context] = contexts.cost(tmp_path / f"{context}.onnx", context)
    assert rows[4]["state_bytes"] == 2 * (2 * 4 * 8 + 1) * 4  # layers of keys, values and a count
    assert rows[64]["state_bytes"] == 2 * (2 * 64 * 8 + 1) * 4
    recurrent = [contexts.cost(models / "lm.onnx", context) for context in (4, 64)]
    assert recurrent[0]["state_bytes"] == recurrent[1]["state_bytes"] == 5 * 16 * 4
    assert all(0 < row["seconds_per_byte"] < 1 and row["peak_bytes"] >= 0 for row in (*rows.values(), *recurrent))


# --- the results page --------------------------------------------------------------------------------------------


def measured(bits: float, state: int, times: tuple[float, float], **config: int) -> dict[str, Any]:
    """A model as the result file has it, at contexts of 1 k and 64 k."""
    rows = [
        {"context": context, "state_bytes": state, "peak_bytes": 10 * state, "seconds_per_byte": seconds}
        for context, seconds in zip((1024, 65536), times, strict=True)
    ]
    curve = [{"step": 1, "bytes": 1, "cpu_seconds": 60.0, "valid_bits_per_byte": bits}]
    return {
        "parameters": 2_000_000,
        "state_bytes": state,
        "config": config,
        "test": {"bits_per_byte": bits, "later": bits, "files": 3, "bytes": 3000},
        "training": {
            "recipe": {"steps": 10, "batch": 4, "window": 100, "rate": 1e-3},
            "corpus_bytes": 2,
            "curve": curve,
        },
        "shipped": {**rows[0], "context": None},
        "contexts": rows,
    }


def result(memformer_bits: float, rwkv_times: tuple[float, float], xl_state: int = 90_000) -> dict[str, Any]:
    models = {
        "lm-rwkv4": measured(1.5, 5_000, rwkv_times),
        "lm-memformer": measured(memformer_bits, 10_000, (1e-4, 1e-4), slots=2, segment=64),
        "lm-transformer-xl": measured(1.9, xl_state, (2e-4, 8e-4), memory=64),
        "lm-transformer": measured(1.8, 100_000, (1e-3, 9e-3), context=32),
    }
    return {"models": models, "splits": {"train": {"bytes": 1_000_000}}}


def test_the_page_tells_what_was_reached() -> None:
    memformer, rwkv = page.section(result(1.93, (3e-4, 3e-4))).claims
    assert "1.930 against 1.900 bits per byte; state 9.0x smaller" in memformer.measured
    assert "2.0x faster per byte as trained, 2.0x faster at 1 k, 8.0x faster at 64 k" in memformer.measured
    assert memformer.verdict.startswith("State: reached.")
    assert "Speed as trained: short by a factor of 1.6" in memformer.verdict
    assert "there from a memory of 64 k rows on" in memformer.verdict and "comparable (+0.03" in memformer.verdict
    assert rwkv.verdict.startswith("Reached.") and "0.30 bits per byte better than the baseline" in rwkv.verdict
    assert "1.500 against 1.800" in rwkv.measured and "its time 9x" in rwkv.measured


def test_the_page_tells_what_was_missed() -> None:
    memformer, rwkv = page.section(result(2.4, (3e-4, 6e-4), xl_state=20_000)).claims
    assert "State: short by a factor of 4" in memformer.verdict
    assert "0.50 bits per byte worse than the baseline: the first bytes" in memformer.verdict
    assert rwkv.verdict.startswith("Not constant as measured.")


def test_a_model_without_a_checkpoint_shows_its_costs_alone() -> None:
    found = result(1.93, (3e-4, 3e-4))
    for key in ("test", "training"):
        del found["models"]["lm-transformer"][key]
    section = page.section(found)
    assert "quality beside `lm-transformer-xl`), trained on the same" in section.claims[1].setup
    assert "lm-transformer" not in {row[0] for row in section.tables[0].rows}
    assert "lm-transformer" in {row[0] for row in section.tables[1].rows}
