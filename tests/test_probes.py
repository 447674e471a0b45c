"""Memory probes: generators against slow references, scoring against memories whose reach is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bench import training
from bench.tasks.probes import data, page, table, train
from bench.timing import RESULTS
from edgemem import StateTensor
from edgemem.checkpoints import packaged
from edgemem.errors import ConfigError, InputError, UsageError
from edgemem.evaluation import evaluate
from edgemem.export import export_model
from edgemem.models import build_model, spec
from edgemem.models.probes import FoldingProbeConfig, ProbeConfig
from edgemem.tasks import digits, probes, series
from edgemem.tasks.episodes import UNASKED, Episodes, copy, delay, recall
from edgemem.tasks.probes import TEST_SEED

KEYS, VALUES, BLANK = 16, 8, 24  # symbols of recall: keys, then values, then the blank
SYMBOLS, GO = 8, 9

counts, seeds = st.integers(1, 5), st.integers(0, 10_000)


# --- what is asked, by a reader that goes through an episode symbol by symbol -------------------------------------


def recall_reader(symbols: list[int]) -> dict[int, tuple[int, int]]:
    """Answer and distance by the frame that asks."""
    told: dict[int, tuple[int, int]] = {}
    found, key, key_at = {}, -1, -1
    for frame, symbol in enumerate(symbols):
        if symbol < KEYS and symbol in told:
            found[frame] = (told[symbol][0], frame - told[symbol][1])
        elif symbol < KEYS:
            key, key_at = symbol, frame
        elif symbol < BLANK:
            told[key] = (symbol - KEYS, key_at)
    return found


def copy_reader(symbols: list[int]) -> dict[int, tuple[int, int]]:
    heard = [(symbol, frame) for frame, symbol in enumerate(symbols) if symbol < SYMBOLS]
    asked_at = [frame for frame, symbol in enumerate(symbols) if symbol == GO]
    return {at: (symbol, at - frame) for at, (symbol, frame) in zip(asked_at, heard, strict=True)}


def delay_reader(symbols: list[int]) -> dict[int, tuple[int, int]]:
    needle = next(frame for frame, symbol in enumerate(symbols) if symbol < SYMBOLS)
    return {symbols.index(2 * SYMBOLS): (symbols[needle], symbols.index(2 * SYMBOLS) - needle)}


def agrees(episodes: Episodes, reader: Callable[[list[int]], dict[int, tuple[int, int]]]) -> bool:
    for x, targets, distance in zip(episodes.x, episodes.targets, episodes.distance, strict=True):
        found = {int(t): (int(targets[t]), int(distance[t])) for t in np.flatnonzero(targets != UNASKED)}
        if found != reader(x.tolist()) or np.any(distance[targets == UNASKED]):
            return False
    return True


@given(counts, seeds, st.integers(1, 16), st.integers(0, 30))
def test_recall_asks_for_the_values_that_were_told(count: int, seed: int, pairs: int, more: int) -> None:
    made = recall(count, seed, pairs=pairs, time=3 * pairs + more)
    assert agrees(made, recall_reader) and made.x.max() <= BLANK
    assert np.all((made.targets != UNASKED).sum(axis=1) == pairs)


@given(counts, seeds, st.integers(1, 10), st.integers(0, 30))
def test_copy_asks_for_the_symbols_in_their_order(count: int, seed: int, items: int, more: int) -> None:
    made = copy(count, seed, items=items, spread=items + more)
    assert agrees(made, copy_reader) and made.x.shape == (count, 2 * items + more)


@given(counts, seeds, st.integers(1, 300))
def test_delay_asks_for_the_needle_after_its_distance(count: int, seed: int, distance: int) -> None:
    made = delay(count, seed, distance=distance)
    assert agrees(made, delay_reader) and made.distance.max() == distance


@pytest.mark.parametrize("name", probes.PROBES)
def test_the_same_seed_makes_the_same_episodes(name: str) -> None:
    level = next(iter(probes.PROBES[name].levels.values()))
    first, again, other = level.make(3, 5), level.make(3, 5), level.make(3, 6)
    for part in ("x", "targets", "distance"):
        assert getattr(first, part).tobytes() == getattr(again, part).tobytes()
    assert name.startswith("digits") or not np.array_equal(first.x, other.x)


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: recall(1, 0, pairs=17), r"pairs <= keys .* pairs=17"),
        (lambda: recall(1, 0, pairs=8, time=23), "time=23"),
        (lambda: copy(1, 0, items=9, spread=8), "items=9, spread=8"),
        (lambda: delay(1, 0, distance=0), "distance=0"),
        (lambda: series.mackey_glass(1, 5, 0, tau=0.05), "tau=0.05"),
        (lambda: series.narma(1, 5, 0, order=0), "order=0"),
        (lambda: probes.judged(probes.PROBES["narma"], lambda x: x, longest=5), "narma has no level of 5 frames"),
        (lambda: probes.probe("recal"), r"unknown probe 'recal' \(did you mean 'recall'\?\)"),
    ],
)
def test_what_cannot_be_made_is_refused(make: Callable[[], Any], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        make()


# --- signals, by the equations in plain Python --------------------------------------------------------------------


@settings(max_examples=3)
@given(st.sampled_from([5.0, 17.0, 30.0]), st.integers(0, 5))
def test_mackey_glass_is_the_equation_at_a_much_finer_step(tau: float, seed: int) -> None:
    """Heun's method at 1/200 frame. The kink at the end of the constant history costs both some digits."""
    found, fine = series.mackey_glass(1, 60, seed, tau=tau, transient=0)[0], 200
    lag, past = round(tau * fine), [float(found[0])] * (round(tau * fine) + 1)
    for _ in range(59 * fine):
        x, old, following = past[-1], past[-1 - lag], past[-lag]
        start = 0.2 * old / (1 + old**10) - 0.1 * x
        end = 0.2 * following / (1 + following**10) - 0.1 * (x + start / fine)
        past.append(x + (start + end) / 2 / fine)
    np.testing.assert_allclose(found, past[lag::fine], atol=1e-4)


