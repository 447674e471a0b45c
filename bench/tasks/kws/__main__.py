"""Train keyword spotters on the same words, and say how good each is on voices that none of them has heard.

    python -m bench.tasks.kws                      the shipped ones, then all four to compare: 70 minutes of one core
    python -m bench.tasks.kws --model shipped      the shipped one alone: about 15 minutes
    python -m bench.tasks.kws --model kws-tiny     the one for microcontrollers alone: about 5 minutes
    python -m bench.tasks.kws --model kws-gru      one of those to compare
    python -m bench.tasks.kws --quick              all of it in miniature, words included, to see that it works
    python -m bench.tasks.kws --evaluate           the checkpoints that are there, without training
    python -m bench.tasks.kws --data DIR           words from there (`python -m bench.tasks.kws.data` makes them)

    kws-lmuformer  step  7500 of 7500  loss 0.391  validation 0.9125
    kws-lmuformer  clean 96.4 %   10db 85.6 %   0db 65.6 %

Those to compare get the same data, the same recipe, and steps for eight to fifteen minutes of one core each, the
LMUFormer the fewest minutes, after a look at each peak learning rate of `RATES` for a sixth of the steps. Two processes
may train different ones at once. The shipped LMUFormer is trained for longer.

Writes edgemem/tasks/data/MODEL.safetensors and .md, bench/results/kws.json, kws_confusion.png and kws_models.png; with
--quick all goes to build/kws-quick instead, as does, to build/kws, the LMUFormer that is compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench import quant_rows, timing, training
from bench.tasks.kws import card, clip_sets, data, evaluate, measure, pictures, pool, tuning
from bench.tasks.kws.train import Recipe, train
from edgemem import checkpoints
from edgemem.models import build_model, spec
from edgemem.tasks import kws

SHIPPED, SHIPPED_STEPS = "kws-lmuformer", 15_000
COMPARED = {"kws-lmuformer": 7500, "kws-gru": 3400, "kws-spiking-lmuformer": 3900, "kws-transformer": 3600}  # steps
RATES = (1.5e-3, 3e-3, 6e-3)  # peak learning rates that each of those is tried with
TRIED = 1 / 6  # of its steps
TINY, TINY_STEPS = "kws-tiny", 4000
RUNS = ("shipped", TINY, *COMPARED)
HALF = ("kws-gru", "kws-spiking-lmuformer", "kws-transformer")  # kept as float16; the shipped one stays exact
QUICK: dict[str, Any] = {"steps": 120, "batch": 8, "judged": 0.5}
CLIPS_PER_LABEL = {False: 90, True: 10}  # of the validation voices; the latter for --quick
SCENES = {False: 20, True: 1}  # minutes of speech without an end
TUNE_SEED = 7


def trained(
    name: str, folder: Path, recipe: Recipe, quick: bool, rates: Sequence[float]
) -> tuple[nn.Module, dict[str, Any]]:
    """A model trained on the training voices, picked and tuned on the validation voices.

    Of several `rates`, each peak learning rate is tried for a share of the steps, and the best goes the whole way.
    """
    unheard = data.load("valid", folder)
    per_label = CLIPS_PER_LABEL[quick]
    sets = [clip_sets.evaluation_set(unheard, snr_db, per_label, seed=TUNE_SEED) for snr_db in (None, 5.0)]
    sequences = pool.load(folder)
    judge = tuning.judge_of(sets)
    tried = {}
    for rate in rates:
        short = replace(recipe, steps=max(1, round(recipe.steps * TRIED)), rate=rate, judged=1.0)
        tried[f"{rate:g}"] = judge(fitted(name, short, sequences, judge))
        print(f"{name}  peak learning rate {rate:g}  validation {tried[f'{rate:g}']:.4f}", flush=True)
    if tried:
        recipe = replace(recipe, rate=float(max(tried, key=lambda rate: tried[rate])))
    begin, busy = time.perf_counter(), time.process_time()
    model = fitted(name, recipe, sequences, judge)
    words = data.load("train", folder)
    facts = {
        "rates": tried,
        "recipe": asdict(recipe),
        "minutes": (time.perf_counter() - begin) / 60,
        "processor_minutes": (time.process_time() - busy) / 60,
        "words": len(words),
        "voices": len(words.voices),
        "sequences": len(sequences),
        "validation": judge(model),
        "best_clip_rule": tuning.tuned_clip_rule(model, sets),
        "best_detector": tuning.tuned_detector(model, evaluate.scenes(unheard, SCENES[quick], TUNE_SEED)),
    }
    return model, facts


def fitted(name: str, recipe: Recipe, sequences: pool.Pool, judge: Callable[[nn.Module], float]) -> nn.Module:
    """A new model after one training."""
    torch.manual_seed(recipe.seed)
    model: nn.Module = spec(name).build(spec(name).config())
    source = pool.batches(sequences, recipe)
    return train(model, source, recipe, judge, lambda line: print(f"{name}  {line}", flush=True))


def entry(name: str, checkpoint: Path, folder: Path, quick: bool) -> dict[str, Any]:
    """What is reported of a checkpoint, but for its training."""
    model = build_model(name, checkpoint=checkpoint)[0]
    found = {**measure.cost(name, checkpoint), **measure.measured(model, folder, SCENES[quick])}
    levels = "   ".join(f"{level} {100 * value:.1f} %" for level, value in found["accuracy"].items())
    print(f"{name}  {levels}", flush=True)
    return found


def written(result: dict[str, Any], folder: Path) -> None:
    """Store a result and its pictures in `folder`: the shipped model's numbers on top, `compared` under it."""
    rule = {"threshold": kws.CLIP_THRESHOLD, "smoothing": kws.SMOOTHING_ROWS}
    detector = {"threshold": kws.THRESHOLD, "refractory": kws.REFRACTORY_SECONDS, "smoothing": kws.SMOOTHING_ROWS}
    versions = {package: version(package) for package in ("edgemem", "torch", "numpy")}
    result = {**result, "clip_rule": rule, "detector": detector, "versions": versions}
    print(timing.write("kws", result, folder))
    if "confusion" in result:
        pictures.confusion(result, folder / "kws_confusion.png")
    if result["compared"]:
        pictures.models(result["compared"], folder / "kws_models.png")


