"""What every scheme makes of every family: bytes, quality, time per step.

    python -m bench.quant_table                      all of it; what is known of a file that did not change is kept
    python -m bench.quant_table --scores             files and scores alone: at any time, on a busy machine too
    python -m bench.quant_table --times              files and times alone, in one pass by model: on a quiet machine
    python -m bench.quant_table --models kws-gru,lm-rwkv4 --schemes "w8;w8a8"        some rows; the others stay

    kws-lmuformer          w8                           120,444  0.261×  1.01%  accuracy 0.9667  +0.00%  1440 clips  346
    4.36×

writes bench/results/quant.json after every row, so that a run that was stopped goes on where it was. Files are kept in
build/quant (--folder), by what they were made of: the checkpoint, the scheme, its code and its data. A score belongs to
the digest of the file and of the test set that gave it, a time to the digest of the file: when a checkpoint or a
scheme changes, its rows alone are judged anew, and no row shows a number of a file that is no more. To have it quickly,
give two processes half of the models each, `--scores --models …`, then time all with `--times`. On two idle cores, from
nothing, the scores take about half an hour and the times five minutes; a new checkpoint of a spotter five.

`output error` is the RMS difference of the outputs, relative to their RMS, over the packaged calibration sequences.
Quality is the metric of the model's task, streamed: on the whole test set for the schemes in `WHOLE`, on the packaged
excerpt for the others and for the models in `COMPARED`; float32 on the same stands beside it. The sets of speech are
made by `python -m bench.tasks.kws.data` and `python -m bench.tasks.words.data --splits test`. A language model is
judged in a batch that is quantized alike; its `tune` sees text of the training split. Times are medians of interleaved
rounds on one thread.
"""

from __future__ import annotations

import argparse
import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import quant_rows
from bench.claims import Section, Table
from bench.quant_rows import BATCHES, FLOAT, Made, Row, Shelf
from bench.timing import RESULTS, write
from edgemem.errors import UsageError
from edgemem.models import spec

MODELS = ("kws-lmuformer", "kws-tiny", "kws-gru", "lm-rwkv4", "lm-memformer", "asr-folding", "lm-transformer-xl")
COMPARED = ("kws-spiking-lmuformer", "kws-transformer", "lm-transformer")  # with those above, and judged by excerpts
BITS2 = "vq:dim=4,codes=256"
SCHEMES = (
    "f16",
    "w8",
    "w8a8-dynamic",
    "w8a8",
    "w8a8-outlier",
    "w4g32",
    "vq:dim=2,codes=256",
    BITS2,
    f"{BITS2},tune=100",
    "vq:dim=8,codes=256",
    "memory-vq",
)
MIRRORED = f"{BITS2},mirror=1,tune=100"
FURTHER = {
    "asr-folding": (f"{BITS2},tune=400", "memory-vq:tune=120"),  # more training, where it is cheap
    "kws-lmuformer": (MIRRORED,),
    "lm-rwkv4": (MIRRORED, "vq:dim=8,codes=256,tune=100"),
    "lm-memformer": (MIRRORED,),
}
WHOLE = ("w8", "w8a8", "vq:dim=2,codes=256", f"{BITS2},tune=100", MIRRORED, "memory-vq", *FURTHER["asr-folding"])
FOLDER = Path(__file__).parents[1] / "build" / "quant"
LOCK = FOLDER / "lock"
STALE = "†"  # beside a model whose checkpoint is another by now
UNTRACED = "‡"  # beside a row with a number that names no file


@dataclass
class Rows:
    """The rows of one model: files on its shelf, what is known of them, what is still to be found out."""

    shelf: Shelf
    rows: dict[str, Row]
    task: str | None = None
    files: dict[str, Made] = field(default_factory=dict)  # those that are timed

    @property
    def model(self) -> str:
        return self.shelf.model

    def make(self, scheme: str) -> Made:
        """The file of a scheme that is judged; its row, without the numbers of files that are no more."""
        batch = BATCHES.get(self.model, 1)
        if scheme == FLOAT:
            timed, judged = self.shelf.parent(), self.shelf.parent(batch)
        else:  # training moves the numbers of a file, not its size nor its speed
            judged = self.shelf.narrow(scheme, batch)
            timed = judged if batch == 1 else self.shelf.narrow(scheme.partition(",tune")[0])
        self.files[scheme], old = timed, self.rows.get(scheme, {})
        facts = timed.facts | {name: judged.facts[name] for name in ("output_error", "seconds")}
        kept = {name: old[name] for name in ("score", "excerpt") if old.get(name, {}).get("digest") == judged.digest}
        if old.get("time", {}).get("digest") == timed.digest:
            kept["time"] = old["time"]
        self.rows[scheme] = {"checkpoint": quant_rows.checkpoint(self.model), "file": facts, **kept}
        return judged

    def judge(self, scheme: str, judged: Made) -> None:
        """The task's metric, and that of float32 on the same; what is known of this file stays."""
        assert self.task is not None
        row, entire = self.rows[scheme], scheme in WHOLE and self.model not in COMPARED
        row["score"] = quant_rows.score(judged, self.task, entire, row.get("score", {}))
        wide, place = self.rows[FLOAT], "score" if entire else "excerpt"
        parent = self.shelf.parent(BATCHES.get(self.model, 1))
        wide[place] = quant_rows.score(parent, self.task, entire, wide.get(place, {}))
        row["score"]["float"] = wide[place]["quality"]

    def store(self, *schemes: str) -> None:
        """Write some rows; other models and rows may have been measured meanwhile."""
        with LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            models = stored()
            found = models.get(self.model, {}) | {scheme: self.rows[scheme] for scheme in schemes}
            order = [scheme for scheme in (FLOAT, *SCHEMES, *FURTHER.get(self.model, ())) if scheme in found]
            write("quant", {"models": models | {self.model: {scheme: found[scheme] for scheme in order}}})