def test_mackey_glass_swings_as_it_is_known_to() -> None:
    x = series.mackey_glass(4, 1200, seed=1)
    assert abs(x.mean() - series.MEAN) < 0.02 and abs(x.std() - series.SPREAD) < 0.02
    assert 0.3 < x.min() < 0.5 and 1.2 < x.max() < 1.4
    crossings = np.mean([np.sum((row[:-1] < row.mean()) & (row[1:] >= row.mean())) for row in x])
    assert 30 < 1200 / crossings < 60  # about 50 frames a turn


@settings(max_examples=10)
@given(st.integers(1, 12), st.integers(0, 50))
def test_narma_is_its_recursion(order: int, seed: int) -> None:
    u, after = series.narma(2, 40, seed, order=order)
    assert u.min() >= 0.0 and u.max() <= 0.5 and after.min() >= 0.0 and after.max() <= 1.0
    for inputs, outputs in zip(u, after, strict=True):
        y = dict.fromkeys(range(-order, 1), 0.0)
        for t in range(40):
            earlier = float(inputs[t - order + 1]) if t - order + 1 >= 0 else 0.0
            total = sum(y[t - i] for i in range(order))
            y[t + 1] = 0.3 * y[t] + 0.05 * y[t] * total + 1.5 * earlier * float(inputs[t]) + 0.1
        np.testing.assert_allclose(outputs, [y[t + 1] for t in range(40)], rtol=1e-12)


def test_signals_are_asked_for_ahead_of_what_is_shown() -> None:
    made, raw = series.mackey_glass_episodes(2, 3, frames=100), series.mackey_glass(2, 115, 3)
    late = series.WARM_UP_FRAMES
    np.testing.assert_allclose(made.x[:, :, 0] * series.SPREAD + series.MEAN, raw[:, :100], atol=1e-6)
    np.testing.assert_allclose(made.targets[:, late:, 0] * series.SPREAD + series.MEAN, raw[:, 15 + late :], atol=1e-6)
    assert np.isnan(made.targets[:, :late]).all()


def test_nrmse_of_the_mean_is_one_and_of_the_truth_zero() -> None:
    targets = series.narma_episodes(3, 1).targets
    assert series.nrmse(np.full_like(targets, np.nanmean(targets)), targets) == pytest.approx(1.0, abs=1e-6)
    assert series.nrmse(np.nan_to_num(targets), targets) == 0.0
    assert probes.score(probes.PROBES["narma"], 100.0 + np.zeros_like(targets), series.narma_episodes(3, 1)) == 0.0


# --- digits -------------------------------------------------------------------------------------------------------


def test_the_packaged_digits_are_the_held_out_ones() -> None:
    images, labels = digits.held_out()
    wanted, numbers = data.images("test")
    assert np.array_equal(images, wanted) and np.array_equal(labels, numbers) and len(labels) == 360
    parts = [{image.tobytes() for image in data.images(part)[0]} for part in ("train", "valid", "test")]
    assert not parts[0] & parts[2] and not parts[1] & parts[2] and not parts[0] & parts[1]


