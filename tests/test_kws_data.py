"""The keyword recipe: who speaks where, what a word set holds, and labels that say what can be heard."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bench.tasks.kws import augment, clip_sets, data, noise, speech_commands, synthesis, wordset
from bench.tasks.kws.augment import Placed, Recipe, StreamMaker, or_silence
from bench.tasks.kws.speakers import drawn_speakers
from bench.tasks.kws.voices import DRAWN, ESPEAK, FLITE, SPLITS
from bench.tasks.kws.words import COMMON, SEEN_UNKNOWN, SILENCE, UNKNOWN, UNSEEN_UNKNOWN, label_of, unknown_words
from bench.tasks.kws.wordset import SAMPLE_RATE, SPEECH_RMS, Spoken, WordSet, gathered, trimmed
from edgemem.audio import FrontEnd, read_audio
from edgemem.errors import InputError, MissingDependency, UsageError
from edgemem.tasks.kws import KEYWORDS, LABELS

Array = np.ndarray[Any, np.dtype[Any]]
FRONT_END = FrontEnd(stack=2)
PLAIN = Recipe(speeds=(1.0,), clean=1.0, reverb=0.0, tilt=0.0, empty=0.0, gain_db=(0.0, 0.0), word_gain_db=(0.0, 0.0))


def burst(samples: int, seed: int, quiet: int = 3200) -> Array:
    """Loud noise of `samples` with silence on either side."""
    sound = np.random.default_rng(seed).uniform(-0.3, 0.3, samples)
    return np.concatenate([np.zeros(quiet), sound, np.zeros(quiet)]).astype(np.float32)


def toy_words(voices: int = 3) -> WordSet:
    """Every keyword and two other words, each a burst of its own length, by some voices."""
    words = [*KEYWORDS, "dog", "tree"]
    return gathered(
        trimmed(word, f"voice{v}", burst(3200 + 160 * index, seed=100 * v + index))
        for v in range(voices)
        for index, word in enumerate(words)
    )


@pytest.fixture(scope="module")
def words() -> WordSet:
    return toy_words()


# --- words and voices ----------------------------------------------------------------------------------------------


def test_a_speaker_is_in_one_split_only() -> None:
    for table in (ESPEAK, FLITE, DRAWN):
        assert set(table) == set(SPLITS)
        names = [name for split in SPLITS for name in table[split]]
        assert len(names) == len(set(names))
    assert FLITE["test"] == ("rms",)
    assert len(DRAWN["train"]) == 400 and not DRAWN["valid"] + DRAWN["test"]


def test_drawn_speakers_are_all_different_and_have_a_whole_tract() -> None:
    files = drawn_speakers()
    assert len(set(files.values())) == len(files) and not set(files) & {name for s in SPLITS for name in ESPEAK[s]}
    for name, lines in files.items():
        assert lines[1] == f"name {name}"
        formants = [line.split() for line in lines if line.startswith("formant")]
        assert [int(row[1]) for row in formants] == list(range(9))
        assert all(60 <= int(row[2]) <= 180 for row in formants[1:3])  # a vowel needs its first two
        low, high = (float(part) for part in lines[2].split()[1:])
        assert lines[2].startswith("pitch") and 60 <= low < high <= 440


def test_words_have_one_label_each() -> None:
    everything = (*KEYWORDS, *SEEN_UNKNOWN, *COMMON, *UNSEEN_UNKNOWN)
    assert len(everything) == len(set(everything)) and len(SEEN_UNKNOWN) >= 60
    assert set(UNSEEN_UNKNOWN) <= set(unknown_words("test")) and not set(UNSEEN_UNKNOWN) & set(unknown_words("train"))
    assert [label_of(word) for word in KEYWORDS] == list(range(10)) and label_of("dog") == UNKNOWN


def test_the_recipe_is_fixed_and_covers_every_word_by_every_voice() -> None:
    for split, least in (("train", 35_000), ("valid", 1_500), ("test", 2_500)):
        asked = synthesis.recipe(split)
        assert least < len(asked) and asked == synthesis.recipe(split)
        said = {(r.word, r.engine, r.voice) for r in asked if r.voice not in DRAWN[split]}
        voices = len(ESPEAK[split]) + len(FLITE[split])
        assert len(said) == voices * (len(KEYWORDS) + len(unknown_words(split)))
        speakers = [r.speaker for r in asked]
        starts = sum(a != b for a, b in pairwise(speakers)) + 1
        assert starts == len(set(speakers)) == voices + len(DRAWN[split])  # those of a speaker one after another


def test_a_drawn_speaker_says_every_keyword_and_a_part_of_the_vocabulary() -> None:
    asked = [r for r in synthesis.recipe("train") if r.voice == "drawn7"]
    said = [r.word for r in asked]
    assert all(said.count(word) == 3 for word in KEYWORDS) and len(asked) == 60
    others = [word for word in said if word not in KEYWORDS]
    assert len(set(others)) == 30 and set(others) <= {*SEEN_UNKNOWN, *COMMON}
    assert others != synthesis.other_words("drawn8")


def test_flite_gets_every_setting() -> None:
    asked = synthesis.Rendition("yes", "flite", "slt", speed=0.8, pitch=1.1, ending="?")
    assert synthesis.command(asked, "a.wav") == [
        *("flite", "-voice", "slt", "--setf", "duration_stretch=1.250", "--setf", "f0_shift=1.1"),
        *("-t", "yes?", "-o", "a.wav"),
    ]  # fmt: skip


def test_a_missing_synthesiser_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis.shutil, "which", lambda tool: None if tool == "flite" else tool)
    with pytest.raises(MissingDependency, match=r"^flite not found; apt-get install .* --install"):
        synthesis.check_tools()


def test_an_accent_that_ignores_variants_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoken(asked: list[synthesis.Rendition]) -> list[Spoken]:
        deaf = [np.ones(9) * (rendition.accent == "en" or len(rendition.voice)) for rendition in asked]
        return [Spoken("yes", "v", sound, 0, 9) for sound in deaf]

    monkeypatch.setattr(synthesis, "all_spoken", spoken)
    with pytest.raises(MissingDependency, match="espeak-ng speaks en without its variants"):
        synthesis.check_accents()


def test_a_word_that_takes_too_long_is_spoken_faster_and_one_too_short_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = []

    def slow(asked: synthesis.Rendition) -> Array:
        speeds.append(asked.speed)
        return burst(round(20_000 * 100 / asked.speed), seed=1)

    monkeypatch.setattr(synthesis, "synthesized", slow)
    said = synthesis.spoken(synthesis.Rendition("backward", "espeak", "", speed=100))
    assert speeds == [100, 125, 156.25] and said.end - said.start <= 0.85 * SAMPLE_RATE
    speeds.clear()
    said = synthesis.spoken(synthesis.Rendition("up", "espeak", "", speed=1000))
    assert speeds == [1000, 800, 640] and said.end - said.start >= 0.18 * SAMPLE_RATE
    monkeypatch.setattr(synthesis, "synthesized", lambda asked: burst(20_000, seed=1))
    with pytest.raises(InputError, match=r"at most 0\.85 s was wanted"):
        synthesis.spoken(synthesis.Rendition("backward", "espeak", "", speed=100))


# --- word sets -----------------------------------------------------------------------------------------------------


def test_a_word_is_found_by_its_energy_and_made_as_loud_as_all_others() -> None:
    said = trimmed("yes", "v", burst(4000, seed=3, quiet=4800))
    assert said.start == 800 and said.end - said.start == 4000 and len(said.sound) == 5600
    assert np.sqrt(np.mean(said.sound[said.start : said.end] ** 2)) == pytest.approx(SPEECH_RMS, rel=1e-3)


def test_a_recorded_word_is_found_in_its_noise() -> None:
    sound = burst(4800, seed=3, quiet=5600)
    sound += np.random.default_rng(0).normal(0, 0.01, len(sound)).astype(np.float32)  # 25 dB below: above -36 dB
    assert wordset.active_span(sound) == (0, 16_000)
    assert wordset.active_span(sound, recorded=True) == (5600, 10_400)


def test_silence_is_no_word() -> None:
    with pytest.raises(InputError, match="'yes' by v: speech was wanted, silence came"):
        trimmed("yes", "v", np.zeros(8000, np.float32))


def test_a_saved_set_is_read_as_it_was(words: WordSet, tmp_path: Path) -> None:
    words.save(tmp_path, "train")
    again = data.load("train", tmp_path)
    assert len(again) == 36 and again.words == words.words and again.voices == words.voices
    for index in (0, 17, 35):
        a, b = words[index], again[index]
        assert (a.word, a.voice, a.start, a.end) == (b.word, b.voice, b.start, b.end)
        np.testing.assert_array_equal(a.sound, b.sound)
    np.testing.assert_array_equal(again.labels, words.labels)
    with pytest.raises(InputError, match=r"python -m bench\.tasks\.kws\.data"):
        data.load("valid", tmp_path)
    with pytest.raises(UsageError, match="got 'validation'"):
        data.load("validation", tmp_path)


# --- Speech Commands -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Speech Commands folder in small: three words by six speakers, one of them for each list."""
    folder = tmp_path_factory.mktemp("speech_commands")
    for word in ("yes", "stop", "dog"):
        (folder / word).mkdir()
        for speaker in range(6):
            sound = burst(4800, seed=speaker, quiet=5600)
            soundfile.write(folder / word / f"{speaker:08x}_nohash_0.wav", sound, 16_000)
    soundfile.write(folder / "dog" / "0000000f_nohash_0.wav", np.zeros(16_000), 16_000)
    (folder / "_background_noise_").mkdir()
    soundfile.write(folder / "_background_noise_" / "tap.wav", burst(40_000, seed=9), 16_000)
    for name, speaker in (("validation_list.txt", 4), ("testing_list.txt", 5)):
        lines = [f"{word}/{speaker:08x}_nohash_0.wav" for word in ("yes", "stop", "dog")]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def test_speech_commands_are_split_by_their_lists(commands: Path) -> None:
    sets = {split: speech_commands.read(commands, split) for split in SPLITS}
    assert {split: len(found) for split, found in sets.items()} == {"train": 12, "valid": 3, "test": 3}
    assert sets["valid"].voices == ("00000004",) and sets["test"].voices == ("00000005",)
    assert sets["train"].voices == tuple(f"{speaker:08x}" for speaker in range(4))  # and not the silent file
    said = sets["test"][0]
    assert (said.word, said.start, said.end, len(said.sound)) == ("dog", 5600, 10_400, 16_000)
    assert sorted(set(sets["train"].labels)) == [label_of("yes"), label_of("stop"), UNKNOWN]
    assert len(sets["train"].background) == 1 and len(sets["train"].background[0]) == 46_400


