"""Train the byte language models on Python's own source, measure them, write what was found.

    python -m bench.tasks.bytes                      all four: an hour of one core to train, some minutes to measure
    python -m bench.tasks.bytes --model lm-rwkv4     one of them; the others' numbers stay
    python -m bench.tasks.bytes --evaluate           the shipped checkpoints; costs alone where none ships
    python -m bench.tasks.bytes --quick              a miniature in two minutes, into build/bytes

    lm-rwkv4             step   800 of 800  train 1.40  4,500 bytes per CPU second  valid 1.65
    lm-rwkv4             test 1.80 bits per byte

writes edgemem/tasks/data/MODEL.safetensors (float16) and .md, bench/results/bytes.json and bytes.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import timing, training
from bench.tasks.bytes import card, contexts, data, measure
from bench.tasks.bytes.train import Recipe, train
from edgemem import checkpoints
from edgemem.export import torch_program
from edgemem.models import build_model

MODELS = ("lm-rwkv4", "lm-memformer", "lm-transformer-xl", "lm-transformer")
WINDOWS = {"lm-rwkv4": 128, "lm-transformer": 128}  # bytes; the segments of the others want two of them in a window
WINDOW = 256
BYTES_PER_STEP = 4096
QUICK_FOLDER = Path("build") / "bytes"
FRAMES_PER_STEP = 128  # of the torch programs that the test split is streamed through


def recipe_of(name: str, steps: int, seed: int) -> Recipe:
    """The recipe, alike for all models but for how a step's bytes are cut into streams and windows."""
    window = WINDOWS.get(name, WINDOW)
    return replace(Recipe(), steps=steps, seed=seed, window=window, batch=BYTES_PER_STEP // window)


def say(name: str, line: str) -> None:
    """One line of progress."""
    print(f"{name:20} {line}", flush=True)


def trained(name: str, recipe: Recipe, target: Path) -> dict[str, Any]:
    """Train a model, store its weights as float16, and say how it went."""
    model, _ = build_model(name, seed=recipe.seed)
    curve = train(model, data.corpus("train"), data.corpus("valid"), recipe, lambda line: say(name, line))
    training.save(model, target)
    return {"recipe": asdict(recipe), "corpus_bytes": len(data.corpus("train")), "curve": curve}


def measured(name: str, checkpoint: Path, sizes: Sequence[int], largest: int | None) -> dict[str, Any]:
    """Quality on the test split, where there is a checkpoint, and the costs of a long past."""
    there = checkpoint if checkpoint.is_file() else None
    program = torch_program(name, FRAMES_PER_STEP, checkpoint=there)
    quality: dict[str, Any] = {}
    if there is not None:
        quality = {"test": measure.test_bits(program, largest), "checkpoint_bytes": checkpoint.stat().st_size}
        say(name, f"test {quality['test']['bits_per_byte']:.4f} bits per byte")
    shipped, *rows = contexts.costs(name, there, (None, *sizes))
    return {
        **quality,
        "config": program.contract.model.config,
        "parameters": program.contract.model.parameters,
        "state_bytes": sum(array.nbytes for array in program.new_state().get().values()),
        "shipped": shipped,
        "contexts": rows,
    }


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one (again for more)")
    parser.add_argument("--quick", action="store_true", help="a miniature of everything, into build/bytes")
    parser.add_argument("--evaluate", action="store_true", help="do not train; measure the shipped checkpoints")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    training.as_command(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Train unless told not to, measure, write."""
    earlier = timing.RESULTS / "bytes.json"
    models = json.loads(earlier.read_text())["models"] if earlier.is_file() and not options.quick else {}
    sizes, largest = ((512,), 256) if options.quick else (contexts.CONTEXTS, None)
    for name in options.model or MODELS:
        target = QUICK_FOLDER / f"{name}.safetensors" if options.quick else checkpoints.packaged(f"{name}.safetensors")
        if options.evaluate:
            history = models.get(name, {}).get("training")
        else:
            recipe = recipe_of(name, 8 if options.quick else options.steps, options.seed)
            recipe = replace(recipe, judged=1, valid_bytes=2049) if options.quick else recipe
            history = trained(name, recipe, target)
        models[name] = measured(name, target, sizes, largest)
        if history is not None:
            models[name]["training"] = history
        if not options.quick:  # what is done is kept if the next one fails
            write(models)
    if options.quick:
        measure.picture(models, QUICK_FOLDER / "bytes.png")


def write(models: dict[str, Any]) -> None:
    """The result file, the picture and the model cards."""
    versions = {name: version(name) for name in ("edgemem", "torch", "numpy", "onnxruntime")}
    splits = {s: {"files": len(data.files(s)), "bytes": len(data.corpus(s))} for s in data.SPLITS}
    print(timing.write("bytes", {"models": models, "splits": splits, "versions": versions}))
    measure.picture(models, timing.RESULTS / "bytes.png")
    card.write(models)


if __name__ == "__main__":
    main()