def test_a_permuted_digit_has_the_same_pixels_elsewhere() -> None:
    images, labels = digits.held_out()
    straight, mixed = (digits.episodes(images, labels, permuted) for permuted in (False, True))
    assert np.array_equal(np.sort(straight.x, axis=1), np.sort(mixed.x, axis=1))
    assert np.array_equal(straight.x[7, :, 0], images[7] / np.float32(8.0) - 1.0)
    assert not np.array_equal(straight.x, mixed.x) and np.array_equal(mixed.targets[:, -1], labels)


# --- memories whose reach is known --------------------------------------------------------------------------------


def one_hot(x: Tensor, first: int, count: int) -> Tensor:
    """[batch, count] 1 at x - first, all 0 where x is outside."""
    return (x[:, None] == torch.arange(first, first + count)).float()


class PerfectRecall(nn.Module):
    """A table from keys to values."""

    def __init__(self) -> None:
        super().__init__()
        self.state = (StateTensor("table", (KEYS, VALUES)), StateTensor("key", (KEYS,)))

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        key, value = one_hot(x, 0, KEYS), one_hot(x, KEYS, VALUES)
        answer = torch.einsum("bk,bkv->bv", key, state["table"])
        written = state["table"] + state["key"][:, :, None] * value[:, None, :]
        return answer, {"table": written, "key": key}


class PerfectCopy(nn.Module):
    """A queue: symbols go in at the place `heard`, come out at the place `asked`."""

    def __init__(self) -> None:
        super().__init__()
        self.state = (StateTensor("queue", (8, SYMBOLS)), StateTensor("heard", (8,)), StateTensor("asked", (8,)))

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        first = torch.eye(8)[:1]
        heard, asked = (torch.where(s.sum(1, keepdim=True) > 0, s, first) for s in (state["heard"], state["asked"]))
        symbol, go = one_hot(x, 0, SYMBOLS), (x == GO)[:, None]
        queue = state["queue"] + heard[:, :, None] * symbol[:, None, :]
        answer = torch.einsum("bi,bis->bs", asked, queue)
        moved = torch.where(symbol.sum(1, keepdim=True) > 0, heard.roll(1, 1), heard)
        return answer, {"queue": queue, "heard": moved, "asked": torch.where(go, asked.roll(1, 1), asked)}


class PerfectDelay(nn.Module):
    """Holds the needle for good."""

    def __init__(self) -> None:
        super().__init__()
        self.state = (StateTensor("needle", (SYMBOLS,)),)

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        needle = state["needle"] + one_hot(x, 0, SYMBOLS)
        return needle, {"needle": needle}


