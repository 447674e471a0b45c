"""Model cards of the packaged spotters, made of the results: python -m bench.tasks.kws.card

writes edgemem/tasks/data/MODEL.md for every packaged checkpoint that bench/results/kws.json knows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.timing import RESULTS
from edgemem.checkpoints import packaged
from edgemem.models.kws import SECONDS_PER_ROW

KINDS = {
    "kws-lmuformer": "A causal LMUFormer (Liu et al., 2024)",
    "kws-tiny": "A causal LMUFormer (Liu et al., 2024), small enough for a Cortex-M0 with 16 KiB of RAM,",
    "kws-spiking-lmuformer": "A causal spiking LMUFormer (Liu et al., 2024)",
    "kws-gru": "Two gated recurrent layers (Cho et al., 2014)",
    "kws-transformer": "A streaming spectrogram Transformer (after Gong et al., 2021)",
}
SHIPPED = "kws-lmuformer"
TO_USE = (SHIPPED, "kws-tiny")
RECORDED_VOICES = 4  # of flite; one person twice
PERSON = "flite:rms"  # the one recorded person among the test voices
LEVELS = {"clean": "clean", "10db": "noise 10 dB below the word", "0db": "noise as loud as the word"}


def card(entry: dict[str, Any]) -> str:
    """The card of one model, in Markdown, from its entry in the results."""
    training, always_on = entry["training"], entry["always_on"]
    drawn = training["voices"] - RECORDED_VOICES
    accuracy = "\n".join(f"| {LEVELS[level]} | {100 * entry['accuracy'][level]:.1f} % |" for level in LEVELS)
    rejected = "\n".join(
        f"| {kind} | {found['clips']} | {100 * found['as_unknown']:.0f} % | {100 * found['as_keyword']:.0f} % |"
        for kind, found in entry["rejected"].items()
    )
    recorded = entry["accuracy_by_voice"]["clean"].get(PERSON, float("nan"))
    return f"""# {entry["model"]}

Spots ten English words in 16 kHz audio as it comes: yes, no, up, down, left, right, on, off, stop, go; any other
word is `unknown`, no word is `silence`. {KINDS[entry["model"]]}
of {entry["parameters"]:,} parameters: logits for every 20 ms, {timing(entry)},
{entry["state_bytes"]:,} bytes of state,
{entry["macs_per_second_of_audio"] / 1e6:.1f} million multiply-accumulates per second of audio.

## Trained on synthetic speech only

All {training["words"]:,} words were spoken by the synthesisers espeak-ng (formant synthesis, {drawn} speakers in
eight accents) and flite (joined from recordings of an American man, an American woman and a Scotsman). No person was
recorded for it. Words were strung together with pauses, echoes, microphone colouring and noise (white, pink, brown,
hum, clicks, tones, babble) from 25 dB down to -5 dB.
Training took {training["recipe"]["steps"]:,} steps{budget(entry)}.

So expect it to be worse on people than the numbers below, most of all on children, on accents that are not in it, and
on spontaneous speech. It is a demonstration and a test case; it is not fit for safety or access control.
`bench/tasks/kws` also reads Speech Commands, to train one on people.

## Measured

`bench/results/kws.json`, on {len(entry["test_voices"])} synthetic speakers of which none is in the training set,
{entry["clips_per_level"]:,} clips of one second at each level, as many of every label:

| noise | accuracy |
|---|---|
{accuracy}

Of them flite's rms, a recorded man, clean: {100 * recorded:.1f} %.

Words that are no keywords, by the same speakers, clean; some were chosen because they are hard to tell from one:

| words | clips | taken for `unknown` | taken for a keyword |
|---|---|---|---|
{rejected}

Listening without an end, half of the words being no keywords, noise from 25 to 5 dB:
{100 * always_on["hit_rate"]:.0f} % of keywords found, {100 * always_on["precision"]:.0f} % of detections right,
{always_on["false_alarms_per_hour"]:.0f} false alarms per hour of talk without a pause.
"""


def timing(entry: dict[str, Any]) -> str:
    """When a model gives its rows."""
    if entry["seconds_per_step"] <= SECONDS_PER_ROW:
        return "no look-ahead"
    return f"given and attended to in segments of {1000 * entry['seconds_per_step']:.0f} ms"


def budget(entry: dict[str, Any]) -> str:
    """What to expect of a model that was trained for comparison alone."""
    if entry["model"] in TO_USE:
        return ""
    return f", {entry['training']['processor_minutes']:.1f} minutes of one core: enough to compare, not to use"


def write(entries: dict[str, dict[str, Any]]) -> list[Path]:
    """Write the cards of the entries whose checkpoints are packaged."""
    paths = []
    for name, entry in entries.items():
        path = packaged(f"{name}.md")
        if path.with_suffix(".safetensors").is_file():
            path.write_text(card(entry))
            paths.append(path)
    return paths


def entries_of(results: Path) -> dict[str, dict[str, Any]]:
    """The entries of a results file whose checkpoints are packaged, by model; none if there is no such file."""
    if not results.is_file():
        return {}
    result: dict[str, Any] = json.loads(results.read_text())
    others = {name: entry for name, entry in result["compared"].items() if name != result["model"]}
    tiny = {result["tiny"]["model"]: result["tiny"]} if "tiny" in result else {}
    return {result["model"]: result, **tiny, **others}


if __name__ == "__main__":
    print(*write(entries_of(RESULTS / "kws.json")), sep="\n")
