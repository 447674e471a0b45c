"""Connected words: from rows of logits to a transcript, and how its errors are counted."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from bench.tasks.words import card, report
from edgemem.checkpoints import packaged
from edgemem.cli.main import cli
from edgemem.errors import CheckpointError, InputError
from edgemem.evaluation import evaluate
from edgemem.models import build_model, spec
from edgemem.program import load
from edgemem.tasks import words
from edgemem.tasks.words import BLANK, COMMANDS, DIGITS, LABELS, Array, Transcriber, token_errors, transcript

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def logits(*labels: str, seed: int = 0) -> Array:
    """Rows of noise in which these labels lead."""
    values = np.random.default_rng(seed).uniform(-1.0, 0.0, (len(labels), len(LABELS)))
    values[np.arange(len(labels)), [LABELS.index(label) for label in labels]] = 0.1
    return values


def test_labels_are_a_blank_ten_digits_and_ten_commands() -> None:
    assert len(DIGITS) == len(COMMANDS) == 10 and len(set(LABELS)) == 21 and LABELS[0] == BLANK


def test_repeats_count_once_and_blanks_part_them() -> None:
    rows = logits(BLANK, "seven", "seven", BLANK, "go", "left", "left", BLANK, "left", BLANK)
    assert transcript(rows) == ("seven", "go", "left", "left")
    assert transcript(rows[:0]) == transcript(rows[:1]) == ()


@given(st.lists(st.sampled_from((BLANK, "one", "two")), max_size=20), st.lists(st.integers(0, 20), max_size=5))
def test_any_cut_gives_the_same_words_at_the_same_times(labels: list[str], cuts: list[int]) -> None:
    rows, times = logits(*labels) if labels else np.zeros((0, len(LABELS))), np.arange(len(labels)) * 0.04
    whole, pieces = Transcriber().push(rows, times), Transcriber()
    edges = [0, *sorted(min(cut, len(labels)) for cut in cuts), len(labels)]
    found = [word for a, b in itertools.pairwise(edges) for word in pieces.push(rows[a:b], times[a:b])]
    assert found == whole
    first = [t for t, label in enumerate(labels) if label != BLANK and (t == 0 or labels[t - 1] != label)]
    assert [word.time for word in whole] == [times[t] for t in first]


def test_a_transcriber_forgets_on_reset() -> None:
    transcriber = Transcriber()
    assert len(transcriber.push(logits("one"), np.zeros(1))) == 1
    assert transcriber.push(logits("one"), np.zeros(1)) == []
    transcriber.reset()
    assert len(transcriber.push(logits("one"), np.zeros(1))) == 1


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(InputError, match=r"logits must be \[rows, 21\] with one time per row, got \[3, 5\] and \[3\]"):
        transcript(np.zeros((3, 5)))


@pytest.mark.parametrize(
    ("spoken", "heard", "errors"),
    [("abc", "abc", 0), ("abc", "ac", 1), ("abc", "abbc", 1), ("abc", "axc", 1), ("abc", "", 3), ("", "ab", 2)],
)
def test_errors_are_words_put_in_left_out_or_exchanged(spoken: str, heard: str, errors: int) -> None:
    assert token_errors(spoken, heard) == errors


@given(WORDS, WORDS)
def test_errors_are_the_fewest(spoken: list[str], heard: list[str]) -> None:
    @cache
    def fewest(i: int, j: int) -> int:  # of the first i and j words, by the definition
        if i == 0 or j == 0:
            return i + j
        return min(fewest(i - 1, j) + 1, fewest(i, j - 1) + 1, fewest(i - 1, j - 1) + (spoken[i - 1] != heard[j - 1]))

    assert token_errors(spoken, heard) == fewest(len(spoken), len(heard))


# --- the packaged excerpt and models -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model, exported."""
    from edgemem.export import export_model

    path = tmp_path_factory.mktemp("words") / "asr.onnx"
    export_model("asr-folding", path)
    return path


def test_companded_sound_is_within_two_percent() -> None:
    sound = np.concatenate([np.linspace(-1.0, 1.0, 999), np.geomspace(1e-3, 1.0, 99)]).astype(np.float32)
    codes = words.companded(sound)
    assert codes.dtype == np.uint8 and words.expanded(words.companded(np.zeros(2)))[0] == 0.0
    np.testing.assert_allclose(words.expanded(codes), sound, rtol=0.023, atol=1e-4)
    np.testing.assert_array_equal(words.companded(words.expanded(codes)), codes)


def test_the_excerpt_is_of_known_words_by_many_voices() -> None:
    strings = words.excerpt()
    assert len(strings) == 57 and {word for _, said in strings for word in said} == {*DIGITS, *COMMANDS}
    for sound, said in strings:
        assert sound.dtype == np.float32 and 0.05 < np.abs(sound).max() <= 1.0
        assert len(sound) > 16_000 * (0.3 + 0.12 * len(said))


