"""A step as data: where every tensor lies on the device, and which kernels run in which order.

spaces     weights, arena and state: one buffer each
place      bytes of a space; a state that two places take turns for lies elsewhere in every second step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgemem.errors import ModelFileError

Space = Literal["weights", "arena", "state"]
SPACES: tuple[Space, ...] = ("weights", "arena", "state")
Size3 = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """`nbytes` at `offsets[turn]` of a space; both are the same where nothing takes turns."""

    space: Space
    offsets: tuple[int, int]
    nbytes: int


@dataclass(frozen=True)
class Launch:
    """One kernel on places, in blocks of threads."""

    kernel: str
    places: tuple[Place, ...]
    blocks: Size3
    threads: Size3


@dataclass(frozen=True)
class Step:
    """`copies` (from, to) follow the launches; `states` says where each state is read, by turn."""

    launches: tuple[Launch, ...]
    copies: tuple[tuple[Place, Place], ...]
    inputs: Mapping[str, Place]
    outputs: Mapping[str, Place]
    states: Mapping[str, Place]
    sizes: Mapping[str, int]  # bytes of every space
    turns: bool  # whether any state takes turns

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(facts: Any) -> Step:
    """A step from the JSON of a manifest, every place inside its space.

    Raises:
        ModelFileError: a field is missing, of another type, or points outside its space.
    """
    try:
        sizes: dict[str, int] = {space: whole(facts["sizes"][space]) for space in SPACES}
        step = Step(
            launches=tuple(launch(item) for item in facts["launches"]),
            copies=tuple((place(source), place(target)) for source, target in facts["copies"]),
            inputs={str(name): place(item) for name, item in facts["inputs"].items()},
            outputs={str(name): place(item) for name, item in facts["outputs"].items()},
            states={str(name): place(item) for name, item in facts["states"].items()},
            sizes=sizes,
            turns=bool(facts["turns"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"the manifest's step is malformed ({error!r}); compile the model again") from error
    for held in places(step):
        if held.nbytes < 0 or min(held.offsets) < 0 or max(held.offsets) + held.nbytes > sizes[held.space]:
            raise ModelFileError(
                f"the manifest's step has {held.nbytes} bytes at {held.offsets} of {held.space}, which has "
                f"{sizes[held.space]}; compile the model again"
            )
    return step


def places(step: Step) -> list[Place]:
    """Every place of a step."""
    held = [*step.inputs.values(), *step.outputs.values(), *step.states.values()]
    held += [place for launch in step.launches for place in launch.places]
    return held + [place for pair in step.copies for place in pair]


def launch(item: Any) -> Launch:
    return Launch(
        str(item["kernel"]),
        tuple(place(held) for held in item["places"]),
        size3(item["blocks"]),
        size3(item["threads"]),
    )


def place(item: Any) -> Place:
    first, second = (whole(value) for value in item["offsets"])
    if item["space"] not in SPACES:
        raise ValueError(f"space {item['space']!r}")
    return Place(item["space"], (first, second), whole(item["nbytes"]))


def size3(values: Sequence[Any]) -> Size3:
    x, y, z = (whole(value) for value in values)
    if min(x, y, z) < 1:
        raise ValueError(f"{values} blocks or threads")
    return x, y, z


def whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value
