"""Model cards of the packaged language models, made of the results: python -m bench.tasks.bytes.card

writes edgemem/tasks/data/MODEL.md for every model in bench/results/bytes.json that has been trained.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.timing import RESULTS
from edgemem.checkpoints import packaged

KINDS = {
    "lm-rwkv4": "RWKV-4 (Peng et al., 2023): {layers} layers of width {width}",
    "lm-memformer": (
        "A causal Memformer (Wu et al., 2020): {layers} layers of width {width}, segments of {segment} bytes, {slots} "
        "memory slots"
    ),
    "lm-transformer-xl": (
        "A Transformer-XL (Dai et al., 2019), the segment-memory baseline: {layers} layers of width {width}, segments "
        "of {segment} bytes, {memory} cached rows per layer"
    ),
    "lm-transformer": (
        "A Transformer with a key-value cache (Vaswani et al., 2017), the full-attention baseline: {layers} layers of "
        "width {width}, which attend the last {context} bytes unless `context` is set to another number"
    ),
}


def card(name: str, entry: Mapping[str, Any]) -> str:
    """The card of one model, in Markdown, from its entry in the results."""
    training, test = entry["training"], entry["test"]
    recipe, last = training["recipe"], training["curve"][-1]
    heard = last["bytes"] / training["corpus_bytes"]
    paragraphs = (
        f"Says the next byte of Python source. {KINDS[name].format(**entry['config'])}. {entry['parameters']:,} "
        f"parameters, {entry['state_bytes']:,} bytes of state as packaged.",
        "## Trained on the standard library only",
        "The text is what the Python Software Foundation ships with the interpreter (PSF licence), its tests left out: "
        f"{last['bytes'] / 1e6:.1f} MB were read, {heard:.0%} of the training split, in {recipe['steps']:,} steps and "
        f"{last['cpu_seconds'] / 60:.0f} minutes of one core. It knows that code's idioms, headers and indentation. "
        "What it writes looks like Python and means nothing; it can repeat passages of the library. It is a "
        "demonstration and a ruler for compression and compilation, not a programming aid.",
        "## Measured",
        f"{test['bits_per_byte']:.3f} bits per byte on {test['files']} files ({test['bytes']:,} bytes) that were held "
        f"out by the digest of their name, streamed; {test['later']:.3f} after the first kilobyte of each. "
        "`bench/results/bytes.json` also has the learning curve and the costs of a long past, beside three other "
        f"models with the same budget; `edgemem eval {name} --task bytes` judges a packaged excerpt. Weights are "
        f"stored as float16 and run as float32. The recipe is `python -m bench.tasks.bytes --model {name}`.",
    )
    return f"# {name}\n\n" + "\n\n".join(filled(paragraph) for paragraph in paragraphs) + "\n"


def filled(paragraph: str) -> str:
    """Lines of at most 120 characters; words with hyphens stay whole."""
    return textwrap.fill(paragraph, 120, break_on_hyphens=False, break_long_words=False)


def write(models: Mapping[str, Any]) -> list[Path]:
    """Write the cards of the models that have been trained."""
    paths = []
    for name, entry in models.items():
        if "test" in entry:
            paths.append(packaged(f"{name}.md"))
            paths[-1].write_text(card(name, entry))
    return paths


if __name__ == "__main__":
    print(*write(json.loads((RESULTS / "bytes.json").read_text())["models"]), sep="\n")
