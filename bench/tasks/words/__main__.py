"""Train streaming encoders with and without folding attention, and compare them.

    python -m bench.tasks.words                  the whole sweep: 8 to 13 minutes on one core for each model
    python -m bench.tasks.words --only n1 n2     some of it; results of the others are kept
    python -m bench.tasks.words --quick          all of it in miniature, strings included, to see that it works
    python -m bench.tasks.words --train          train, and judge later
    python -m bench.tasks.words --evaluate       judge the checkpoints that are there, without training
    python -m bench.tasks.words --report         compare what has been judged

    model         seed  fold  width  parameters      bytes     clean     10 dB      0 dB   known after
    n1               0     1    128     826,881  1,661,722    4.74 %   14.91 %   36.95 %       -0.02 s

The strings come from `python -m bench.tasks.words.data`. Everything is written to its folder, build/words; --report
writes bench/results/words.json and words.png too, and --ship copies the checkpoints that travel with the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import training
from bench.tasks.words import card, compose, data, evaluate, report
from bench.tasks.words.train import Recipe, train
from edgemem import checkpoints
from edgemem.export import to_onnx
from edgemem.models import build_model, configured, spec
from edgemem.program import load

# Two heads of a folded sub-token are as many numbers as four of a frame; at the width of n2-wide the layers multiply as
# often as those of n1.
SWEEP: dict[str, dict[str, object]] = {
    "n1": {"fold": 1, "width": 128, "heads": 4},
    "n2-attention": {"fold": 2, "ffn_fold": 1, "width": 128, "heads": 2},  # feed-forward parts as they are
    "n2-wide": {"fold": 2, "width": 176, "heads": 2},
    "n2": {"fold": 2, "width": 128, "heads": 2},
    "n4": {"fold": 4, "width": 128, "heads": 1},
}
SEQUENCES = {compose.SHORT_SECONDS: 9_600, compose.LONG_SECONDS: 24_000}
QUICK: dict[str, Any] = {"short_steps": 10, "steps": 10, "batch": 8, "judged": 0.5}
VALIDATION_CLIPS = 100  # clean, and as many with noise
QUICK_COUNT = 64  # of training sequences, and of clips to judge by
POOL_SEED, VALIDATION_SEED = 1, 7


def named(name: str, seed: int) -> str:
    """A training: a model of the sweep with a seed."""
    return f"{name}-seed{seed}"


def composed(folder: Path, seconds: float, count: int) -> Path:
    """The folder of training sequences of that length; they are made if they are not there."""
    pool = folder / f"sequences-{seconds}s-{count}"
    if not compose.ready(pool, count):
        print(f"{count} training sequences of {seconds} s are being made", flush=True)
        compose.write(data.load("train", folder), pool, count, seconds, POOL_SEED)
    return pool


def trained(name: str, folder: Path, recipe: Recipe, limit: int | None) -> Path:
    """Train one model of the sweep; its checkpoint, in float16. What is known of the training stands beside it."""
    config = configured(spec(card.MODEL), SWEEP[name])
    unheard = data.load("valid", folder)
    made = [
        clip for snr_db in (None, 5.0) for clip in evaluate.clips(unheard, snr_db, VALIDATION_SEED, VALIDATION_CLIPS)
    ]
    sources = [
        compose.batches(composed(folder, seconds, limit or count), recipe.batch, recipe.seed)
        for seconds, count in SEQUENCES.items()
    ]
    model, course = train(
        config,
        *sources,
        recipe,
        lambda candidate: evaluate.validation_errors(candidate, made),
        lambda line: print(f"{name}  {line}", flush=True),
    )
    target = folder / f"{named(name, recipe.seed)}.safetensors"
    training.save(model, target)
    heard = data.load("train", folder)
    facts = {
        "recipe": asdict(recipe),
        "sequences": {f"{seconds} s": count for seconds, count in SEQUENCES.items()},
        "training_strings": len(heard),
        "training_voices": len(heard.voices),
        "config": asdict(config),
        "course": course,
    }
    target.with_suffix(".training.json").write_text(json.dumps(facts, indent=1) + "\n")
    return target


def judged(name: str, seed: int, folder: Path, limit: int | None) -> dict[str, Any]:
    """What the test voices say of a checkpoint, streamed through the file that it exports to."""
    checkpoint = folder / f"{named(name, seed)}.safetensors"
    module, _ = build_model(card.MODEL, SWEEP[name], checkpoint=checkpoint)
    strings = data.load("test", folder)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "m.onnx"
        to_onnx(module, None, path)
        program = load(path)
        sets = {
            level: evaluate.clips(strings, snr_db, evaluate.TEST_SEED, limit)
            for level, snr_db in evaluate.LEVELS.items()
        }
        levels = {level: evaluate.judged(program, made) for level, made in sets.items()}
        endless = evaluate.judged(program, evaluate.streams(sets["clean"]))
        sizes = evaluate.sizes(path)
    return {
        "model": name,
        "seed": seed,
        "levels": levels,
        "streams": {key: endless[key] for key in ("token_error_rate", "words", "by_voice")},
        "parameters": sum(p.numel() for p in module.parameters()),
        "checkpoint_bytes": checkpoint.stat().st_size,
        **sizes,
        **json.loads(checkpoint.with_suffix(".training.json").read_text()),
    }


def ship(folder: Path, seed: int) -> None:
    """Copy the checkpoints of `card.SHIPPED` to where the package keeps them, and write their cards."""
    for name, file in card.SHIPPED.items():
        target = checkpoints.packaged(file)
        shutil.copyfile(folder / f"{named(name, seed)}.safetensors", target)
        target.chmod(0o644)  # a package's data is everyone's to read
        print(target)
    print(*card.write(report.rows()), sep="\n")


def run(options: argparse.Namespace) -> None:
    """Train and judge unless told not to; then the comparison."""
    recipe = replace(Recipe(seed=options.seed, steps=options.steps), **(QUICK if options.quick else {}))
    folder = options.folder or (data.QUICK_FOLDER if options.quick else data.FOLDER)
    if options.quick and not all((folder / f"{split}.npz").is_file() for split in data.SPLITS):
        data.make_all(folder, quick=True)
    limit = QUICK_COUNT if options.quick else None
    for name in options.only:
        checkpoint = folder / f"{named(name, recipe.seed)}.safetensors"
        if not (options.evaluate or options.report):
            checkpoint = trained(name, folder, recipe, limit)
        if not (options.train or options.report) and checkpoint.is_file():
            found = judged(name, recipe.seed, folder, limit)
            checkpoint.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
            print(report.line(found), flush=True)
    if options.report:
        report.write(folder, card.MODEL, SWEEP)
    if options.ship:
        ship(folder, recipe.seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, help="folder of the strings (build/words, with --quick build/words-quick)"
    )
    parser.add_argument("--only", nargs="+", choices=list(SWEEP), default=list(SWEEP), help="models of the sweep")
    parser.add_argument("--quick", action="store_true", help="a miniature, strings included; nothing is shipped")
    parser.add_argument("--train", action="store_true", help="train, do not judge")
    parser.add_argument("--evaluate", action="store_true", help="do not train; judge the checkpoints in the folder")
    parser.add_argument("--report", action="store_true", help="neither train nor judge; compare")
    parser.add_argument("--ship", action="store_true", help="copy the checkpoints that are packaged")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args(arguments)
    training.as_command(lambda: run(options))


if __name__ == "__main__":
    main()
