"""The keyword spotter's part of the results page."""

from __future__ import annotations

from typing import Any

from bench.claims import Section, Table

LEVELS = {"clean": "clean", "10db": "noise 10 dB below", "0db": "noise as loud"}


def section(result: dict[str, Any]) -> Section:
    """Accuracy of the shipped spotter on voices that no training heard."""
    accuracy = [[LEVELS[level], f"{100 * value:.1f} %"] for level, value in sorted(result["accuracy"].items())]
    return Section(
        title="Keyword spotting",
        text=(
            f"Ten words, `unknown` and `silence`, synthesised speech, {len(result['test_voices'])} held-out voices, "
            f"{result['clips_per_level']} clips of one second at every level, decided from the streamed posteriors. "
            f"`{result['model']}` has {result['parameters']:,} parameters and needs "
            f"{result['macs_per_second_of_audio'] / 1e6:.1f} million multiply-accumulates per second of audio."
        ),
        tables=(Table("Accuracy on clips", ("level", "accuracy"), accuracy),),
        pictures=("kws_confusion.png",),
    )
