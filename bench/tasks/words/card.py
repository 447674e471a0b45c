"""Model cards of the packaged recognisers, made of the results; `python -m bench.tasks.words --ship` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgemem.checkpoints import packaged
from edgemem.models import spec

MODEL = "asr-folding"
SHIPPED = {"n2-wide": "asr-folding.safetensors", "n1": "asr-unfolded.safetensors"}  # by name in the sweep
LEVELS = {"clean": "clean", "10db": "noise 10 dB below the words", "0db": "noise as loud as the words"}
RECORDED_TRAINING_VOICES = 4  # of flite; one person twice


def card(name: str, row: Mapping[str, Any]) -> str:
    """The card of a checkpoint called `name`, in Markdown, from its row in the results."""
    config, clean = row["config"], row["levels"]["clean"]
    kind = "with folding attention (Li et al., 2023)" if config["fold"] > 1 else "without folding, to compare with"
    settings = " ".join(f"--set {key}={value}" for key, value in spec(MODEL).trained()[f"{name}.safetensors"].items())
    rates = "\n".join(
        f"| {said} | {100 * row['levels'][level]['token_error_rate']:.1f} % "
        f"| {100 * row['levels'][level]['strings_right']:.0f} % |"
        for level, said in LEVELS.items()
    )
    wait = clean["latency_seconds"]
    worst = max(clean["by_voice"].values())
    return f"""# {name}

Writes down strings of digits and short commands in 16 kHz audio as it comes: zero to nine, yes, no, up, down, left,
right, on, off, stop, go. A streaming Transformer encoder {kind}, N = {config["fold"]}, of {row["parameters"]:,}
parameters: {config["layers"]} layers of {config["width"]} features, a step for every
{config["segment"]} rows of 60 ms, {config["look_ahead"]} row of look-ahead, {row["state_bytes"]:,} bytes of state. Its
logits are those of CTC: a word that is repeated from row to row counts once, blanks go.

    edgemem export {MODEL} {settings + " " if settings else ""}-o asr.onnx
    edgemem run asr.onnx --input digits.wav

## Trained on synthetic speech only

All {row["training_strings"]:,} strings were spoken by the synthesisers espeak-ng (formant synthesis,
{row["training_voices"] - RECORDED_TRAINING_VOICES} speakers in eight accents, most of them drawn at random) and flite
(joined from recordings of an American man, an American woman and a Scotsman). No person was recorded for it. It knows
no other words: speech that is none of them is taken for some of them. Expect it to be worse on people than the numbers
below, most of all on children, on accents that are not in it, and on spontaneous speech. It is a demonstration and a
test case; it is not fit for safety or access control.

## Measured

`bench/results/words.json`, streamed: {clean["strings"]} strings with {clean["words"]} words by {len(clean["by_voice"])}
synthetic speakers of which none is in the training set.

| noise | token errors | strings without an error |
|---|---|---|
{rates}

The worst of these voices has {100 * worst:.0f} % token errors, clean. The last word of a
string is known {moment(wait["median"])} (median; of 95 % of them {moment(wait["p95"])} or
sooner), without the time of computing.
"""


def moment(seconds: float) -> str:
    """When, counted from the end of a string."""
    return f"{abs(seconds):.2f} s {'before' if seconds < 0 else 'after'} its end"


def write(rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write the cards of the checkpoints that are packaged."""
    paths = []
    for model, file in SHIPPED.items():
        path = packaged(file).with_suffix(".md")
        path.write_text(card(path.stem, next(row for row in rows if row["model"] == model)))
        paths.append(path)
    return paths
