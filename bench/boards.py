"""How many instructions does a step take on emulated microcontrollers, and how well were they predicted?

    python -m bench.boards              counts, on every board that a model has room on
    python -m bench.boards --fit        and fits anew what `compile` predicts with: runtimes/firmware/costs.json
    python -m bench.boards --form w8a8  only models of that form; what is stored of the other stays

    kws-tiny       w8a8   microbit           399,094 instructions  +0.1% predicted       41.6 KiB flash    3.3 KiB RAM

writes bench/results/boards.json. Counts are exact and the same on every machine; no time is measured.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import Section, Table
from bench.timing import RESULTS, write
from edgemem.boards import board
from edgemem.errors import BudgetError
from edgemem.files import atomic_write
from edgemem.runtimes.aot.compiler import compile_model
from edgemem.runtimes.aot.load import read_manifest
from edgemem.runtimes.firmware import cost
from edgemem.runtimes.firmware.counts import counted

BOARDS = ("microbit", "mps2_an385", "mps2_an386", "mps2_an500", "mps3_an547", "riscv32_virt")
SOME = ("mps2_an385", "mps2_an386", "mps2_an500", "riscv32_virt")
# Name, settings, and where it is counted in float; the rest of the boards run it in integers alone.
MODELS: Mapping[str, tuple[str, dict[str, object], Sequence[str]]] = {
    "kws-lmuformer": ("kws-lmuformer", {}, ("mps2_an385", "mps2_an386")),
    "kws-tiny": ("kws-tiny", {}, BOARDS),
    "rwkv4": ("rwkv4", {"layers": 2, "width": 64, "vocab": 64}, SOME),
    "memformer": ("memformer", {"layers": 1, "width": 32, "heads": 2, "slots": 4, "segment": 4}, SOME),
    "folding": ("folding", {"layers": 1, "width": 32, "heads": 2, "fold": 2, "segment": 4, "left": 8}, SOME),
    "lmu": ("lmu", {"layers": 2, "width": 32, "order": 16, "features": 8, "outputs": 4}, ("mps3_an547", "microbit")),
}
FORMS = ("float", "w8a8")
SMALLEST = 64  # elements of a matrix that is quantized
STEPS = 8
PORTABLE = "-DEDGEMEM_PORTABLE"
MARGIN = 1.25  # what is stated of the error, over the largest that was found
LEAST_ERROR, UNTRIED_ERROR = 0.1, 0.5  # and where no model could be left out
STEP_WEIGHT = 3.0  # of a whole step, beside its calls together
SMALL_CALL = 50.0  # instructions
# What a price is about, before anything was counted, and how little that counts beside counts: sizes that always came
# together leave open which of them costs what, and then most is said to be of the elements.
EXPECTED = {"start": 300.0, "elements": 30.0, "macs": 2.0, "divide": 50.0, "function": 50.0, "call": 50.0}
EXPECTED_OTHER = {True: 50.0, False: 5.0}  # calls of an integer kernel; an elementary operation
PULL = 0.01
ROUNDS = 2000  # of the fit
OPERATIONS = ("load", "store", "loop", "float", "whole", "choice", "convert")


@dataclass(frozen=True)
class Counted:
    """One model on one board: what its calls do, what they took, and the row of the results."""

    key: str
    model: str
    work: list[dict[str, float]]
    kernels: list[float]
    row: dict[str, Any]


def files(folder: Path, forms: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """Every model in float and, quantized, in integers."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    for name, (model, settings, _) in MODELS.items():
        path, narrow = folder / f"{name}.onnx", folder / f"{name}8.onnx"
        export_model(model, path, settings, seed=1 if settings else None)
        if "float" in forms:
            yield name, "float", path
        if "w8a8" in forms:
            data = calibration(path, folder / f"{name}.npy") if settings else None
            quantize(path, narrow, "w8a8", calibrate=data, smallest=SMALLEST, steps=64)
            yield name, "w8a8", narrow


def calibration(path: Path, data: Path) -> Path:
    """Random frames or tokens for a model with random weights."""
    import edgemem

    port = edgemem.load(path).contract.inputs[0]
    rng = np.random.default_rng(4)
    if port.range is not None:
        np.save(data, rng.integers(port.range[0], port.range[1] + 1, 256))
    else:
        np.save(data, rng.standard_normal((256, *port.shape[2:])).astype(np.float32))
    return data


