"""Train keyword spotters on the same words, and say how good each is on voices that none of them has heard.

    python -m bench.tasks.kws                            all four, one after another: an hour or two on one core
    python -m bench.tasks.kws --model kws-lmuformer      the shipped one alone: about 20 minutes
    python -m bench.tasks.kws --quick                    all of it in miniature, words included, to see that it works
    python -m bench.tasks.kws --evaluate                 the packaged checkpoints, without training
    python -m bench.tasks.kws --data DIR                 words from there (`python -m bench.tasks.kws.data` makes them)

    kws-lmuformer  step  7500 of 7500  loss 0.21  validation 0.97
    kws-lmuformer  clean 98.0 %   10db 95.0 %   0db 84.0 %

writes edgemem/tasks/data/MODEL.safetensors, bench/results/kws.json, kws_confusion.png and kws_models.png; with --quick
all goes to build/kws-quick instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench import timing
from bench.tasks.kws import card, data, evaluate, evaluation, measure, pictures, pool, tuning
from bench.tasks.kws.train import Recipe, train
from edgemem import checkpoints
from edgemem.errors import EdgememError
from edgemem.models import build_model, spec
from edgemem.tasks import kws

SHIPPED = "kws-lmuformer"
STEPS = {SHIPPED: 7500, "kws-gru": 5000, "kws-spiking-lmuformer": 5000, "kws-transformer": 5000}
HALF = ("kws-gru", "kws-spiking-lmuformer", "kws-transformer")  # kept as float16; the shipped one stays exact
QUICK: dict[str, Any] = {"steps": 40, "batch": 8, "judged": 0.5}
CLIPS_PER_LABEL = {False: 90, True: 10}  # of the validation voices; the latter for --quick
SCENES = {False: 20, True: 1}  # minutes of speech without an end
TUNE_SEED = 7


def trained(name: str, folder: Path, recipe: Recipe, quick: bool) -> tuple[nn.Module, dict[str, Any]]:
    """A model trained on the training voices, picked and tuned on the validation voices."""
    unheard = data.load("valid", folder)
    per_label = CLIPS_PER_LABEL[quick]
    sets = [evaluation.evaluation_set(unheard, snr_db, per_label, seed=TUNE_SEED) for snr_db in (None, 5.0)]
    sequences = pool.load(folder)
    torch.manual_seed(recipe.seed)
    model: nn.Module = spec(name).build(spec(name).config())
    begin, busy = time.perf_counter(), time.process_time()
    source = pool.batches(sequences, recipe)
    model = train(model, source, recipe, tuning.judge_of(sets), lambda line: print(f"{name}  {line}", flush=True))
    words = data.load("train", folder)
    facts = {
        "recipe": asdict(recipe),
        "minutes": (time.perf_counter() - begin) / 60,
        "processor_minutes": (time.process_time() - busy) / 60,
        "words": len(words),
        "voices": len(words.voices),
        "sequences": len(sequences),
        "best_clip_rule": tuning.tuned_clip_rule(model, sets),
        "best_detector": tuning.tuned_detector(model, evaluate.scenes(unheard, SCENES[quick], TUNE_SEED)),
    }
    return model, facts


def save(model: nn.Module, name: str, path: Path) -> None:
    """Write the weights as they are shipped."""
    dtype = torch.float16 if name in HALF else torch.float32
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in model.state_dict().items()}, path)
    path.chmod(0o644)  # a package's data is everyone's to read


def entry(name: str, checkpoint: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """What is reported of a checkpoint, but for its training."""
    model = build_model(name, checkpoint=checkpoint)[0]
    found = {**measure.cost(name, checkpoint), **measure.measured(model, folder, SCENES[quick])}
    levels = "   ".join(f"{level} {100 * value:.1f} %" for level, value in found["accuracy"].items())
    print(f"{name}  {levels}", flush=True)
    return found


def written(entries: dict[str, dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Store the entries and their pictures in `folder`; the shipped model's are on top, the others' under it."""
    baselines = {name: entries[name] for name in STEPS if name in entries and name != SHIPPED}
    result = {
        **entries.get(SHIPPED, {}),
        "baselines": baselines,
        "clip_rule": {"threshold": kws.CLIP_THRESHOLD, "smoothing": kws.SMOOTHING_ROWS},
        "detector": {
            "threshold": kws.THRESHOLD,
            "refractory": kws.REFRACTORY_SECONDS,
            "smoothing": kws.SMOOTHING_ROWS,
        },
        "versions": {package: version(package) for package in ("edgemem", "torch", "numpy")},
    }
    print(timing.write("kws", result, folder))
    if SHIPPED in entries:
        pictures.confusion(result, folder / "kws_confusion.png")
    pictures.models({name: entries[name] for name in STEPS if name in entries}, folder / "kws_models.png")
    return result


def run(names: Sequence[str], folder: Path, options: argparse.Namespace) -> None:
    """Train unless told not to, measure, write."""
    results = folder if options.quick else timing.RESULTS
    entries = {} if options.quick else card.entries_of(results / "kws.json")
    for name in names:
        file = f"{name}.safetensors"
        checkpoint = folder / file if options.quick else checkpoints.packaged(file)
        training = entries.get(name, {}).get("training", {})
        if not options.evaluate:
            recipe = Recipe(seed=options.seed, steps=options.steps or STEPS[name])
            recipe = replace(recipe, **(QUICK if options.quick else {}))
            model, training = trained(name, folder, recipe, options.quick)
            save(model, name, checkpoint)
        entries[name] = {**entry(name, checkpoint, folder, options.quick), "training": training}
        written(entries, results)
        if not options.quick:
            card.write(entries)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the words (build/kws)")
    parser.add_argument("--model", action="append", choices=tuple(STEPS), help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a miniature in build/kws-quick; nothing is shipped")
    parser.add_argument("--evaluate", action="store_true", help="do not train; judge the packaged checkpoints")
    parser.add_argument("--steps", type=int, help="of training, instead of the model's own")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    folder = options.data or (data.QUICK_FOLDER if options.quick else data.FOLDER)
    torch.set_num_threads(1)
    try:
        if options.quick and not (folder / pool.LABELS).is_file():
            data.make_all(folder, quick=True)
        run(options.model or tuple(STEPS), folder, options)
    except EdgememError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
