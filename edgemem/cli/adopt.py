"""`edgemem adopt`: a foreign stateful ONNX file to ONNX + contract."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgemem.cli.options import json_option, parsed_settings, print_json, stderr, table
from edgemem.errors import UsageError
from edgemem.text import counted

if TYPE_CHECKING:
    from edgemem.export.adopt import Adopted

DIGITS = 9  # that a number of rows may have


@click.command("adopt")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@click.option(
    "--state", "states", multiple=True, metavar="IN=OUT", help="A state: OUT is the next step's IN. IN= is none."
)
@click.option(
    "--init", "inits", multiple=True, metavar="IN=FILE", help="What a state starts from, as .npy; else zeros."
)
@click.option(
    "--set", "sets", multiple=True, metavar="NAME=VALUE",
    help="The size of a dynamic axis (by its name, or INPUT.AXIS), or what an input always is.",
)  # fmt: skip
@click.option("--chunk", type=click.IntRange(1), help="Frames of a step, where time is a dynamic axis.")
@click.option(
    "--layout", "layouts", multiple=True, metavar="NAME=AXES",
    help="A letter for each axis of a tensor: B batch, T time, F other. Without T, a step is one frame.",
)  # fmt: skip
@click.option(
    "--tail", "tails", multiple=True, metavar="IN=N",
    help="Every step sees the last N rows (or samples) of this input again, before the new ones.",
)  # fmt: skip
@click.option(
    "--range", "ranges", multiple=True, metavar="NAME=LOW,HIGH", help="Of an input's integers, or of a state."
)
@click.option("--drop", "drops", multiple=True, metavar="OUT", help="An output to leave out.")
@click.option("--sound", type=click.IntRange(1), metavar="RATE", help="The first input is raw samples at this rate.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), help="How long one frame lasts.")
@click.option("--streaming", is_flag=True, help="FILE takes whole sequences: carry what it remembers of them.")
@click.option("--no-recipe", is_flag=True, help="Leave out what is known of a model that is recognised.")
@click.option("--name", help="What the model is called; the file's name if left out.")
@json_option
def command(
    file: Path,
    output: Path,
    states: tuple[str, ...],
    inits: tuple[str, ...],
    sets: tuple[str, ...],
    chunk: int | None,
    layouts: tuple[str, ...],
    tails: tuple[str, ...],
    ranges: tuple[str, ...],
    drops: tuple[str, ...],
    sound: int | None,
    seconds: float | None,
    streaming: bool,
    no_recipe: bool,
    name: str | None,
    as_json: bool,
) -> None:
    """Find the states of FILE, an ONNX model from elsewhere, and write it as a static step with a contract.

    What was decided is shown, and how sure it is; where nothing decides, the option that does is asked for. The file
    that is written is compared with FILE first.

    \b
    edgemem adopt silero_vad.onnx -o vad.onnx
    edgemem adopt silero_vad.onnx -o vad8k.onnx --sound 8000
    edgemem adopt lstm.onnx -o m.onnx --set batch=1 --chunk 4 --state h0=hn --state c0=cn
    edgemem adopt tcn.onnx -o m.onnx --streaming --chunk 8
    edgemem adopt foreign.onnx -o m.onnx --layout x=TBF --init memory_in=start.npy
    edgemem verify m.onnx --reference foreign.onnx --runtime ort --runtime aot
    """
    from edgemem.export.adopt import Request, adopt

    request = Request(
        sets={key: str(value) for key, value in parsed_settings(sets).items()},
        states=pairs("--state", states, "IN=OUT"),
        inits={key: Path(value) for key, value in pairs("--init", inits, "IN=FILE").items()},
        layouts=pairs("--layout", layouts, "NAME=AXES"),
        tails={key: count("--tail", key, value) for key, value in pairs("--tail", tails, "IN=N").items()},
        ranges={key: span("--range", key, value) for key, value in pairs("--range", ranges, "NAME=LOW,HIGH").items()},
        drops=drops,
        chunk=chunk,
        sound=sound,
        seconds=seconds,
        streaming=streaming,
        name=name,
        recipes=not no_recipe,
    )
    with stderr().status(f"adopting {file}"):
        found = adopt(file, output, request)
    if as_json:
        decisions = [asdict(decision) for decision in found.decisions]
        contract = found.contract.model_dump(mode="json")
        print_json({"file": str(output), "bytes": output.stat().st_size, "decisions": decisions, **contract})
    else:
        show(output, found)


def pairs(option: str, texts: Iterable[str], form: str) -> dict[str, str]:
    """Texts like NAME=VALUE as a dict; the value may be empty. `form` is what they look like.

    Raises:
        UsageError: a text without `=`, or a name given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} needs {form}, got {text!r}")
        if key in found:
            raise UsageError(f"{option} {key} was given twice; give each name once")
        found[key] = value
    return found


def count(option: str, key: str, text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or len(text) > DIGITS or int(text) < 1:
        raise UsageError(f"{option} {key}={text}: a whole number above 0 was wanted")
    return int(text)


def span(option: str, key: str, text: str) -> tuple[float, float]:
    """LOW,HIGH"""
    low, comma, high = text.partition(",")
    try:
        found = float(low), float(high)
    except ValueError:
        comma = ""
    if comma and found[0] > found[1]:
        raise UsageError(f"{option} {key}={text}: {low} is above {high}; give the lower one first: {key}={high},{low}")
    if not comma or not -1e300 < found[0] <= found[1] < 1e300:
        raise UsageError(f"{option} {key}={text}: LOW,HIGH was wanted, two numbers")
    return found


def show(output: Path, found: Adopted) -> None:
    """What was decided, and what was written."""
    from edgemem.export.adopt.draft import DOUBTFUL

    rows = [(d.what, d.value, d.certainty, d.reason) for d in found.decisions]
    console, contract = stderr(), found.contract
    for doubt in (d for d in found.decisions if d.certainty == DOUBTFUL):
        console.print(f"warning: {doubt.what}={doubt.value}, and {doubt.reason}", highlight=False, soft_wrap=True)
    console.print(table(("about", "decided", "how sure", "because of"), rows))
    proof = contract.parity[-1]
    console.print(
        f"wrote {output} ({output.stat().st_size:,} bytes, {counted(len(contract.states), 'state')}); "
        f"equal to the foreign file over {proof.steps} steps: "
        f"largest error {proof.max_abs_error:.1e} of {proof.tolerance:.1e} allowed",
        highlight=False,
        soft_wrap=True,
    )