def run(names: Sequence[str], folder: Path, options: argparse.Namespace) -> None:
    """Train unless told not to, measure, write."""
    if options.quick and not (folder / pool.LABELS).is_file():
        data.make_all(folder, quick=True)
    results = folder if options.quick else timing.RESULTS
    stored = results / "kws.json"
    for name in names:
        ships = name == "shipped"
        model_name = SHIPPED if ships else name
        checkpoint = place(model_name, ships, folder, options.quick)
        if options.evaluate and not checkpoint.is_file():
            print(f"{name}  left as it was: {checkpoint} is not there", flush=True)
            continue
        if not options.evaluate:
            steps = options.steps or {"shipped": SHIPPED_STEPS, TINY: TINY_STEPS, **COMPARED}[name]
            recipe = Recipe(seed=options.seed, steps=steps)
            recipe = replace(recipe, **(QUICK if options.quick else {}))
            rates = RATES if name in COMPARED else ()
            model, history = trained(model_name, folder, recipe, options.quick, rates)
            training.save(model, checkpoint, torch.float16 if model_name in HALF else torch.float32)
            keep(history, name, checkpoint, folder)
        found = entry(model_name, checkpoint, folder, options.quick)
        result = read(stored)  # now, as another run may have added its model meanwhile
        known = result if ships else result.get("tiny", {}) if name == TINY else result["compared"].get(name, {})
        found["training"] = kept(name, checkpoint, folder) or known.get("training", {})
        written(joined(result, name, found), results)
    if not options.quick:
        card.write(card.entries_of(stored))


def keep(history: dict[str, Any], name: str, checkpoint: Path, folder: Path) -> None:
    """Store the facts of a training before the checkpoint is judged, so that `--evaluate` can do that again."""
    timing.write(name, {"checkpoint": quant_rows.sha256(checkpoint), **history}, folder)


def kept(name: str, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """The facts of the training that made this very checkpoint here; none of any other."""
    path = folder / f"{name}.json"
    history: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    history.pop("machine", None)
    return history if history.pop("checkpoint", None) == quant_rows.sha256(checkpoint) else {}


def joined(result: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The results with what was found of one run."""
    if name == TINY:
        return {**result, "tiny": found}
    return {**result, **found} if name == "shipped" else {**result, "compared": {**result["compared"], name: found}}


def read(stored: Path) -> dict[str, Any]:
    """The results so far: the shipped model's on top, `compared` and `tiny` under it."""
    result: dict[str, Any] = json.loads(stored.read_text()) if stored.is_file() else {"compared": {}}
    return result


def place(model: str, ships: bool, folder: Path, quick: bool) -> Path:
    """Where a run keeps its checkpoint: in the package, but for quick ones and the shipped model trained again."""
    file = f"{model}.safetensors"
    return folder / file if quick or (model == SHIPPED and not ships) else checkpoints.packaged(file)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the words (build/kws)")
    parser.add_argument("--model", action="append", choices=RUNS, help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="a miniature in build/kws-quick; nothing is shipped")
    parser.add_argument("--evaluate", action="store_true", help="do not train; judge the packaged checkpoints")
    parser.add_argument("--steps", type=int, help="of training, instead of the model's own")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    folder = options.data or (data.QUICK_FOLDER if options.quick else data.FOLDER)
    training.as_command(lambda: run(options.model or RUNS, folder, options))


if __name__ == "__main__":
    main()
