"""The table of schemes: a number belongs to the file and the data that gave it; whole test sets are counted right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bench import quant_rows, quant_table, whole
from bench.quant_rows import Made
from edgemem.export import export_model
from edgemem.program import load
from edgemem.tasks import bytes as byte_task


def row(file: str, **parts: Any) -> dict[str, Any]:
    """A row as it is stored, of a file with this digest."""
    facts = {"bytes": 10, "ratio": 0.1, "state_ratio": 1.0, "output_error": 0.01, "seconds": 1.0}
    score = {"digest": file, "metric": "accuracy", "quality": 0.9, "float": 1.0, "of": "9 clips"}
    time = {"digest": file, "us_per_step": 7.0, "times_float": 2.0}
    return {"checkpoint": quant_rows.checkpoint("kws-gru"), "file": facts, "score": score, "time": time} | parts


class Files:
    """A shelf whose files are what a test says."""

    model = "kws-gru"

    def __init__(self, digest: str) -> None:
        self.made = Made(Path("x.onnx"), digest, row(digest)["file"])

    def parent(self, batch: int = 1) -> Made:
        return self.made

    def narrow(self, scheme: str, batch: int = 1) -> Made:
        return self.made


def test_numbers_of_a_file_that_is_no_more_are_dropped() -> None:
    same = quant_table.Rows(Files("a"), {"w8": row("a")})  # type: ignore[arg-type]
    same.make("w8")
    assert {"score", "time"} <= set(same.rows["w8"])
    other = quant_table.Rows(Files("b"), {"w8": row("a")})  # type: ignore[arg-type]
    other.make("w8")
    assert set(other.rows["w8"]) == {"checkpoint", "file"}
    shown = quant_table.cells("w8", other.rows["w8"])
    assert shown[3:] == ("–",) * 5


def test_a_score_stands_for_one_file_and_one_set(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[bool] = []

    def judge(path: Path, task: str, entire: bool) -> dict[str, Any]:
        judged.append(entire)
        return {"metric": "accuracy", "quality": 0.5, "of": "some"}

    monkeypatch.setattr(whole, "judged", judge)
    monkeypatch.setattr(whole, "digest", lambda task, entire: f"set {entire}")
    first = quant_rows.score(Made(Path("x"), "a", {}), "kws", True, {})
    assert quant_rows.score(Made(Path("x"), "a", {}), "kws", True, first) == first and judged == [True]
    quant_rows.score(Made(Path("x"), "b", {}), "kws", True, first)  # another file
    quant_rows.score(Made(Path("x"), "a", {}), "kws", False, first)  # another set
    assert judged == [True, True, False]


def test_a_file_is_made_anew_when_what_it_is_made_of_changes(tmp_path: Path, models: Path) -> None:
    path, made = tmp_path / "m.onnx", []

    def make() -> dict[str, Any]:
        made.append(1)
        path.write_bytes((models / "lmu.onnx").read_bytes())
        return {"bytes": 1}

    first = quant_rows.kept(path, "key", make)
    assert quant_rows.kept(path, "key", make) == first and len(made) == 1
    quant_rows.kept(path, "other", make)
    path.unlink()
    quant_rows.kept(path, "other", make)
    assert len(made) == 3


def test_the_digest_sees_weights_and_not_when_they_were_compared(tmp_path: Path, models: Path) -> None:
    plain = quant_rows.digest(models / "lmu.onnx")
    model = onnx.load(models / "lmu.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    assert quant_rows.digest(tmp_path / "bare.onnx") == plain
    tensor = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1e-3), tensor.name))
    onnx.save(model, tmp_path / "moved.onnx")
    assert quant_rows.digest(tmp_path / "moved.onnx") != plain


def test_the_page_marks_rows_of_an_earlier_checkpoint() -> None:
    rows = {"float": row("a"), "w8": row("b", checkpoint="another")}
    section = quant_table.section({"models": {"kws-gru": rows}})
    assert [line[0] for line in section.tables[0].rows] == ["kws-gru", "kws-gru†"]
    assert "† measured with an earlier checkpoint" in section.text
    untraced = quant_table.section(
        {"models": {"kws-gru": {"float": row("a", time={"us_per_step": 1.0, "times_float": 1})}}}
    )
    assert untraced.tables[0].rows[0][0] == "kws-gru‡" and "‡ of an earlier run" in untraced.text
    fresh = quant_table.section({"models": {"kws-gru": {"float": row("a")}}})
    assert "†" not in fresh.text and "‡" not in fresh.text and fresh.tables[0].rows[0][-2:] == ["7", "2.00×"]


def test_texts_in_the_rows_of_a_batch_cost_what_they_cost_alone(tmp_path: Path) -> None:
    """The oracle streams one text after another; the batch is smaller than the number of texts."""
    small = {"layers": 1, "width": 16}
    export_model("lm-rwkv4", tmp_path / "one.onnx", small, seed=1)
    export_model("lm-rwkv4", tmp_path / "three.onnx", small, seed=1, batch=3)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 256, size).astype(np.uint8) for size in (40, 7, 23, 1, 30)]
    stream = load(tmp_path / "one.onnx").stream()
    wanted = np.concatenate([byte_task.streamed(stream, text) for text in texts])
    found = whole.bits(load(tmp_path / "three.onnx"), texts)
    assert found["quality"] == pytest.approx(wanted.mean(), rel=1e-5) and found["of"] == "101 bytes"
