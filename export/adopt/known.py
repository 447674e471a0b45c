"""Models that many people have, and what their own wrappers know that their files do not say.

An entry is recognised by the names, dtypes and shapes of the file's inputs and outputs (None is any size, or none).
Some have several recipes, of which options choose one: `--sound 8000` that of 8 kHz. What an option says against all of
them is refused; start values, ranges, the name and the number of streams are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.export.adopt.axes import symbols
from edgemem.export.adopt.request import OPTIONS, Request

Shape = tuple[int | None, ...]
DECIDED = ("sets", "layouts", "tails", "states")  # what a recipe says of a name
ALONE = ("sound", "seconds", "chunk", "streaming", "drops")  # what it says, or says by leaving it out, of the model


@dataclass(frozen=True)
class Known:
    """A model by its inputs and outputs, and how its makers run it. `batch` are the sizes that count streams."""

    title: str
    source: str
    inputs: Mapping[str, tuple[str, Shape]]
    outputs: tuple[str, ...]
    batch: tuple[str, ...]
    request: Request


def silero(rate: int, samples: int, context: int) -> Request:
    """Its wrapper cuts sound into `samples`, and puts the last `context` of those before in front of them."""
    return Request(
        sets={"input.0": "1", "input.1": str(samples + context), "state.1": "1", "sr": str(rate)},
        states={"state": "stateN"},
        layouts={"input": "BF", "output": "BF", "state": "FBF"},
        tails={"input": context},
        ranges={"state": (-1.0, 1.0)},
        sound=rate,
        name="silero-vad" if rate == 16_000 else f"silero-vad-{rate}",
    )


SILERO_SOURCE = "silero-vad, src/silero_vad/utils_vad.py, OnnxWrapper"
SILERO_INPUTS: dict[str, tuple[str, Shape]] = {"input": ("FLOAT", (None, None)), "state": ("FLOAT", (2, None, 128))}
SILERO_16, SILERO_8 = silero(16_000, 512, 64), silero(8000, 256, 32)
BOTH_RATES = SILERO_INPUTS | {"sr": ("INT64", ())}
NAMES, BATCH = ("output", "stateN"), ("input.0", "state.1")
MODELS = (
    Known("Silero VAD at 16 kHz", SILERO_SOURCE, BOTH_RATES, NAMES, BATCH, SILERO_16),
    Known("Silero VAD at 8 kHz", SILERO_SOURCE, BOTH_RATES, NAMES, BATCH, SILERO_8),
    Known("Silero VAD at 16 kHz", SILERO_SOURCE, SILERO_INPUTS, NAMES, BATCH, SILERO_16),
)


def recognised(graph: ir.Graph, said: Request) -> tuple[Known, Request] | None:
    """The entry that a graph and what the user said fit, if there is one, and its recipe as far as the graph is open.

    Raises:
        UsageError: the graph is known, and an option fits none of its recipes.
    """
    inputs = {value.name or "": value for value in graph.inputs}
    outputs = tuple(value.name for value in graph.outputs)
    fitting = []
    for known in MODELS:
        if set(known.inputs) == set(inputs) and known.outputs == outputs:
            recipe = opened(known, inputs, said)
            if all(fits(inputs[name], *known.inputs[name]) for name in inputs):
                fitting.append((known, recipe, list(contradictions(recipe, placed(inputs, said)))))
    if not fitting:
        return None
    known, recipe, against = min(fitting, key=lambda found: len(found[2]))  # the first, of several
    if against:
        raise UsageError(refusal(against[0], [(k.title, r) for k, r, _ in fitting]))
    return known, recipe


def opened(known: Known, inputs: Mapping[str, ir.Value], said: Request) -> Request:
    """A recipe without what the graph says itself, for as many streams as the user wants."""
    recipe, own = known.request, placed(inputs, said)
    sets = {k: v for k, v in recipe.sets.items() if k in inputs or is_open(inputs, k)}
    streams = next((own.sets[key] for key in known.batch if key in own.sets), "1")
    return replace(recipe, sets={k: streams if k in known.batch else v for k, v in sets.items()})


def placed(inputs: Mapping[str, ir.Value], said: Request) -> Request:
    """What the user said of axes by their symbols, by INPUT.AXIS."""
    sets = dict(said.sets)
    for name, value in inputs.items():
        for axis, symbol in enumerate(symbols(value)):
            if symbol in sets:
                sets[f"{name}.{axis}"] = sets[symbol]
    return replace(said, sets=sets)


def contradictions(recipe: Request, said: Request) -> Iterator[tuple[str, str, Any]]:
    """What the user said against a recipe: the field, the name in it (or ''), and what came."""
    for field in DECIDED:
        ours = getattr(recipe, field)
        yield from ((field, k, v) for k, v in getattr(said, field).items() if k in ours and ours[k] != v)
    for field in ALONE:
        came = getattr(said, field)
        if came and came != getattr(recipe, field):
            yield field, "", came


def refusal(against: tuple[str, str, Any], recipes: list[tuple[str, Request]]) -> str:
    """The option that fits no recipe, what each of them has, and what to do."""
    field, key, came = against
    shown = came[0] if isinstance(came, tuple) else f"{came:g}" if isinstance(came, float) else came
    option = f"{OPTIONS[field]} {key}={came}" if key else f"{OPTIONS[field]} {shown}".removesuffix(" True")
    values = [getattr(recipe, field) for _, recipe in recipes]
    values = [value.get(key) if key else value for value in values]
    wanted = [f"{t} takes {v}" if v else f"{t} is run without" for (t, _), v in zip(recipes, values, strict=True)]
    several = len(set(map(str, values))) > 1
    return (
        f"{option}: the file is known, and {' and '.join(wanted if several else wanted[:1])}; leave the option out, "
        f"{'choose the rate by --sound, ' if several else ''}or say --no-recipe and everything by options of your own"
    )


def fits(value: ir.Value, dtype: str, shape: Shape) -> bool:
    """Whether an input is of a dtype and shape."""
    sizes = list(value.shape or ())
    wanted = zip(sizes, shape, strict=False)
    return (
        value.dtype is not None
        and value.dtype.name == dtype
        and len(sizes) == len(shape)
        and all(b is None or a == b for a, b in wanted)
    )


def is_open(inputs: Mapping[str, ir.Value], key: str) -> bool:
    """Whether INPUT.AXIS names an axis without a size."""
    name, dot, axis = key.rpartition(".")
    shape = inputs[name].shape or () if dot and name in inputs else ()
    return axis.isdecimal() and int(axis) < len(shape) and isinstance(shape[int(axis)], ir.SymbolicDim)
