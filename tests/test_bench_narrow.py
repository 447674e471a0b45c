"""The comparison of narrow steps: which rows stand against which, and what the page says of what did not run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import compiled, narrow
from edgemem import peers
from edgemem.measure import machine


def row(scheme: str, runtime: str, p50_us: float, best_us: float) -> dict[str, object]:
    return {"file": scheme, "runtime": runtime, "p50_us": p50_us, "best_us": best_us, "spread": 0.01,
            "bytes_per_step": 1000, "roofline_ratio": 1.5, "best_roofline_ratio": 1.25}  # fmt: skip


ROWS = [row("w8", "aot", 12, 10), row("w8", "onnxruntime-int8", 30, 20), row("w8", "litert-int8", 16, 15),
        row("w4g32", "aot", 6, 5), row("w4g32", "openvino-int4", 24, 20), row(narrow.VQ, "aot", 3, 3)]  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "against", "median", "best"),
    [
        ("w8", "best peer", 12 / 16, 10 / 15),
        ("w8", "onnxruntime-int8", 12 / 30, 10 / 20),
        ("w4g32", "best peer", 6 / 24, 5 / 20),
        ("w4g32", "w8", 6 / 12, 5 / 10),
        (narrow.VQ, "w4g32", 0.5, 0.6),
        (narrow.VQ, "best peer", 3 / 24, 3 / 20),
        ("w8", "roofline", 1.5, 1.25),
        ("w8", "openvino-int8", None, None),
        ("w8a8", "best peer", None, None),
    ],
)
def test_a_scheme_is_held_against_engines_with_as_many_bits(
    scheme: str, against: str, median: float | None, best: float | None
) -> None:
    found = [narrow.compared(ROWS, scheme, against, key) for key in ("p50_us", "best_us")]
    assert found == [median, best]


def test_goals_and_failures_are_shown() -> None:
    skipped = [{"file": "w8", "runtime": "openvino-int8", "reason": "it differs"}]
    steps, goals, missing = narrow.tables({"mid-narrow": {"rows": ROWS, "skipped": skipped}})
    assert len(steps.rows) == len(ROWS) and missing.rows[0][-1] == "it differs"
    verdicts = {(line[1], line[2]): line[-1] for line in goals.rows}
    assert verdicts["`w8`", "best peer"] == "reached" and verdicts["`w8a8-dynamic`", "best peer"] == "not run"
    assert all(line[0] == "RWKV-4, 8 layers of 512" for line in goals.rows)


def test_every_peer_and_goal_is_known() -> None:
    named = {name for group in narrow.GROUPS.values() for names in group.schemes.values() for name in names}
    assert named <= set(peers.names())
    for label, scheme, against, _ in narrow.GOALS:
        schemes = narrow.GROUPS[label].schemes
        assert scheme in schemes and against in {*schemes, *peers.names(), "best peer", "roofline"}


def test_a_group_on_two_threads_gives_them_to_everyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and the peers': both are measured by one call, on the group's model and schemes."""
    seen: dict[str, Any] = {}

    def quantized(original: Path, path: Path, scheme: str, **_: object) -> None:
        path.write_text(scheme)

    def measured(
        files: Sequence[Path], runtimes: Sequence[str], threads: int, rounds: int, **named: object
    ) -> dict[str, object]:
        seen.update(threads=threads, rounds=rounds, against=named["against"])
        return {"rows": [{"file": str(path), "threads": threads} for path in files]}

    monkeypatch.setattr("edgemem.export.export_model", lambda *_, **__: None)
    monkeypatch.setattr("edgemem.quant.quantize", quantized)
    monkeypatch.setattr(narrow, "calibration", lambda _: None)
    monkeypatch.setattr(narrow, "measure", measured)
    found = narrow.measured("base-narrow-2", tmp_path, ["litert"], 3)
    one, two = narrow.GROUPS["base-narrow"], narrow.GROUPS["base-narrow-2"]
    assert (one.threads, one.model, one.settings, one.schemes) == (1, two.model, two.settings, two.schemes)
    assert [row["file"] for row in found["rows"]] == list(two.schemes) and seen["threads"] == 2 and seen["rounds"] == 3
    assert {path.read_text(): peers for path, peers in seen["against"].items()} == {
        "w8": ["litert-int8"], "w8a8-dynamic": [], "w4g32": ["litert-int4"]
    }  # fmt: skip


def test_a_step_measured_alone_keeps_the_others_and_their_machine(tmp_path: Path) -> None:
    """A file of another machine: its rows stay, no row changes hands, and the page says which is whose."""
    other = {"cpu": "another", "cores": 1}
    earlier = {"machine": other, "peers": {"openvino": {}}, "steps": {"mid": {"rows": [1]}, "kws": {"rows": [2]}}}
    (tmp_path / "compiled.json").write_text(json.dumps(earlier))
    compiled.stored({"steps": {"kws": {"rows": [3]}}, "peers": {}}, tmp_path)
    compiled.stored({"narrow": {"kws-narrow": {"rows": [4]}}}, tmp_path)
    found = json.loads((tmp_path / "compiled.json").read_text())
    assert found["steps"] == {"mid": {"rows": [1], "machine": other}, "kws": {"rows": [3], "machine": machine()}}
    assert found["narrow"] == {"kws-narrow": {"rows": [4], "machine": machine()}} and found["peers"] == {"openvino": {}}
    text = compiled.processors(found)
    assert "another: mid" in text and f"{machine()['cpu']}: kws, kws-narrow" in text
    assert compiled.processors({"machine": other, "steps": {"mid": {}}}) == "another"
