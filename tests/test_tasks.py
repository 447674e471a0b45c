"""Tasks: found by name, judged by streaming, refused with a sentence; and the page of what they found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench import results_page
from bench.claims import Claim, Section, Table, markdown, ratio
from bench.timing import RESULTS
from edgemem import tasks
from edgemem.errors import ConfigError, InputError, ModelFileError, UsageError
from edgemem.evaluation import evaluate
from edgemem.program import load
from edgemem.tasks import kws
from tests.command import run


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_judges_and_refuses(name: str) -> None:
    assert callable(tasks.task(name).evaluate) and callable(tasks.task(name).refusal)


def test_a_file_scores_what_its_torch_module_scores(models: Path) -> None:
    heard: list[float] = []
    module = evaluate("kws-lmuformer", "kws", limit=24)
    file = evaluate(models / "k.onnx", "kws", limit=24, tick=heard.append)
    assert (module.runtime, file.runtime) == ("torch", "ort")
    assert module.score == file.score and module.score.details["clips"] == 24
    assert module.state_bytes == file.state_bytes == 5300
    assert heard[-1] == 1.0 and sorted(heard) == heard


def test_the_shipped_spotter_hears_the_excerpt(models: Path) -> None:
    found = evaluate(models / "k.onnx", "kws").score
    assert found.metric == "accuracy" and found.value >= 0.9  # 180 clips scatter by 2 %
    by_label = found.details["accuracy_by_label"]
    assert set(by_label) == set(kws.LABELS)
    assert found.value == pytest.approx(np.mean(list(by_label.values())))  # as many clips of every label


def test_accuracy_counts_decisions(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kws, "clip_decision", lambda rows, labels: ("yes", 1.0))
    found = kws.evaluate(load(models / "k.onnx"), limit=180)
    assert found.value == pytest.approx(1 / 12) and found.details["accuracy_by_label"]["yes"] == 1.0


def test_what_cannot_be_judged_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown task 'kvs' \(did you mean 'kws'\?\)"):
        evaluate("kws-lmuformer", "kvs")
    with pytest.raises(ConfigError, match=r"unknown model 'kws-lmuforme' \(did you mean 'kws-lmuformer'\?\)"):
        evaluate("kws-lmuforme", "kws")
    with pytest.raises(ModelFileError, match=r"missing\.onnx"):
        evaluate(tmp_path / "missing.onnx", "kws")
    with pytest.raises(InputError, match=r"task kws: lm-rwkv4 does not fit: 16 kHz audio .* takes tokens int64"):
        evaluate(models / "lm.onnx", "kws")


def test_the_command_prints_what_scripts_rely_on(models: Path) -> None:
    found = json.loads(run("eval", models / "k.onnx", "--task", "kws", "--limit", 3, "--json")[0])
    assert {"task", "metric", "value", "state_bytes", "weight_bytes"} <= set(found)
    assert (found["task"], found["metric"], found["state_bytes"]) == ("kws", "accuracy", 5300)
    assert 0.0 <= found["value"] <= 1.0 and found["weight_bytes"] > 400_000
    assert "accuracy" in run("eval", models / "k.onnx", "--task", "kws", "--limit", 3)[0]
    assert "did you mean 'kws'" in run("eval", models / "k.onnx", "--task", "kvs", code=2)[1]
    assert "does not fit" in run("eval", models / "lm.onnx", "--task", "kws", code=2)[1]


def test_the_results_page_is_made_of_the_result_files() -> None:
    committed = (RESULTS / "README.md").read_text()
    assert committed == results_page.page(), "run `python -m bench.results_page`"


def test_a_section_becomes_markdown() -> None:
    claim = Claim("m", "P 2020", "2x faster", "one|two", "1.5x", "short")
    section = Section("Title", "Words.", (claim,), (Table("T", ("a", "b"), [("1", "2")]),), ("x.png",))
    text = results_page.rendered("kws", section)
    assert text.startswith("## Title\n\nWords.\n\n| model | paper |")
    assert "| m | P 2020 | 2x faster | one\\|two | 1.5x | short |" in text
    assert "**T**\n\n| a | b |\n| --- | --- |\n| 1 | 2 |" in text and "![x](x.png)" in text
    assert markdown(("a",), [("b\nc",)]).splitlines()[-1] == "| b c |"


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [(8.2, 8.1, "reached"), (4.0, 8.0, "short by a factor of 2"), (0.0, 8.0, "not reached at all")],
)
def test_a_factor_is_held_against_the_papers(ours: float, theirs: float, said: str) -> None:
    assert ratio(ours, theirs) == said
