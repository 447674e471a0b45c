"""Train a small model of every family for every memory probe, and make the table model x probe.

    python -m bench.tasks.probes                     train all that ship: about ten minutes of one core, then judge them
    python -m bench.tasks.probes --quick             a miniature of two minutes; nothing is shipped
    python -m bench.tasks.probes --models probe-lmu --probes narma,digits        train those, then judge all
    python -m bench.tasks.probes --evaluate          judge the shipped checkpoints, without training

    model                  recall            copy           delay ...
    probe-rwkv4             0.500           0.500           0.500

writes edgemem/tasks/data/MODEL-PROBE.safetensors (float16), bench/results/probes.json and probes.png.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from safetensors import safe_open

from bench import training
from bench.tasks.probes import picture, table
from bench.tasks.probes.data import LONGEST
from bench.tasks.probes.train import RECIPES, Recipe, train
from bench.timing import RESULTS, write
from edgemem import checkpoints
from edgemem.errors import UsageError
from edgemem.models import build_model
from edgemem.tasks.probes import PROBES
from edgemem.text import nearest

QUICK: dict[str, Any] = {"steps": 12, "looks": 2}
QUICK_EPISODES, QUICK_FRAMES = 4, 2000
FACTS = "training"  # key of a checkpoint's metadata


def trained(model: str, name: str, recipe: Recipe, path: Path) -> None:
    """Train one model for one probe and keep it, with the facts of its training in the file."""
    module, _ = build_model(model, {"probe": name}, seed=recipe.seed)
    begin = time.process_time()
    best, facts = train(module, name, recipe, lambda line: print(f"{model:16} {line}", flush=True))
    facts["cpu_seconds"] = round(time.process_time() - begin, 1)
    training.save(best, path, facts={FACTS: json.dumps({**asdict(recipe), **facts})})


def facts_of(path: Path) -> dict[str, Any]:
    """How a checkpoint was trained."""
    with safe_open(path, framework="np") as file:
        found: dict[str, Any] = json.loads((file.metadata() or {}).get(FACTS, "{}"))
    return found


def run(options: argparse.Namespace) -> None:
    """Train unless told not to, measure, write."""
    models, names = chosen(options.models, table.MODELS), chosen(options.probes, tuple(PROBES))
    folder = Path("build/probes") if options.quick else checkpoints.packaged("")
    limit, longest = (QUICK_EPISODES, QUICK_FRAMES) if options.quick else (None, None)
    for name, model in product(names, models) if not options.evaluate else ():
        recipe = replace(RECIPES[name], **QUICK) if options.quick else RECIPES[name]
        trained(model, name, recipe, folder / f"{model}-{name}.safetensors")
    rows: dict[str, dict[str, Any]] = {model: {} for model in table.MODELS}
    for model in table.MODELS:
        for name in PROBES:
            path = folder / f"{model}-{name}.safetensors"
            if path.is_file():
                found = table.measured(model, name, limit, longest, checkpoint=path)
                rows[model][name] = {**found, "training": facts_of(path)}
        print(table.lines({model: rows[model]}, list(PROBES))[-1], flush=True)
    result = {
        "models": rows,
        "probes": {name: table.expected(name) for name in PROBES},
        "window": table.WINDOW,
        "delay_trained_to": LONGEST,
        "versions": {name: version(name) for name in ("edgemem", "torch", "numpy")},
    }
    print(*table.lines(rows, list(PROBES)), sep="\n")
    if not options.quick:
        write("probes", result)
    picture.draw(result, (folder if options.quick else RESULTS) / "probes.png")


def chosen(text: str | None, known: tuple[str, ...]) -> list[str]:
    """The names in a list with commas, in the order of `known`; all where there is none.

    Raises:
        UsageError: an unknown name; the nearest is suggested.
    """
    wanted = known if text is None else tuple(text.split(","))
    for name in wanted:
        if name not in known:
            raise UsageError(f"unknown name {name!r}{nearest(name, known)}; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps only; writes to build/probes")
    parser.add_argument("--evaluate", action="store_true", help="do not train; judge the shipped checkpoints")
    parser.add_argument("--models", help="train only these, with commas between")
    parser.add_argument("--probes", help="train only for these, with commas between")
    options = parser.parse_args()
    training.as_command(lambda: run(options))


if __name__ == "__main__":
    main()