def test_a_file_errs_where_its_torch_module_errs(recogniser: Path) -> None:
    heard: list[float] = []
    module = evaluate("asr-folding", "words", limit=6)
    file = evaluate(recogniser, "words", limit=6, tick=heard.append)
    assert module.score == file.score and file.score.details["strings"] == 6
    assert module.state_bytes == file.state_bytes and heard == sorted(heard) and heard[-1] == 1.0


def test_a_compiled_folder_errs_where_its_file_errs(recogniser: Path, tmp_path: Path) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    runner, folder = CliRunner(), tmp_path / "c"
    done = runner.invoke(cli, ["compile", str(recogniser), "-o", str(folder)])
    assert done.exit_code == 0, done.output
    told = json.loads(runner.invoke(cli, ["eval", str(folder), "--task", "words", "--limit", "6", "--json"]).stdout)
    assert told["runtime"] == "aot"
    assert told["details"] == evaluate(recogniser, "words", limit=6).score.details


def test_errors_of_the_excerpt_are_counted(recogniser: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = load(recogniser)
    monkeypatch.setattr(words, "transcript", lambda rows, labels: ())
    assert words.evaluate(program, limit=2).value == 1.0


def test_the_shipped_checkpoints_err_about_as_often_as_the_results_say(recogniser: Path) -> None:
    """The excerpt has 3 strings by each voice of the results; its rate scatters about theirs."""
    from edgemem.export import export_model

    rows = {row["model"]: row for row in report.rows()}
    forms = spec("asr-folding").trained()
    assert set(forms) == set(card.SHIPPED.values())
    for name, file in card.SHIPPED.items():
        path = recogniser
        if forms[file]:
            path = recogniser.with_name(f"{file}.onnx")
            export_model("asr-folding", path, forms[file])
        written, found = rows[name], evaluate(path, "words", limit=19)
        assert packaged(file).stat().st_size == written["checkpoint_bytes"] <= 5_000_000
        assert packaged(file).with_suffix(".md").read_text() == card.card(Path(file).stem, written)
        assert found.state_bytes == written["state_bytes"]
        rate, words = written["levels"]["clean"]["token_error_rate"], found.score.details["words"]
        assert abs(found.score.value - rate) < 0.02 + 4.0 * (rate * (1.0 - rate) / words) ** 0.5


def test_a_name_stands_for_its_default_form() -> None:
    found = evaluate("asr-folding", "words", limit=1)
    assert "forms" not in found.score.details and 0.0 <= found.score.value <= 1.0


def test_the_command_ends_with_a_transcript(recogniser: Path, tmp_path: Path) -> None:
    sound, _ = words.excerpt()[0]
    np.save(tmp_path / "said.npy", sound)
    runner, run = CliRunner(), ["run", str(recogniser), "--input", str(tmp_path / "said.npy")]
    stream = load(recogniser).stream()
    wanted = transcript(np.concatenate([stream.push_samples(sound).values, stream.flush().values]))
    rows = [json.loads(line) for line in runner.invoke(cli, [*run, "--json"]).output.splitlines()]
    assert tuple(row["label"] for row in rows) == wanted and wanted
    assert runner.invoke(cli, run).output.splitlines()[-1] == " ".join(wanted)
    np.save(tmp_path / "said.npy", np.zeros(16_000, np.float32))
    assert runner.invoke(cli, run).output == "nothing recognised\n"


def test_models_of_other_labels_are_refused(models: Path, tmp_path: Path) -> None:
    from edgemem.export import export_model

    with pytest.raises(InputError, match=r"task words: kws-lmuformer does not fit: .* its labels are yes, no"):
        evaluate(models / "k.onnx", "words")
    with pytest.raises(InputError, match=r"task words: lm-rwkv4 does not fit: .* takes tokens int64"):
        evaluate(models / "lm.onnx", "words")
    export_model("asr-folding", tmp_path / "c.onnx", {"layers": 1, "width": 16, "vocab": 29}, seed=0)
    with pytest.raises(InputError, match=r"task words: asr-folding does not fit: .* its labels are <blank>,  , '"):
        evaluate(tmp_path / "c.onnx", "words")


def test_sizes_are_read_off_a_checkpoint(tmp_path: Path) -> None:
    sizes = {"layers": 2, "width": 24, "heads": 3, "fold": 2, "ffn_fold": 4, "ffn": 40, "features": 60}
    module, _ = build_model("asr-folding", sizes, seed=1)
    save_file(module.state_dict(), tmp_path / "m.safetensors")
    again, facts = build_model("asr-folding", checkpoint=tmp_path / "m.safetensors")
    assert facts["config"] == {**facts["config"], **sizes}  # type: ignore[dict-item]
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), again.state_dict().values(), strict=True)
    )
    with pytest.raises(CheckpointError, match=r"no matrix embed\.weight"):
        build_model("asr-folding", checkpoint=packaged("kws-lmuformer.safetensors"))
