"""Train the keyword spotter and say how good it is.

    python -m bench.tasks.kws                  the shipped one: about 15 minutes on two cores
    python -m bench.tasks.kws --quick          a few steps, to see that all of it works; nothing is shipped
    python -m bench.tasks.kws --data DIR       words from there (`python -m bench.tasks.kws.data` makes them)
    python -m bench.tasks.kws --evaluate       the shipped checkpoint on the test voices, without training

    step  6000 of 6000  loss 0.33  validation 0.97
    clean 97.0 %   10 dB 93.0 %   0 dB 82.0 %   (1440 clips each, 19 voices)

writes edgemem/tasks/data/kws-lmuformer.safetensors, bench/results/kws.json and kws_confusion.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bench import timing
from bench.tasks.kws import data, evaluate, evaluation
from bench.tasks.kws.augment import Array
from bench.tasks.kws.train import Recipe, batches, train
from edgemem import checkpoints
from edgemem.errors import EdgememError
from edgemem.models import build_model, spec
from edgemem.models.kws_lmuformer import KWSConfig, KWSLMUFormer
from edgemem.tasks import kws

MODEL = "kws-lmuformer"
QUICK: dict[str, Any] = {"steps": 60, "batch": 8, "judged": 0.5}
CLIPS_PER_LABEL = 90  # of the validation voices
SCENES = 20  # minutes of speech without an end
TUNE_SEED, TEST_SEED = 7, 8


def judge_of(clean: evaluation.Clips, noisy: evaluation.Clips) -> Any:
    """The mean accuracy of a model on two sets of validation clips."""

    def judge(model: KWSLMUFormer) -> float:
        counts = (evaluate.confusion(evaluate.clip_posteriors(model, clips), clips.labels) for clips in (clean, noisy))
        return sum(evaluate.accuracy(c) for c in counts) / 2

    return judge


def tuned_clip_rule(model: KWSLMUFormer, sets: Sequence[evaluation.Clips]) -> dict[str, float]:
    """Threshold and smoothing of `clip_decision` that are best on validation clips."""
    rows = [evaluate.clip_posteriors(model, clips) for clips in sets]

    def score(threshold: float, smoothing: int) -> float:
        rule = {"threshold": threshold, "smoothing": smoothing}
        pairs = zip(rows, sets, strict=True)
        return sum(evaluate.accuracy(evaluate.confusion(values, clips.labels, **rule)) for values, clips in pairs)

    best = max(product((0.2, 0.3, 0.4, 0.5, 0.6), (1, 2, 3, 5)), key=lambda rule: score(*rule))
    return {"threshold": best[0], "smoothing": best[1], "accuracy": score(*best) / len(sets)}


def tuned_detector(model: KWSLMUFormer, made: Sequence[evaluate.Scene]) -> dict[str, float]:
    """Settings of `Detector` with the best F1 on validation scenes."""
    values = evaluate.scene_posteriors(model, made)

    def f1(threshold: float, refractory: float, smoothing: int) -> float:
        found = evaluate.tally(values, made, threshold=threshold, refractory=refractory, smoothing=smoothing)
        return 2 / (1 / max(1e-9, found["hit_rate"]) + 1 / max(1e-9, found["precision"]))

    best = max(product((0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0.2, 0.3, 0.4), (2, 3, 5)), key=lambda rule: f1(*rule))
    return {"threshold": best[0], "refractory": best[1], "smoothing": best[2], "f1": f1(*best)}


def measured(model: KWSLMUFormer, folder: Path) -> tuple[dict[str, Any], Array]:
    """What the test voices say: accuracy at every level, detections in scenes; and the clean confusion matrix."""
    counts = {}
    for level in evaluation.LEVELS:
        clips = evaluation.load(folder, level)
        counts[level] = evaluate.confusion(evaluate.clip_posteriors(model, clips), clips.labels)
    words = data.load("test", folder)
    made = evaluate.scenes(words, SCENES, TEST_SEED)
    result = {
        "accuracy": {level: evaluate.accuracy(c) for level, c in counts.items()},
        "confusion": {"labels": list(kws.LABELS), **{level: c.tolist() for level, c in counts.items()}},
        "clips_per_level": int(counts["clean"].sum()),
        "always_on": evaluate.tally(evaluate.scene_posteriors(model, made), made),
        "test_voices": list(words.voices),
    }
    return result, counts["clean"]


def trained(folder: Path, recipe: Recipe, report: Any) -> tuple[KWSLMUFormer, dict[str, Any]]:
    """A model trained on the training voices, picked and tuned on the validation voices."""
    words, unheard = data.load("train", folder), data.load("valid", folder)
    sets = [evaluation.evaluation_set(unheard, snr_db, CLIPS_PER_LABEL, seed=TUNE_SEED) for snr_db in (None, 5.0)]
    torch.manual_seed(recipe.seed)
    begin = time.perf_counter()
    model = train(KWSLMUFormer(KWSConfig()), batches(words, recipe), recipe, judge_of(sets[0], sets[1]), report)
    minutes = (time.perf_counter() - begin) / 60
    facts = {
        "recipe": asdict(recipe),
        "training_minutes": minutes,
        "training_words": len(words),
        "training_voices": len(words.voices),
        "best_clip_rule": tuned_clip_rule(model, sets),
        "best_detector": tuned_detector(model, evaluate.scenes(unheard, SCENES, TUNE_SEED)),
    }
    return model, facts


def training_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """`facts`, or those of the training that made the shipped checkpoint where there are none."""
    earlier = timing.RESULTS / "kws.json"
    if facts or not earlier.is_file():
        return facts
    kept: dict[str, Any] = json.loads(earlier.read_text())["training"]
    return kept


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.FOLDER, help="folder of the words (build/kws)")
    parser.add_argument("--quick", action="store_true", help="a few steps only; writes to the folder of the words")
    parser.add_argument("--evaluate", action="store_true", help="do not train; judge the shipped checkpoint")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        run(options)
    except EdgememError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(options: argparse.Namespace) -> None:
    """Train unless told not to, measure, write."""
    recipe = replace(Recipe(seed=options.seed, steps=options.steps), **(QUICK if options.quick else {}))
    checkpoint = spec(MODEL).checkpoint or f"{MODEL}.safetensors"
    target = options.data / checkpoint if options.quick else checkpoints.packaged(checkpoint)
    facts: dict[str, Any] = {}
    if not options.evaluate:
        model, facts = trained(options.data, recipe, lambda line: print(line, flush=True))
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, target)
        target.chmod(0o644)  # a package's data is everyone's to read
    model = build_model(MODEL, checkpoint=target)[0]  # type: ignore[assignment]
    found, counts = measured(model, options.data)
    result = {
        **found,
        "model": MODEL,
        "config": asdict(KWSConfig()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "checkpoint_bytes": target.stat().st_size,
        "macs_per_second_of_audio": round(evaluate.macs_per_row(model) / model.seconds_per_frame),
        "clip_rule": {"threshold": kws.CLIP_THRESHOLD, "smoothing": kws.SMOOTHING_ROWS},
        "detector": {
            "threshold": kws.THRESHOLD,
            "refractory": kws.REFRACTORY_SECONDS,
            "smoothing": kws.SMOOTHING_ROWS,
        },
        "training": training_facts(facts),
        "versions": {name: version(name) for name in ("edgemem", "torch", "numpy")},
    }
    shown = found["accuracy"]
    print("   ".join(f"{level} {100 * value:.1f} %" for level, value in shown.items()), found["always_on"], sep="\n")
    if not options.quick:
        print(timing.write("kws", result))
        evaluate.picture(counts, f"{MODEL}, test voices, clean: {100 * shown['clean']:.1f} %", picture_path())


def picture_path() -> Path:
    """Where the confusion matrix goes."""
    return timing.RESULTS / "kws_confusion.png"


if __name__ == "__main__":
    main()
