"""`edgemem eval`: how good a model is on a task."""

from __future__ import annotations

import click

from edgemem.cli.options import json_option, print_json, progress_bar, stdout
from edgemem.tasks import TASKS


@click.command("eval")
@click.argument("model")
@click.option("--task", "task", required=True, metavar="|".join(TASKS), help="What to judge by.")
@click.option("--runtime", help="What runs the model: ort for a file and aot for a compiled folder, if left out.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Cores that a step may use.")
@click.option("--limit", type=click.IntRange(1), help="Judge only that many items of the excerpt.")
@json_option
def command(model: str, task: str, runtime: str | None, threads: int, limit: int | None, as_json: bool) -> None:
    """Stream the held-out excerpt of a task through MODEL: a file, or a name from `edgemem models` as it ships.

    \b
    edgemem eval kws-lmuformer --task kws
    edgemem eval k.onnx --task kws --json
    edgemem eval build/ --task kws --json
    """
    from edgemem.evaluation import evaluate
    from edgemem.text import human_bytes

    with progress_bar() as progress:
        bar = progress.add_task(f"evaluating {model}", total=1.0)
        found = evaluate(model, task, runtime, threads, limit, lambda share: progress.update(bar, completed=share))
    if as_json:
        print_json(found.to_json())
        return
    stdout().print(
        f"{found.task}: {found.score.metric} {found.score.value:.4f}   "
        f"({found.model} on {found.runtime}, state {human_bytes(found.state_bytes)}, "
        f"weights {human_bytes(found.weight_bytes)})",
        highlight=False,
    )
