"""The recipe for connected words: what is said, composed and learned, and how it is measured."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import training
from bench.tasks.kws.voices import ESPEAK, FLITE
from bench.tasks.kws.wordset import SAMPLE_RATE, WordSet, gathered, trimmed
from bench.tasks.words import compose, data, evaluate, page, strings, train
from edgemem.errors import InputError
from edgemem.models.folding import ASRConfig, SpeechFolding
from edgemem.program import load
from edgemem.tasks.words import COMMANDS, DIGITS, LABELS, token_errors, transcript

Array = compose.Array
TINY = ASRConfig(layers=1, width=32, heads=2, fold=2, left=4)


def beeps(words: str, seed: int = 0) -> Array:
    """Every word a tone of its own pitch, with silence around."""
    random, t = np.random.default_rng(seed), np.arange(3200) / SAMPLE_RATE
    hz = [200.0 * 1.17 ** LABELS.index(word) * random.uniform(0.98, 1.02) for word in words.split()]
    gap = np.zeros(800)
    return np.concatenate([gap, *(part for f in hz for part in (0.3 * np.sin(2 * np.pi * f * t), gap))]).astype("f4")


@pytest.fixture(scope="module")
def toy() -> WordSet:
    said = ("one two", "seven", "go left left", "stop", "nine nine up")
    return gathered(
        trimmed(text, f"voice{v}", beeps(text, seed=10 * v + i)) for v in range(2) for i, text in enumerate(said)
    )


def test_the_recipe_is_fixed_and_its_speakers_are_held_out() -> None:
    splits = {split: strings.recipe(split) for split in ("train", "valid", "test")}
    assert splits["valid"] == strings.recipe("valid")
    speakers = {split: {asked.speaker for asked in found} for split, found in splits.items()}
    assert not speakers["train"] & speakers["test"] and not speakers["valid"] & speakers["test"]
    assert len(speakers["test"]) == len(ESPEAK["test"]) + len(FLITE["test"])
    words = [word for asked in splits["train"] for word in strings.words_of(asked.word)]
    counts = {word: words.count(word) for word in (*DIGITS, *COMMANDS)}
    assert sum(counts.values()) == len(words)  # no other word
    assert min(counts.values()) > len(words) / 50
    assert max(len(strings.words_of(asked.word)) for asked in splits["train"]) == strings.MOST_DIGITS


def test_commas_are_pauses_and_no_words() -> None:
    assert strings.words_of("go up, left three") == ("go", "up", "left", "three")


def test_sequences_hold_whole_strings_in_order(toy: WordSet) -> None:
    plain = compose.Variety(speeds=(1.0,), empty=0.0, clean=1.0, reverb=0.0)
    maker = compose.Composer(toy, 3.0, seed=3, variety=plain)
    for _ in range(10):
        sound, words = maker.sequence()
        assert sound.shape == (48_000,) and np.abs(sound).max() <= 1.0 and words
        rest = " ".join(words)
        while rest:
            string = next(text for text in toy.words if rest.startswith(text))
            rest = rest.removeprefix(string).strip()


def test_sequences_repeat_with_the_seed_and_are_stored(toy: WordSet, tmp_path: Path) -> None:
    compose.write(toy, tmp_path / "pool", compose.BATCH, 1.6, seed=4)
    assert compose.ready(tmp_path / "pool", compose.BATCH) and not compose.ready(tmp_path / "pool", 2 * compose.BATCH)
    features, words = compose.Composer(toy, 1.6, seed=4).batch()
    x, labels = next(compose.batches(tmp_path / "pool", compose.BATCH, seed=0))
    order = np.lexsort(words.T)
    np.testing.assert_array_equal(labels[np.lexsort(labels.T)], words[order])
    np.testing.assert_allclose(np.sort(x.mean((1, 2))), np.sort(features.mean((1, 2))), atol=0.01)  # float16


def test_rows_are_those_of_the_models_front_end(toy: WordSet) -> None:
    sound, _ = compose.Composer(toy, 3.0, seed=5).sequence()
    came = compose.stacked(compose.features_of(torch.from_numpy(sound)[None].float()).numpy())[0]
    np.testing.assert_allclose(came, compose.FRONT_END.features(sound), atol=1e-3)
    assert came.shape == (49, ASRConfig().features)


def test_a_missing_set_names_its_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"python -m bench\.tasks\.words\.data"):
        data.load("train", tmp_path)


def test_a_training_learns_and_repeats(toy: WordSet, tmp_path: Path) -> None:
    compose.write(toy, tmp_path, 2 * compose.BATCH, 1.6, seed=4)
    recipe = train.Recipe(short_steps=8, steps=8, batch=8, rate=5e-3, judged=0.25)

    def trained() -> tuple[SpeechFolding, list[dict[str, float]]]:
        source = itertools.repeat(next(compose.batches(tmp_path, recipe.batch, 0)))
        return train.train(TINY, source, source, recipe, lambda model: 1.0, lambda _: None)

    (model, course), (again, _) = trained(), trained()
    assert course[-1]["loss"] < course[0]["loss"]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_streaming_a_file_hears_what_the_module_hears(toy: WordSet, tmp_path: Path) -> None:
    from edgemem.export import to_onnx

    torch.manual_seed(0)
    model = SpeechFolding(TINY).eval()
    made = evaluate.clips(toy, 10.0, seed=1)
    training.normalise(
        model, torch.from_numpy(compose.FRONT_END.features(made[0].sound))[None], compose.FRONT_END.stack
    )
    to_onnx(model, None, tmp_path / "m.onnx")
    program = load(tmp_path / "m.onnx")
    found = evaluate.judged(program, made)
    assert found["strings"] == len(toy) and found["words"] == sum(len(clip.words) for clip in made)
    wrong = 0
    for clip in made:
        features = torch.from_numpy(compose.FRONT_END.features(clip.sound))[None]
        wanted = transcript(model(features)[0].detach().numpy())
        heard = evaluate.heard(program, clip.sound)
        assert tuple(word.label for word in heard) == wanted and wanted
        assert heard == sorted(heard, key=lambda word: word.time)
        wrong += token_errors(clip.words, wanted)
    assert found["token_error_rate"] == pytest.approx(wrong / found["words"])
    joined = evaluate.streams(made)
    assert [clip.voice for clip in joined] == ["voice0", "voice1"]
    assert sum(len(clip.sound) for clip in joined) == sum(len(clip.sound) for clip in made)


# --- the results page --------------------------------------------------------------------------------------------


def row(model: str, rates: tuple[float, ...], checkpoint_bytes: int, **config: int) -> dict[str, Any]:
    """A model as the result file has it; `rates` are by voice."""
    level = {
        "token_error_rate": sum(rates) / len(rates),
        "words": 2000,
        "strings": 700,
        "by_voice": {f"voice{index}": rate for index, rate in enumerate(rates)},
        "latency_seconds": {"median": 0.1, "p95": 0.2},
    }
    return {
        "model": model,
        "seed": 0,
        "levels": dict.fromkeys(page.LEVELS, level),
        "streams": {"token_error_rate": level["token_error_rate"]},
        "parameters": checkpoint_bytes // 2,
        "checkpoint_bytes": checkpoint_bytes,
        "macs_per_step": 1000,
        "recipe": {"short_steps": 1, "steps": 2, "batch": 3},
        "config": {"layers": 4, "width": 128, "fold": 2, "ffn_fold": 0, **config},
        "course": [{"step": 3, "loss": 1.0, "validation": 0.25, "cpu_minutes": 7.0}],
    }


def result(*rates: tuple[float, ...]) -> dict[str, Any]:
    """Without folding, attention folded, all folded."""
    rows = [
        row("n1", rates[0], 100_000, fold=1),
        row("n2-attention", rates[1], 76_000, ffn_fold=1),
        row("n2-wide", rates[2], 90_000),
    ]
    step = {found["model"]: {"ratio": 1.0} for found in rows}
    return {"rows": rows, "step": step, "seconds_per_step": 0.36, "look_ahead_seconds": 0.06}


BASE = (0.04, 0.06)


def test_the_page_tells_what_was_reached_and_what_was_missed() -> None:
    (claim,) = page.section(result(BASE, (0.05, 0.052), (0.08, 0.10))).claims
    assert "`n2-attention`: 24 % smaller (100,000 to 76,000 bytes), token errors 5.0 % to 5.1 % clean" in claim.measured
    assert "last word known after 0.10 s to 0.10 s, 1.00 times the multiply-accumulates" in claim.measured
    attention, wide = claim.verdict.split("; `n2-wide`: ")
    alike = "saves as much as the paper; accuracy alike clean and at 10 dB and at 0 dB; +0.1 ± 1.8 clean"
    assert attention.startswith(f"`n2-attention`: {alike}") and "training" not in attention
    worse = "saves less than the paper; more errors than without folding clean and at 10 dB and at 0 dB; +4.0 ± 0.0"
    assert (
        wide.startswith(worse) and "fits its training strings as well (training loss at the end 1.00 to 1.00)" in wide
    )
    assert "fewer errors" in page.section(result(BASE, (0.01, 0.03), BASE)).claims[0].verdict


def test_levels_that_differ_are_told_apart() -> None:
    found = result(BASE, BASE, BASE)
    found["rows"][1]["levels"]["10db"] = row("n2-attention", (0.08, 0.10), 76_000)["levels"]["10db"]
    found["rows"][1]["course"][-1]["loss"] = 2.0
    attention = page.section(found).claims[0].verdict.split("; `n2-wide`: ")[0]
    assert "more errors than without folding at 10 dB; accuracy alike clean and at 0 dB" in attention
    assert attention.endswith("it fits its training strings less well too (training loss at the end 1.00 to 2.00)")


def test_the_tables_say_what_is_folded_and_how_it_learned() -> None:
    factors, course = page.section(result(BASE, BASE, BASE)).tables
    assert [cells[1] for cells in factors.rows] == ["1", "2 (attention)", "2"]
    assert course.rows[0] == ["n1", "25.0 %", "7"]
    assert all(len(cells) == len(table.heads) for table in (factors, course) for cells in table.rows)


def test_a_missing_model_is_left_out() -> None:
    found = result(BASE, BASE, BASE)
    found["rows"] = [found["rows"][0], found["rows"][2]]
    assert "n2-attention" not in page.section(found).claims[0].measured