def measured(model: str, options: argparse.Namespace) -> None:
    """Make, judge and time the rows of one model, and write each as soon as it is known."""
    rows = Rows(Shelf(model, options.folder), stored().get(model, {}))
    rows.task = quant_rows.task_of(rows.shelf.parent().path)
    for scheme in (FLOAT, *(options.schemes or (*SCHEMES, *FURTHER.get(model, ())))):
        try:
            judged = rows.make(scheme)
        except UsageError as error:  # a memory that this model has not
            print(f"{model:22} {scheme:28} {error}", flush=True)
            continue
        if rows.task and not options.times and scheme != FLOAT:
            rows.judge(scheme, judged)
        rows.store(FLOAT, scheme)
        print(line(model, scheme, rows.rows[scheme]), flush=True)
    if not options.scores:
        for scheme, found in quant_rows.timed(rows.files).items():
            rows.rows[scheme]["time"] = found
            print(line(model, scheme, rows.rows[scheme]), flush=True)
        rows.store(*rows.files)


def stored() -> dict[str, dict[str, Row]]:
    """The rows of every model that have been measured."""
    path = RESULTS / "quant.json"
    found: dict[str, dict[str, Row]] = json.loads(path.read_text())["models"] if path.is_file() else {}
    return found


# --- what is shown -----------------------------------------------------------------------------------------------


def cells(scheme: str, row: Row) -> tuple[str, ...]:
    """bytes, of float32, output error, quality, change, judged on, us per step, of float32."""
    file, score, time = row["file"], row.get("score", {}), row.get("time", {})
    base = score.get("float")
    return (
        f"{file['bytes']:,}",
        f"{file['ratio']:.3f}×",
        f"{file['output_error']:.2%}",
        f"{score['metric']} {score['quality']:.4f}" if score else "–",
        f"{score['quality'] / base - 1:+.2%}" if base else "–",
        score.get("of", "–"),
        f"{time['us_per_step']:.0f}" if time else "–",
        f"{time['times_float']:.2f}×" if time else "–",
    )


def traced(row: Row) -> bool:
    """Whether every number of a row names the file that gave it."""
    return all("digest" in row[part] for part in ("score", "time") if part in row)


def line(model: str, scheme: str, row: Row) -> str:
    """A row as it is printed."""
    return f"{model:22} {scheme:28} " + "  ".join(cells(scheme, row))


def section(result: dict[str, Any]) -> Section:
    """The table of the results page."""
    heads = ("model", "scheme", "bytes", "of float32", "output error", "quality", "change", "judged on",
             "µs per step", "of float32")  # fmt: skip
    lines, notes = [], set()
    for model, rows in result["models"].items():
        for scheme, row in sorted(rows.items(), key=lambda item: (item[0] != FLOAT, -item[1]["file"]["ratio"])):
            marks = STALE * (row["checkpoint"] != quant_rows.checkpoint(model)) + UNTRACED * (not traced(row))
            notes |= set(marks)
            lines.append([model + marks, f"`{scheme}`", *cells(scheme, row)])
    return Section(
        title="Quantization",
        text=(
            "Every scheme on every shipped model of the tasks, in onnxruntime on one thread. Bytes are of all "
            "initializers: embeddings, scales and codebooks included. The output error is RMS, relative, over the "
            "packaged calibration sequences; quality is the task's, streamed, beside float32 on the same bytes or "
            "clips. onnxruntime dequantizes int8 weights anew in every step; compiled programs need not. 4-bit codes "
            "are `dim=2`, 2-bit ones `dim=4`, 1-bit ones `dim=8`; `tune` trains their codebooks, `mirror` ties their "
            "halves. `memory-vq` shrinks the state alone, 16 times below bfloat16. The picture: a slow accumulator "
            "whose state is stored in fewer bits (`python -m bench.state_collapse`)."
            + (f" {STALE} measured with an earlier checkpoint than the one that ships." if STALE in notes else "")
            + (
                f" {UNTRACED} of an earlier run, before scores and times named their files."
                if UNTRACED in notes
                else ""
            )
        ),
        tables=(Table("Bytes, quality, time", heads, lines),),
        pictures=("state_collapse.png",),
        recipe="bench.quant_table",
    )


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=lambda text: text.split(","), default=(*MODELS, *COMPARED), help="separated by ,"
    )
    parser.add_argument("--schemes", type=lambda text: text.split(";"), help="separated by ;")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files are kept (build/quant)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--scores", action="store_true", help="do not measure times")
    only.add_argument("--times", action="store_true", help="do not judge; scores of files that did not change stay")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        if spec(model).checkpoint is None:
            print(f"{model:22} ships without weights: left out", flush=True)
        else:
            measured(model, options)


if __name__ == "__main__":
    main()