class Memoryless(nn.Module):
    """Answers by the present symbol alone, each one in its own way."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.answers = torch.randn(32, outputs, generator=torch.Generator().manual_seed(1))
        self.state = (StateTensor("nothing", (1,)),)

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.answers[x], state


@pytest.mark.parametrize(
    ("name", "memory"), [("recall", PerfectRecall()), ("copy", PerfectCopy()), ("delay", PerfectDelay())]
)
def test_a_perfect_memory_scores_one_and_none_scores_chance(name: str, memory: nn.Module) -> None:
    wanted = probes.PROBES[name]
    found = probes.judged(wanted, table.stepwise(memory), longest=2000)
    assert found["score"] == 1.0 and set(found["levels"].values()) == {1.0}
    episodes = next(iter(wanted.levels.values())).make(400, 9)
    guessed = probes.score(wanted, table.stepwise(Memoryless(wanted.outputs))(episodes.x), episodes)
    answers = int(np.sum(episodes.targets != UNASKED))
    assert abs(guessed - wanted.chance) < 4 * np.sqrt(wanted.chance / answers)


@pytest.mark.parametrize("window", [8, 33])
@pytest.mark.parametrize(
    ("name", "reader"), [("recall", recall_reader), ("copy", copy_reader), ("delay", delay_reader)]
)
def test_a_bounded_memory_scores_what_is_expected_of_it(
    name: str, reader: Callable[[list[int]], dict[int, tuple[int, int]]], window: int
) -> None:
    """One that knows the answers of the last `window` frames, and says a random one elsewhere."""
    wanted, rng = probes.PROBES[name], np.random.default_rng(2)
    episodes = next(iter(wanted.levels.values())).make(300, 4)
    y = rng.normal(size=(*episodes.x.shape, wanted.outputs))
    for row, x in enumerate(episodes.x):
        for frame, (answer, distance) in reader(x.tolist()).items():
            if distance < window:  # the earliest of the frames that matter is still seen
                y[row, frame, answer] = 100.0
    expected = probes.bounded(wanted, episodes, window)
    assert expected is not None and abs(probes.score(wanted, y, episodes) - expected) < 0.05
    assert probes.bounded(wanted, episodes, 10_000) == 1.0 and probes.bounded(wanted, episodes, 0) == wanted.chance


def test_harder_levels_are_out_of_reach_sooner() -> None:
    reach = [probes.bounded(probes.PROBES["copy"], copy(50, 1, spread=spread), 33) for spread in (16, 32, 64, 128)]
    assert reach == sorted(reach, reverse=True) and reach[0] == 1.0 and reach[-1] < 0.4


# --- the task, the recipe, the page -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["probe-lmu", "probe-memformer"])
def test_a_file_scores_what_its_torch_module_scores(name: str, tmp_path: Path) -> None:
    export_model(name, tmp_path / "p.onnx", {"probe": "recall"})
    file, module = evaluate(tmp_path / "p.onnx", "probes", limit=8), table.measured(name, "recall", limit=8)
    assert file.score.metric == "mean_score" and file.score.details["probe"] == "recall"
    assert file.score.value == module["score"] and file.state_bytes == module["state_bytes"]


def test_a_name_is_judged_on_all_that_it_was_trained_for() -> None:
    heard: list[float] = []
    found = evaluate("probe-lmu", "probes", limit=2, tick=heard.append)
    forms = found.score.details["forms"]
    assert [form["probe"] for form in forms] == list(probes.PROBES)
    assert found.score.value == pytest.approx(np.mean([form["score"] for form in forms]))
    assert heard == sorted(heard) and heard[-1] == 1.0
    assert found.weight_bytes > 7 * found.state_bytes


@pytest.mark.parametrize(("model", "name"), [("probe-lmu", "narma"), ("probe-rwkv4", "recall"), ("probe-gru", "delay")])
def test_the_shipped_checkpoints_score_what_the_results_say(model: str, name: str) -> None:
    written = json.loads((RESULTS / "probes.json").read_text())["models"][model][name]
    found = table.measured(model, name, longest=600)
    assert found["parameters"] == written["parameters"] and found["state_bytes"] == written["state_bytes"]
    for level, value in found["levels"].items():
        assert value == pytest.approx(written["levels"][level], abs=0.02)  # sums in another order may turn an answer


def test_what_is_no_probe_is_refused(models: Path) -> None:
    with pytest.raises(
        InputError, match=r"lm-rwkv4 does not fit: a model trained for one of the probes recall, .* was"
    ):
        evaluate(models / "lm.onnx", "probes")
    with pytest.raises(ConfigError, match=r"unknown probe 'recal' \(did you mean 'recall'\?\)"):
        ProbeConfig(probe="recal")
    with pytest.raises(ConfigError, match="fold must divide ffn"):
        FoldingProbeConfig(fold=3, width=48, ffn=32)


def test_training_is_seeded_and_learns() -> None:
    def weights() -> tuple[dict[str, Tensor], list[str]]:
        said: list[str] = []
        module, _ = build_model("probe-lmu", {"probe": "narma", "width": 12}, seed=1)
        best, _ = train.train(module, "narma", replace(train.RECIPES["narma"], steps=16, looks=2), said.append)
        return training.weights(best), said

    (first, said), (again, _) = weights(), weights()
    assert all(torch.equal(first[name], again[name]) for name in first)
    score = float(said[-1].split()[-1])
    assert score > probes.PROBES["narma"].chance + 0.1


def test_no_training_batch_holds_a_judged_episode() -> None:
    judged = {row.tobytes() for level in probes.PROBES["recall"].levels.values() for row in level.make(64, TEST_SEED).x}
    batches = list(data.training("recall", 0, 8, 30))
    assert max(int((b.targets != UNASKED).sum(axis=1).max()) for b in batches[:5]) <= 2  # the curriculum starts easy
    assert not judged & {row.tobytes() for batch in batches for row in batch.x}


def test_every_model_and_probe_has_a_checkpoint() -> None:
    for model in table.MODELS:
        for file, form in spec(model).trained().items():
            module, facts = build_model(model, form)
            assert facts["source"]["kind"] == "checkpoint" and file == f"{model}-{form['probe']}.safetensors"
            assert 14_000 <= sum(p.numel() for p in module.parameters()) <= 19_000
    assert sum(path.stat().st_size for path in packaged("").glob("probe-*.safetensors")) < 1.5e6


def test_the_page_says_what_holds_and_what_does_not() -> None:
    result = json.loads((RESULTS / "probes.json").read_text())
    made = page.section(result)
    assert [row[0] for row in made.tables[0].rows[:5]] == [f"`{model}`" for model in table.MODELS]
    assert page.better(0.2, 0.1) == "falls short: 2.0 times the error of the GRU"
    assert page.reach({"64 frames": 1.0, "256 frames": 0.95, "1024 frames": 0.2}) == "256 frames"
    assert page.reach({"64 frames": 0.2}) is None