def measured(name: str, form: str, path: Path, on: str, folder: Path) -> Counted | None:
    """Instructions of a model on a board; None where it has no room, or is narrow and has no integer kernels."""
    if form == "w8a8" and not in_integers(path):
        return None
    project = folder / "firmware"
    shutil.rmtree(project, ignore_errors=True)
    try:
        compile_model(path, board(on), project, "model")
    except BudgetError:
        return None
    manifest = read_manifest(project)
    integer = bool(manifest["integer"]["step"])
    with tempfile.TemporaryDirectory(dir=folder) as spare:
        found = counted(project, Path(spare), STEPS)
    kinds: Counter[str] = Counter()
    for kernel in found["kernels"]:
        kinds[kernel["primfunc"]] += kernel["instructions"]
    row = {
        "model": name,
        "form": form,
        "board": on,
        "core": board(on).core,
        "instructions_per_step": found["instructions_per_step"],
        "flash_bytes": manifest["budget"]["flash_bytes"]["linked"],
        "ram_bytes": manifest["budget"]["ram_bytes"]["linked"],
        "kernels": {kind: round(count) for kind, count in kinds.items()} if integer else {},
    }
    if form == "w8a8" and on == "mps2_an386" and name == "kws-lmuformer":
        with tempfile.TemporaryDirectory(dir=folder) as spare:
            portable = counted(project, Path(spare), STEPS, PORTABLE)["kernels"]
        row["portable_products"] = round(sum(k["instructions"] for k in portable if k["primfunc"] == "product8"))
    kernels = [kernel["instructions"] for kernel in found["kernels"]]
    return Counted(cost.key_of(board(on), integer), name, manifest["work"], kernels, row)


def in_integers(path: Path) -> bool:
    """Whether the whole step has integer kernels; it would be float again."""
    from edgemem.runtimes.integer.errors import NotInteger
    from edgemem.runtimes.integer.reference import IntegerProgram

    try:
        IntegerProgram(path)
    except NotInteger:
        return False
    return True


# --- the fit ----------------------------------------------------------------------------------------------------


def fitted(rows: Sequence[Counted]) -> dict[str, float]:
    """Prices, none below 0, with the least squares of the calls' instructions and of the whole steps.

    A step weighs by the share that it is off, a call by that share and by how much of its step it is.
    """
    terms = [cost.START, *sorted({term for row in rows for call in row.work for term in call})]
    equations, wanted = [], []
    for row in rows:
        step = float(row.row["instructions_per_step"])
        for call, count in zip(row.work, row.kernels, strict=True):
            weight = 1 / np.sqrt(step * max(count, SMALL_CALL))
            equations.append([weight * call.get(term, 0.0) for term in terms])
            wanted.append(weight * count)
        whole: Counter[str] = Counter({cost.START: 1})
        for call in row.work:
            whole.update(call)
        equations.append([STEP_WEIGHT / step * whole[term] for term in terms])
        wanted.append(STEP_WEIGHT)
    for index, term in enumerate(terms):
        equations.append([PULL / expected(term) * (place == index) for place in range(len(terms))])
        wanted.append(0.0)
    prices = dict(zip(terms, nonnegative(np.array(equations), np.array(wanted)).tolist(), strict=True))
    return {**prices, **usual(prices)}


def expected(term: str) -> float:
    """About what a term costs, in instructions."""
    kind, dot, what = term.partition(".")
    integer = not dot and kind not in OPERATIONS
    return EXPECTED.get(what or kind, EXPECTED_OTHER[integer])