def test_speech_commands_background_joins_the_noise(commands: Path, tmp_path: Path) -> None:
    speech_commands.read(commands, "train").save(tmp_path, "train")
    bank = noise.NoiseBank(data.load("train", tmp_path), seed=0, seconds=1.0)
    assert bank.kinds["recorded"].shape == (46_400,)


def test_another_folder_is_not_speech_commands(tmp_path: Path, commands: Path) -> None:
    with pytest.raises(InputError, match=r"with validation_list\.txt was wanted"):
        speech_commands.read(tmp_path, "train")
    with pytest.raises(UsageError, match="got 'dev'"):
        speech_commands.read(commands, "dev")


def test_the_command_converts_speech_commands_and_says_what_is_wrong(tmp_path: Path, commands: Path) -> None:
    asked = [sys.executable, "-m", "bench.tasks.kws.data", "--folder", str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run([*asked, "--speech-commands", str(commands)], cwd=root, capture_output=True, text=True)
    # the words are written; there are too few of them for evaluation sets
    assert done.returncode == 2 and "train          12       4" in done.stdout
    assert "yes: 120 utterances were wanted, 1 are in the set" in done.stderr
    assert len(data.load("test", tmp_path)) == 3


# --- noise and rooms -----------------------------------------------------------------------------------------------


def test_coloured_noise_falls_as_it_should() -> None:
    for exponent in (0.0, 1.0, 2.0):
        sound = noise.colored(1 << 17, exponent, np.random.default_rng(0))
        power = np.abs(np.fft.rfft(sound)) ** 2
        hz = np.fft.rfftfreq(1 << 17, 1 / SAMPLE_RATE)
        octaves = [power[(hz >= low) & (hz < 2 * low)].mean() for low in (250, 500, 1000, 2000)]
        np.testing.assert_allclose(np.diff(np.log2(octaves)), -exponent, atol=0.15)


def test_every_kind_of_noise_has_the_same_loudness(words: WordSet) -> None:
    bank = noise.NoiseBank(words, seed=0, seconds=2.0)
    for name, sound in bank.kinds.items():
        assert sound.dtype == np.float32 and np.sqrt(np.mean(sound**2)) == pytest.approx(1.0, rel=1e-3), name
    random = np.random.default_rng(0)
    for _ in range(20):
        drawn = bank.draw(50_000, random)  # longer than the bank
        assert drawn.shape == (50_000,) and np.sqrt(np.mean(drawn**2)) == pytest.approx(1.0, rel=1e-3)


def test_a_room_keeps_time_and_loudness() -> None:
    sound = np.zeros(8000, np.float32)
    sound[1000:1400] = np.random.default_rng(0).uniform(-0.5, 0.5, 400)
    heard = noise.Rooms(8000, seed=0).heard(sound, np.random.default_rng(0))
    assert np.abs(heard[:1000]).max() < 1e-6 < np.abs(heard[1400:4000]).max()
    assert np.mean(heard**2) == pytest.approx(np.mean(sound**2), rel=1e-4)
    assert np.corrcoef(heard[1000:1040], sound[1000:1040])[0, 1] > 0.999


# --- clips and sequences -------------------------------------------------------------------------------------------


def test_a_clip_holds_the_whole_word_somewhere(words: WordSet) -> None:
    random, said = np.random.default_rng(0), words[0]
    places = set()
    for _ in range(30):
        made, begin = augment.clip(said, random)
        start, end = wordset.active_span(made)
        assert made.shape == (16_000,) and abs(end - start - (said.end - said.start)) <= 320
        assert abs(begin - start) <= 320
        places.add(start)
    assert len(places) > 10


def test_a_word_longer_than_a_clip_loses_both_ends() -> None:
    said = Spoken("yes", "v", np.arange(20_000, dtype=np.float32), 1000, 19_000)
    made, start = augment.clip(said, np.random.default_rng(0))
    np.testing.assert_array_equal(made, np.arange(2000, 18_000))
    assert start == 0


def test_noise_has_the_asked_ratio_to_the_word() -> None:
    speech = np.full(1000, SPEECH_RMS, np.float32)
    added = augment.in_noise(speech, np.ones(1000, np.float32), 20.0) - speech
    np.testing.assert_allclose(added, SPEECH_RMS / 10, rtol=1e-4)


def test_a_faster_word_is_shorter_and_its_times_move() -> None:
    said = trimmed("yes", "v", burst(4000, seed=1))
    quick = augment.faster(said, 1.25)
    assert abs(len(quick.sound) - len(said.sound) / 1.25) <= 1
    assert (quick.start, quick.end) == (640, 3840)


def test_rows_are_labelled_by_what_has_been_heard() -> None:
    # a word from 0.5 s to 1.0 s: told from 0.925 s on, held to 1.2 s, faded at 1.3 s; row r ends at 0.035 + 0.02 r
    labels = augment.row_labels([Placed(3, 8000, 16_000)], FRONT_END, 80)
    ends = FRONT_END.frame_end_seconds(np.arange(80))
    np.testing.assert_array_equal(labels[ends <= 0.5], SILENCE)
    np.testing.assert_array_equal(labels[(ends > 0.5) & (ends < 0.925)], or_silence(3))
    np.testing.assert_array_equal(labels[(ends >= 0.925) & (ends <= 1.2)], 3)
    np.testing.assert_array_equal(labels[(ends > 1.2) & (ends <= 1.3)], or_silence(3))
    np.testing.assert_array_equal(labels[ends > 1.3], SILENCE)


def test_a_following_word_takes_over() -> None:
    labels = augment.row_labels([Placed(3, 0, 8000), Placed(UNKNOWN, 9600, 16_000)], FRONT_END, 60)
    ends = FRONT_END.frame_end_seconds(np.arange(60))
    assert set(labels[(ends > 0.5) & (ends <= 0.6)]) == {3}
    assert set(labels[(ends > 0.6) & (ends < 0.94)]) == {or_silence(UNKNOWN)}
    assert set(labels[(ends >= 0.94) & (ends <= 1.2)]) == {UNKNOWN}


def test_batches_are_the_front_ends_features_and_repeat_with_the_seed(words: WordSet) -> None:
    first, second = (StreamMaker(words, FRONT_END, seed=5) for _ in range(2))
    features, labels = first.batch(6)
    assert features.shape == (6, 149, 80) and features.dtype == np.float32
    assert labels.shape == (6, 149) and labels.dtype == np.int64
    for row, label in zip(features, labels, strict=True):
        sound, placed = second.sequence()
        assert sound.shape == (48_000,) and sound.dtype == np.float32 and np.abs(sound).max() <= 1.0
        assert row.tobytes() == FRONT_END.features(sound).tobytes()
        np.testing.assert_array_equal(label, augment.row_labels(placed, FRONT_END, 149))
    assert not np.array_equal(StreamMaker(words, FRONT_END, seed=6).batch(6)[0], features)


def test_words_lie_where_the_sequence_says(words: WordSet) -> None:
    maker = StreamMaker(words, FRONT_END, seed=1, recipe=PLAIN)
    for _ in range(10):
        sound, placed = maker.sequence()
        assert len(placed) >= 2
        inside = np.zeros(len(sound), bool)
        for word in placed:
            inside[word.start : word.end] = True
            part = sound[word.start : word.end]
            # a cut last word has less than a whole word's loudness to show
            assert len(part) < 1600 or np.sqrt(np.mean(part**2)) == pytest.approx(SPEECH_RMS, rel=0.1)
        assert np.abs(sound[~inside]).max(initial=0.0) < 0.02  # the faint noise, and the resampler's ringing


def test_the_shares_of_labels_are_those_of_the_recipe(words: WordSet) -> None:
    maker = StreamMaker(words, FRONT_END, seed=2, recipe=Recipe(unknown=0.3, empty=0.2))
    sequences = [maker.sequence()[1] for _ in range(150)]
    said = [word.label for placed in sequences for word in placed]
    assert np.mean([label == UNKNOWN for label in said]) == pytest.approx(0.3, abs=0.07)
    assert np.mean([not placed for placed in sequences]) == pytest.approx(0.2, abs=0.08)
    assert set(said) == {*range(10), UNKNOWN}


@pytest.mark.parametrize("label", range(12))
def test_the_code_of_two_right_labels_is_none_of_one(label: int) -> None:
    assert or_silence(label) < 0 and or_silence(or_silence(label)) == label


# --- evaluation sets -----------------------------------------------------------------------------------------------


def test_evaluation_sets_are_balanced_and_differ_in_noise_alone(words: WordSet) -> None:
    clean, noisy = (clip_sets.evaluation_set(words, snr_db, per_label=3) for snr_db in (None, 10.0))
    assert clean.clips.shape == (36, 16_000) and clean.clips.dtype == np.int16
    np.testing.assert_array_equal(np.bincount(clean.labels), [3] * len(LABELS))
    for name in ("labels", "words", "voices"):
        np.testing.assert_array_equal(getattr(clean, name), getattr(noisy, name))
    assert set(clean.voices[:3]) == {"voice0", "voice1", "voice2"}
    added = (noisy.clips[:30].astype(float) - clean.clips[:30]) / 32_768
    ratio = 20 * np.log10(SPEECH_RMS / np.sqrt(np.mean(added**2, axis=1)))
    np.testing.assert_allclose(ratio, 10.0, atol=0.3)
    again = clip_sets.evaluation_set(words, 10.0, per_label=3)
    np.testing.assert_array_equal(again.clips, noisy.clips)


def test_clips_know_where_their_words_are(words: WordSet) -> None:
    made = clip_sets.evaluation_set(words, None, per_label=3)
    every = clip_sets.clean_clips(words, np.flatnonzero(words.labels == UNKNOWN))
    assert set(every.words) == {"dog", "tree"} and len(every.words) == 6
    for clips in (made, every):
        for clip, label, start, end in zip(clips.clips, clips.labels, clips.starts, clips.ends, strict=True):
            if label == SILENCE:
                assert start == end == 0
                continue
            first, last = wordset.active_span(clip / 32_768.0)
            assert abs(first - start) <= 320 and abs(last - end) <= 320


def test_evaluation_sets_are_written_and_read(words: WordSet, tmp_path: Path) -> None:
    words.save(tmp_path, "test")
    paths = dict(clip_sets.write(tmp_path, per_label=3))
    assert {path.name for path in paths} == {"test_clean.npz", "test_10db.npz", "test_0db.npz"}
    assert set(paths.values()) == {36}
    loaded = clip_sets.load(tmp_path, "0db")
    assert loaded.clips.shape == (36, 16_000) and loaded.words[0] == "yes"
    wanted = clip_sets.evaluation_set(data.load("test", tmp_path), 0.0, per_label=3)
    np.testing.assert_array_equal(loaded.starts, wanted.starts)
    with pytest.raises(InputError, match="5db"):
        clip_sets.load(tmp_path, "5db")


# --- what travels with the package ---------------------------------------------------------------------------------

DATA = Path(__file__).parents[1] / "edgemem" / "tasks" / "data"


def test_the_excerpt_is_balanced_small_and_of_test_voices() -> None:
    path = DATA / "kws_excerpt.npz"
    assert path.stat().st_size <= 2_500_000
    with np.load(path, allow_pickle=False) as file:
        clips, labels, said, voices = (file[name] for name in ("clips", "labels", "words", "voices"))
    assert clips.dtype == np.int16 and clips.shape == (len(labels), 16_000)
    assert len(set(np.bincount(labels, minlength=len(LABELS)))) == 1
    held_out = {f"espeak:{name}" for name in ESPEAK["test"]} | {"flite:rms"}
    assert set(voices[labels != SILENCE]) == held_out
    assert [label_of(word) for word in said[labels != SILENCE]] == labels[labels != SILENCE].tolist()


def test_the_demo_sentence_has_its_words_where_it_says() -> None:
    assert (DATA / "demo.wav").stat().st_size < 300_000
    sound, facts = read_audio(DATA / "demo.wav"), json.loads((DATA / "demo.json").read_text())
    assert 6.0 < len(sound) / SAMPLE_RATE < 9.0  # a sentence: long enough to show, short enough to wait for
    assert len({word["word"] for word in facts["words"]} & set(KEYWORDS)) >= 4
    inside = np.zeros(len(sound), bool)
    for word in facts["words"]:
        inside[round(word["start"] * SAMPLE_RATE) : round(word["end"] * SAMPLE_RATE)] = True
    assert np.mean(sound[inside] ** 2) > 10 ** (facts["snr_db"] / 10) * np.mean(sound[~inside] ** 2) / 2
