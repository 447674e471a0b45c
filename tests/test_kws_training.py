"""The training of the spotter: labels, masks, schedule, weight averages, and how it is measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import training
from bench.tasks.kws import __main__ as recipes
from bench.tasks.kws import augment, card, clip_sets, evaluate, measure, page, pool, train, voices
from bench.tasks.kws.augment import Placed, or_silence
from bench.tasks.kws.features import FRONT_END, WARPS, features_of
from bench.timing import RESULTS
from edgemem.cells.spiking import ChannelNorm
from edgemem.checkpoints import packaged
from edgemem.models import build_model
from edgemem.models.kws_lmuformer import KWSConfig, KWSLMUFormer
from edgemem.models.listing import listing
from edgemem.tasks.kws import LABELS

RECIPE = train.Recipe(steps=40, batch=4, warm_up=0.1, judged=0.25)
YES, NO, UNKNOWN, SILENCE = (LABELS.index(label) for label in ("yes", "no", "unknown", "silence"))


def tiny() -> KWSLMUFormer:
    torch.manual_seed(0)
    return KWSLMUFormer(KWSConfig(layers=1, width=8, convolutions=1, channels=2, order=4))


def toy_batches(seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows whose first bands say which of two labels they have; in every fifth row silence would do too."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        labels = torch.randint(2, (4, 1), generator=draw).expand(4, 20).clone()
        x = torch.randn(4, 20, FRONT_END.width, generator=draw) - 5.0
        x[:, :, :10] += 6.0 * labels[:, :, None]
        labels[:, ::5] = or_silence(labels[:, ::5])
        yield x, labels


def test_fast_features_are_those_of_the_front_end() -> None:
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 9000)).astype(np.float32)
    sound[1] *= 1e-4
    came = features_of(torch.from_numpy(sound)).numpy()
    wanted = np.stack([FRONT_END.features(row) for row in sound])
    assert came.shape == wanted.shape
    np.testing.assert_allclose(came, wanted, atol=1e-4)  # float32 sums against float64, through a logarithm


def sine(hz: float) -> Tensor:
    return torch.sin(2 * torch.pi * hz * torch.arange(8000) / 16_000)[None] * 0.5


@pytest.mark.parametrize("index", [0, 4, len(WARPS) // 2, len(WARPS) - 1])
def test_a_warped_sound_has_its_frequencies_multiplied(index: int) -> None:
    warped = features_of(sine(1000.0), torch.tensor([index]))[0, 5, : FRONT_END.mels]
    wanted = features_of(sine(1000.0 * WARPS[index]))[0, 5, : FRONT_END.mels]
    assert abs(int(warped.argmax()) - int(wanted.argmax())) <= 1  # a bin is wider than half a band there


def test_a_tone_is_a_gain_for_each_band() -> None:
    sound = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (1, 4000))).float()
    tone = torch.linspace(-2.0, 2.0, FRONT_END.mels)[None]
    difference = features_of(sound, tone=tone) - features_of(sound)
    torch.testing.assert_close(difference[0], tone.tile(len(difference[0]), FRONT_END.stack), atol=1e-3, rtol=0.0)


def test_disguises_are_all_warps_and_smooth_tones() -> None:
    draw, recipe = np.random.default_rng(0), train.Recipe(batch=500, warped=1.0)
    warp, tone = train.warps(recipe, draw), train.tones(recipe, draw)
    assert set(warp.tolist()) == set(range(len(WARPS)))
    assert tone.shape == (500, FRONT_END.mels) and tone.diff(dim=1).abs().max() < tone.abs().max() / 3
    recipe = train.Recipe(batch=50, warped=0.0, tone=0.0)
    warp, tone = train.warps(recipe, draw), train.tones(recipe, draw)
    assert (warp == len(WARPS) // 2).all() and (tone == 0).all() and WARPS[len(WARPS) // 2] == pytest.approx(1.0)


def test_a_pool_gives_every_sequence_once_in_each_round() -> None:
    features = np.arange(10, dtype=np.float16)[:, None, None] * np.ones((1, 3, FRONT_END.width), np.float16) - 6
    kept = pool.Pool(features, np.arange(30, dtype=np.int8).reshape(10, 3))
    plain = train.Recipe(batch=5, tone=0.0, gain=0.0)
    source = pool.batches(kept, plain)
    rounds = [torch.cat([next(source)[1][:, 0] for _ in range(2)]).tolist() for _ in range(2)]
    assert all(sorted(seen) == list(range(0, 30, 3)) for seen in rounds) and rounds[0] != rounds[1]
    x, labels = next(pool.batches(kept, plain))
    assert x.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(x[:, 0, 0], labels[:, 0] / 3 - 6.0)


def test_varied_sequences_have_one_colour_each_and_stay_above_the_floor() -> None:
    recipe = train.Recipe(batch=4, tone=1.0, gain=0.5)
    x = torch.zeros(4, 6, FRONT_END.width)
    y = pool.varied(x, recipe, np.random.default_rng(0))
    assert torch.equal(y, y[:, :1].expand_as(y)) and not torch.equal(y[0], y[1])
    assert torch.equal(y[..., : FRONT_END.mels], y[..., FRONT_END.mels :])  # of both frames
    assert torch.all(pool.varied(x - 100.0, recipe, np.random.default_rng(0)) == pool.LOWEST)


def test_labels_start_late_in_the_word_where_asked() -> None:
    placed = [Placed(YES, 16_000, 24_000)]
    rows = FRONT_END.rows(40_000)
    ends = np.asarray(FRONT_END.frame_end_seconds(np.arange(rows)))
    for share in (0.5, 0.9):
        labelled = ends[augment.row_labels(placed, FRONT_END, rows, share) == YES]
        assert 1.0 + 0.5 * share <= labelled[0] < 1.0 + 0.5 * share + FRONT_END.seconds_per_frame


def test_masks_cover_whole_rows_and_the_same_band_of_both_frames() -> None:
    x, fill = torch.ones(6, 50, FRONT_END.width), torch.full((FRONT_END.width,), -3.0)
    recipe = train.Recipe(time_masks=1, band_masks=0)
    rows = training.masked(x, fill, FRONT_END.stack, recipe, np.random.default_rng(1)) == -3.0
    assert torch.equal(rows.any(dim=2), rows.all(dim=2)) and 0 < rows.any(dim=2).sum(dim=1).max() <= 5
    recipe = train.Recipe(time_masks=0, band_masks=1)
    bands = training.masked(x, fill, FRONT_END.stack, recipe, np.random.default_rng(1)) == -3.0
    assert torch.equal(bands.any(dim=1), bands.all(dim=1)) and bands.any()
    assert torch.equal(bands[..., : FRONT_END.mels], bands[..., FRONT_END.mels :])


def test_rate_warms_up_and_fades() -> None:
    assert training.rate_at(0.05, RECIPE.rate, RECIPE.warm_up) == pytest.approx(RECIPE.rate / 2)
    assert training.rate_at(0.1, RECIPE.rate, RECIPE.warm_up) == pytest.approx(RECIPE.rate)
    assert training.rate_at(1.0, RECIPE.rate, RECIPE.warm_up) == pytest.approx(0.0, abs=1e-12)


def test_normalisation_gives_bands_of_mean_zero_and_deviation_one() -> None:
    x = 3.0 * torch.randn(4, 500, FRONT_END.width) - 7.0
    model = tiny()
    training.normalise(model, x, FRONT_END.stack)
    y = (x - model.center) * model.scale
    assert y.mean().abs() < 1e-3 and abs(float(y.std()) - 1.0) < 1e-2
    assert torch.equal(model.center[: FRONT_END.mels], model.center[FRONT_END.mels :])


def test_the_loss_is_that_of_the_labels_that_are_right() -> None:
    x, labels = next(toy_batches())
    model, plain = tiny(), train.Recipe(label_smoothing=0.1, bfloat16=False)
    losses = []
    with torch.no_grad():
        for row, label in zip(torch.softmax(model(x), dim=2).flatten(0, 1), labels.flatten().tolist(), strict=True):
            if label >= 0:
                losses.append(-0.9 * row[label].log() - 0.1 * row.log().mean())
            else:
                losses.append(-(row[or_silence(label)] + row[SILENCE]).log())
        came = train.loss_of(model, x, labels, plain)
    torch.testing.assert_close(came, torch.stack(losses).mean())


def test_half_precision_hardly_moves_the_loss() -> None:
    x, labels = next(toy_batches())
    with torch.no_grad():
        exact, half = (train.loss_of(tiny(), x, labels, train.Recipe(bfloat16=half)) for half in (False, True))
    assert half.dtype == torch.float32 and abs(float(exact - half)) < 0.02 * float(exact)


def test_training_learns_and_returns_what_the_judge_liked_best() -> None:
    scores: list[float] = []

    def judge(model: nn.Module) -> float:
        x, labels = next(toy_batches(seed=9))
        with torch.no_grad():
            right = model(x).argmax(dim=2) == labels
        scores.append(float(right[labels >= 0].float().mean()))
        return scores[-1]

    model = train.train(tiny(), toy_batches(), RECIPE, judge, report=lambda line: None)
    assert len(scores) == 4
    assert judge(model) == max(scores[2:4])  # candidates are averages, which begin at 60 %
    assert judge(model) > 0.9 and not model.training


def test_the_average_moves_by_its_share() -> None:
    model, other = tiny(), tiny()
    start = training.blended({}, model, 0.75)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    after = training.blended(start, other, 0.75)
    torch.testing.assert_close(after["head.weight"], model.head.weight.detach() + 0.25)


def scene(*words: tuple[int, float, float], seconds: float = 4.0) -> evaluate.Scene:
    placed = [Placed(label, round(start * 16_000), round(end * 16_000)) for label, start, end in words]
    return np.zeros(round(seconds * 16_000), np.float32), placed


def bumps(*words: tuple[int, float], seconds: float = 4.0) -> augment.Array:
    """Posteriors in which each label stands for 0.3 s from a time on."""
    rows = FRONT_END.rows(round(seconds * 16_000))
    ends = np.asarray(FRONT_END.frame_end_seconds(np.arange(rows)))
    values = np.zeros((rows, len(LABELS)))
    for label, start in words:
        values[(ends > start) & (ends <= start + 0.3), label] = 1.0
    return values


def test_tally_counts_hits_misses_and_false_alarms() -> None:
    made = [scene((YES, 0.5, 1.0), (UNKNOWN, 1.5, 1.9), (NO, 2.5, 3.0))]
    rule = {"threshold": 0.5, "refractory": 0.2, "smoothing": 1}
    right = evaluate.tally([bumps((YES, 1.0), (UNKNOWN, 1.9), (NO, 3.0))], made, **rule)
    assert (right["keywords"], right["hit_rate"], right["precision"]) == (2, 1.0, 1.0)
    assert 0.0 < right["median_delay_seconds"] <= FRONT_END.seconds_per_frame
    wrong = evaluate.tally([bumps((NO, 1.0), (NO, 1.9), (NO, 3.2))], made, **rule)
    assert wrong["hit_rate"] == 0.5 and wrong["precision"] == pytest.approx(1 / 3)
    assert wrong["false_alarms_per_hour"] == pytest.approx(2 / (4 / 3600))
    late = evaluate.tally([bumps((YES, 1.7))], made, **rule)
    assert late["hit_rate"] == 0.0 and late["precision"] == 0.0


def test_one_word_is_hit_once() -> None:
    made = [scene((YES, 0.5, 1.0))]
    found = evaluate.tally([bumps((YES, 0.6), (YES, 1.1))], made, threshold=0.5, refractory=0.1, smoothing=1)
    assert found["hit_rate"] == 1.0 and found["precision"] == 0.5


def test_confusion_counts_spoken_by_decided() -> None:
    rows = np.stack([bumps((YES, 0.3)), bumps((NO, 0.3)), bumps()])
    counts = evaluate.confusion(rows, np.array([YES, YES, SILENCE]), threshold=0.5, smoothing=1)
    assert (counts[YES, YES], counts[YES, NO], counts[SILENCE, SILENCE]) == (1, 1, 1)
    assert evaluate.accuracy(counts) == pytest.approx(2 / 3)


def test_every_speaker_has_an_accuracy_of_its_own() -> None:
    rows = np.stack([bumps((YES, 0.3)), bumps((NO, 0.3)), bumps((NO, 0.3)), bumps()])
    labels, voices = np.array([YES, YES, NO, SILENCE]), np.array(["ann", "bob", "ann", ""])
    said, nothing = np.array(["yes", "yes", "no", ""]), np.zeros(4, np.int64)
    clips = clip_sets.Clips(np.zeros((4, 1), np.int16), labels, said, voices, nothing, nothing)
    assert evaluate.by_voice(rows, clips) == {"ann": 1.0, "bob": 0.0}


def test_cost_counts_every_product_once() -> None:
    config = KWSConfig()
    width, memory = config.width, config.channels * config.order
    embed = 3 * width * (config.features + (config.convolutions - 1) * width)
    lmu = width * config.channels + memory * (config.order + 1) + width * (memory + width)
    mixer = 2 * width * config.expand * width  # the depthwise convolution is elementwise
    average = len(LABELS) + 1
    wanted = embed + config.layers * (lmu + mixer) + width * len(LABELS) + average
    found = measure.cost("kws-lmuformer", packaged("kws-lmuformer.safetensors"))
    assert found["macs_per_second_of_audio"] == 50 * wanted and found["seconds_per_step"] == 0.02


def test_spikes_are_counted_and_only_where_there_are_neurons() -> None:
    clips = np.random.default_rng(0).integers(-3000, 3000, (2, 16_000)).astype(np.int16)
    nothing = np.zeros(2, np.int64)
    made = clip_sets.Clips(clips, nothing, np.array(["a", "b"]), np.array(["a", "b"]), nothing, nothing)
    spiking, _ = build_model("kws-spiking-lmuformer", {"layers": 1, "width": 16}, seed=0)
    rate = measure.spike_rate(spiking, made)
    assert rate is not None and 0.0 < rate < 1.0
    with torch.no_grad():
        for part in spiking.modules():
            if isinstance(part, ChannelNorm):
                part.bias.fill_(1e9)
    assert measure.spike_rate(spiking, made) == 1.0
    assert measure.spike_rate(tiny(), made) is None


def test_early_decisions_see_only_what_was_heard() -> None:
    start, end = 3200, 11_200  # 0.2 s to 0.7 s
    clips = clip_sets.Clips(
        *(np.zeros((2, 16_000), np.int16), np.array([YES, SILENCE]), np.array(["yes", ""]), np.array(["a", ""])),
        starts=np.array([start, 0]),
        ends=np.array([end, 0]),
    )
    rows = np.stack([bumps((NO, 0.2), (YES, 0.5), seconds=1.0), bumps(seconds=1.0)])
    rows[:, :, SILENCE] = 1.0  # is not asked
    found = measure.early_decisions(rows, clips)
    accuracy = dict(zip(found["share_heard"], found["accuracy"], strict=True))
    assert accuracy[0.3] == 0.0 and accuracy[0.7] == accuracy[1.0] == 1.0  # 0.2 + 0.5 * 0.6 = 0.5 s
    assert 0.6 < found["enough"] <= 0.7 and found["shortened"] == pytest.approx(0.0)


def test_a_cut_clip_is_judged_by_its_first_rows() -> None:
    """One word ends at 0.5 s, the other at 0.7 s: at two points of accuracy less, the second has to be heard too."""
    nothing = np.zeros(2, np.int64)
    clips = clip_sets.Clips(
        *(np.zeros((2, 16_000), np.int16), np.array([YES, NO]), np.array(["yes", "no"]), np.array(["a", "a"])),
        starts=nothing,
        ends=nothing,
    )
    rows = np.stack([bumps((YES, 0.4), seconds=1.0), bumps((NO, 0.6), seconds=1.0)])
    found = measure.cut_clips(rows, clips)
    accuracy = dict(zip(found["share_kept"], found["accuracy"], strict=True))
    assert accuracy[0.3] == 0.0 and accuracy[0.5] == 0.5 and accuracy[0.75] == accuracy[1.0] == 1.0
    assert 0.6 <= found["enough"] <= 0.75 and found["shortened"] == pytest.approx(1.0 - found["enough"])


def test_words_are_moved_to_the_middle_of_their_clips() -> None:
    sounds = np.zeros((3, 16_000), np.int16)
    sounds[0, 100:4100] = sounds[1, 12_000:16_000] = np.arange(1, 4001)
    sounds[2] = 7  # silence stays
    clips = clip_sets.Clips(
        *(sounds, np.array([YES, NO, SILENCE]), np.array(["yes", "no", ""]), np.array(["a", "a", ""])),
        starts=np.array([100, 12_000, 0]),
        ends=np.array([4100, 16_000, 0]),
    )
    moved = measure.centred(clips)
    for row in (0, 1):
        assert (moved.starts[row], moved.ends[row]) == (6000, 10_000)
        assert (
            np.array_equal(moved.clips[row, 6000:10_000], np.arange(1, 4001))
            and moved.clips[row].astype(int).sum() == 8_002_000
        )
    assert np.array_equal(moved.clips[2], sounds[2]) and sounds[0, 100] == 1


def test_the_shipped_spotter_is_listed_with_its_size() -> None:
    row = next(row for row in listing() if row["name"] == "kws-lmuformer")
    assert row["parameters"] <= 150_000 and row["state_bytes"] < 8192 and row["trained"]


def test_the_shipped_spotter_understands_the_shipped_excerpt() -> None:
    spotter, _ = build_model("kws-lmuformer")
    with np.load(packaged("kws_excerpt.npz"), allow_pickle=False) as file:
        sounds = file["clips"].astype(np.float32) / np.float32(32_768)
        labels = file["labels"]
    with torch.no_grad():
        rows = torch.softmax(spotter(features_of(torch.from_numpy(sounds))), dim=2).numpy()
    assert evaluate.accuracy(evaluate.confusion(rows, labels)) >= 0.9  # 95 % of more clips; 180 clips scatter by 2 %


@pytest.mark.parametrize("name", card.entries_of(RESULTS / "kws.json"))
def test_a_card_says_what_was_measured(name: str) -> None:
    entry = card.entries_of(RESULTS / "kws.json")[name]
    assert packaged(f"{name}.md").read_text() == card.card(entry)
    assert f"{100 * entry['accuracy']['clean']:.1f} %" in card.card(entry)
    module, _ = build_model(name)
    assert sum(p.numel() for p in module.parameters()) == entry["parameters"]
    assert packaged(f"{name}.safetensors").stat().st_size == entry["checkpoint_bytes"] < 1_000_000


def test_the_shipped_spotter_keeps_its_promise() -> None:
    entry = card.entries_of(RESULTS / "kws.json")["kws-lmuformer"]
    assert entry["accuracy"]["clean"] >= 0.95 and entry["parameters"] <= 150_000
    held_out = {f"espeak:{name}" for name in voices.ESPEAK["test"]} | {f"flite:{name}" for name in voices.FLITE["test"]}
    assert set(entry["test_voices"]) == held_out


def entry(name: str, parameters: int, macs: int, clean: float, **more: float) -> dict[str, Any]:
    """A model as the result file has it."""
    return {
        "model": name,
        "parameters": parameters,
        "macs_per_second_of_audio": macs,
        "state_bytes": 100,
        "accuracy": {"clean": clean, "10db": 0.6, "0db": 0.3},
        "accuracy_by_voice": {"clean": {"ann": clean, "bob": clean, card.PERSON: clean / 2}},
        "early": {"enough": 0.9, "shortened": 0.25},
        "cut": {"centred": {"shortened": 0.25}, "anywhere": {"shortened": 0.05}},
        "rejected": {"ordinary": {"as_unknown": 0.8}},
        "test_voices": ["ann", "bob"],
        "clips_per_level": 12,
        "training": {
            "words": 50,
            "voices": 4,
            "processor_minutes": parameters / 1e5,
            "recipe": {"steps": 10, "rate": 0.003},
        },
        **more,
    }


def result(transformer: float = 0.9, spiking: float = 0.945) -> dict[str, Any]:
    models = (
        entry("kws-lmuformer", 100_000, 5_000_000, 0.95),
        entry("kws-transformer", 400_000, 400_000_000, transformer),
        entry("kws-spiking-lmuformer", 100_000, 5_000_000, spiking, spikes_per_neuron_and_row=0.25),
    )
    return {**models[0], "compared": {model["model"]: model for model in models}}


def test_the_page_compares_with_the_paper() -> None:
    section = page.section(result())
    size, early, spiking = section.claims
    assert size.measured == "4.0 x fewer parameters, 80.0 x fewer multiply-accumulates, accuracy 5.0 points higher"
    assert size.verdict.startswith("parameters short by a factor of 13, operations reached:")
    assert early.measured.startswith("clips 25 % shorter") and "5 % where words lie anywhere" in early.measured
    assert early.verdict.startswith("short by a factor of 1.3:")
    assert spiking.verdict == "comparable" and "0.25 spikes per neuron and row" in spiking.measured
    assert "for 10 steps." in section.text
    assert "1.0 to 4.0 minutes of one core" in section.text
    assert [row[0] for row in section.tables[2].rows] == [f"`{name}`" for name in result()["compared"]]


def test_the_page_shows_the_recorded_man_beside_all_voices() -> None:
    rows = page.shipped(result()).rows
    assert ["clean", "95.0 %"] in rows and ["clean, the recorded man", "47.5 %"] in rows


def test_the_recipe_is_the_one_that_made_the_shipped_spotter() -> None:
    """Steps and recipe of the result are those of the code, so that the command gives the checkpoint again."""
    made = card.entries_of(RESULTS / "kws.json")["kws-lmuformer"]["training"]
    assert made["recipe"] == json.loads(json.dumps(asdict(train.Recipe(steps=recipes.SHIPPED_STEPS))))


def test_the_page_says_what_falls_short() -> None:
    size, _, spiking = page.section(result(transformer=0.97, spiking=0.9)).claims
    assert "accuracy 2.0 points lower" in size.measured and spiking.verdict.startswith("5.0 points short")
    assert [claim.claim[:7] for claim in page.section({**result(), "compared": {}}).claims] == ["32.03 %"]