def nonnegative(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """x >= 0 with the least |a x - b|, one coordinate after the other."""
    square, right = a.T @ a, a.T @ b
    x = np.zeros(len(right))
    for _ in range(ROUNDS):
        for i in range(len(x)):
            if square[i, i] > 0:
                x[i] = max(0.0, x[i] + (right[i] - square[i] @ x) / square[i, i])
    return x


def usual(prices: Mapping[str, float]) -> dict[str, float]:
    """The middle price of each kind of term among integer kernels that are no products, for one nobody counted."""
    found: dict[str, list[float]] = {}
    for term, value in prices.items():
        kind, dot, what = term.partition(".")
        if f"{kind}.elements" in prices and not kind.startswith("product"):
            found.setdefault(f"{cost.OTHER}{dot}{what}", []).append(value)
    return {name: float(np.median(values)) for name, values in found.items()}


def table(rows: Sequence[Counted]) -> dict[str, Any]:
    """Prices of one core and kind of kernels, and the error of models that the others predict.

    A model with a kernel that none of the others has says what is missed by guessing, not how well prices were fitted.
    """
    models = sorted({row.model for row in rows})
    errors, strange = [], []
    for left in models if len(models) > 1 else ():
        prices = fitted([row for row in rows if row.model != left])
        for row in rows:
            if row.model == left:
                (strange if cost.unknown(row.work, prices) else errors).append(abs(error_of(row, prices)))
    prices = fitted(rows)
    error = max(MARGIN * max(errors), LEAST_ERROR) if errors else UNTRIED_ERROR
    return {
        "board": rows[0].row["board"],
        "models": models,
        "left_out": len(errors),
        "error": round(error, 3),
        "error_of_unknown_kernels": round(max(error, UNTRIED_ERROR, MARGIN * max(strange, default=0.0)), 3),
        "prices": {term: round(value, 4) for term, value in prices.items()},
    }


def error_of(row: Counted, prices: Mapping[str, float]) -> float:
    """By how much a step was predicted too high, as a share of it."""
    return cost.instructions(row.work, prices) / float(row.row["instructions_per_step"]) - 1


def fit(rows: Sequence[Counted]) -> None:
    """Write the prices of every core that was counted on; those of others stay."""
    keys = sorted({row.key for row in rows})
    found = {**cost.tables(), **{key: table([row for row in rows if row.key == key]) for key in keys}}
    path = Path(str(resources.files("edgemem.runtimes.firmware").joinpath(cost.FILE)))
    with atomic_write(path) as file:
        text = {"source": "python -m bench.boards --fit: instructions under QEMU, -icount shift=0", "cores": found}
        file.write(json.dumps(text, indent=1, sort_keys=True).encode() + b"\n")
    for key, entry in found.items():
        print(f"{key}: {', '.join(entry['models'])}; error {entry['error']:.0%} over {entry['left_out']} left out")


# --- the results ------------------------------------------------------------------------------------------------


def with_prediction(row: Counted) -> dict[str, Any]:
    """A row of the results, with what the prices that are there say of it."""
    entry = cost.tables().get(row.key)
    if entry is None:
        return row.row
    count = round(cost.instructions(row.work, entry["prices"]))
    return {**row.row, "predicted": count, "error": cost.error_of(row.work, entry)}


def line(row: Mapping[str, Any]) -> str:
    """A row as it is printed."""
    said = ""
    if "predicted" in row:
        said = f"{row['predicted'] / row['instructions_per_step'] - 1:+.1%} predicted"
    return (
        f"{row['model']:14} {row['form']:6} {row['board']:13} {row['instructions_per_step']:12,.0f} instructions  "
        f"{said:18} {row['flash_bytes'] / 1024:7.1f} KiB flash {row['ram_bytes'] / 1024:6.1f} KiB RAM"
    )


def section(result: Mapping[str, Any]) -> Section:
    """The emulated boards' part of the results page."""
    rows = result["rows"]
    names = [name for name in BOARDS if any(row["board"] == name for row in rows)]
    cells = []
    for model, form in dict.fromkeys((row["model"], row["form"]) for row in rows):
        mine = {row["board"]: row for row in rows if (row["model"], row["form"]) == (model, form)}
        counts = [f"{mine[name]['instructions_per_step'] / 1e3:,.0f}" if name in mine else "–" for name in names]
        largest = [max(row[size] for row in mine.values()) / 1024 for size in ("flash_bytes", "ram_bytes")]
        cells.append([f"`{model}`", form, *counts, f"{largest[0]:.0f}", f"{largest[1]:.1f}"])
    errors = [row["predicted"] / row["instructions_per_step"] - 1 for row in rows if "predicted" in row]
    products = next((row for row in rows if "portable_products" in row), None)
    text = (
        "Instructions of a step under QEMU, which counts them; the same in every run and on every machine. `w8a8` runs "
        "in integers, with equal bytes on all of them; a dash: no room, or not counted. "
    )
    if products is not None:
        ratio = products["portable_products"] / products["kernels"]["product8"]
        text += f"With SMLAD the products of the shipped spotter take {ratio:.2f} x fewer instructions than without. "
    if errors:
        text += (
            f"Before a build, `compile` predicts these counts: within {max(map(abs, errors)):.0%} here; of a model "
            "that no price was fitted to, within the error that it prints."
        )
    heads = ("model", "kernels", *(f"{name} ({core_of(rows, name)})" for name in names), "KiB flash", "KiB RAM")
    title = "Thousand instructions a step; flash and RAM, stack and snapshots included, at most"
    return Section("Microcontrollers", text, tables=[Table(title, heads, cells)], recipe="bench.boards")


def core_of(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    return next(str(row["core"]) for row in rows if row["board"] == name)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="write the prices that `compile` predicts with")
    parser.add_argument("--form", choices=FORMS, action="append", help="float or w8a8; both if left out")
    options = parser.parse_args()
    forms = options.form or FORMS
    rows: list[Counted] = []
    with tempfile.TemporaryDirectory(prefix="edgemem-") as name:
        for model, form, path in files(Path(name), forms):
            for on in BOARDS if form == "w8a8" else MODELS[model][2]:
                found = measured(model, form, path, on, Path(name))
                if found is not None:
                    rows.append(found)
                    print(line(found.row), flush=True)
    if options.fit:
        fit(rows)
    result = [with_prediction(row) for row in rows]
    print(*(line(row) for row in result), sep="\n")
    stored = RESULTS / "boards.json"
    kept = json.loads(stored.read_text())["rows"] if stored.is_file() else []
    rest = [row for row in kept if row["form"] not in forms]
    write(
        "boards", {"steps": STEPS, "rows": sorted([*result, *rest], key=lambda row: list(MODELS).index(row["model"]))}
    )


if __name__ == "__main__":
    main()
