"""What the fields of a contract must say together, each of them well-formed by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgemem.errors import ContractError
from edgemem.state import DTYPES

if TYPE_CHECKING:
    from edgemem.contract import Contract, InputFacts

LARGEST = 1 << 62  # of an integer input: one more still fits int64
MAX_FRAMES = 1 << 20  # that an output may wait for: the end of a stream steps through them
MAX_SECONDS = 1e6  # that one unit may last


def check(contract: Contract) -> None:
    """Refuse fields that contradict each other.

    Raises:
        ContractError: naming the first such field.
    """
    for find in (names, dtypes, sizes, shapes, inputs, ranges):
        for field, problem in find(contract):
            raise ContractError(f"contract field {field}: {problem}; export the model again")


def names(contract: Contract) -> Iterator[tuple[str, str]]:
    """Inputs, outputs and states each have names of their own."""
    for field in ("inputs", "outputs", "states"):
        found = [tensor.name for tensor in getattr(contract, field)]
        for name in sorted({name for name in found if found.count(name) > 1}):
            yield field, f"{name} is there twice"


def dtypes(contract: Contract) -> Iterator[tuple[str, str]]:
    """Every tensor has a type that NumPy knows."""
    for field in ("inputs", "outputs", "states"):
        for tensor in getattr(contract, field):
            if tensor.dtype not in DTYPES:
                yield (
                    f"{field}.{tensor.name}.dtype",
                    f"one of {', '.join(sorted(DTYPES))} was wanted, it is {tensor.dtype}",
                )


def sizes(contract: Contract) -> Iterator[tuple[str, str]]:
    """Counts and times are not below what they can be."""
    chunk, latency = contract.chunk, contract.latency
    if chunk.size < 1 or chunk.frames_per_unit < 1:
        yield "chunk", "size and frames_per_unit must be at least 1"
    if chunk.seconds_per_unit is not None and not 0 < chunk.seconds_per_unit < MAX_SECONDS:
        yield "chunk.seconds_per_unit", f"must be above 0 and below {MAX_SECONDS:g}, it is {chunk.seconds_per_unit}"
    if not (0 <= latency.look_ahead < MAX_FRAMES and 0 <= latency.warm_up < MAX_FRAMES):
        yield "latency", f"look_ahead and warm_up must be from 0 to {MAX_FRAMES - 1}"


def shapes(contract: Contract) -> Iterator[tuple[str, str]]:
    """Everything begins with the batch axis, inputs and outputs go on with the frames of one step."""
    data = [port for port in contract.inputs if port.role != "valid"]
    if not data or not contract.outputs:
        yield ("outputs" if data else "inputs"), "at least one was wanted, there is none"
        return
    batch, frames = max((1, *data[0].shape[:1])), contract.chunk.frames
    wanted = [
        (f"inputs.{p.name}", p.shape, (batch,) if p.role == "valid" else (batch, frames)) for p in contract.inputs
    ]
    wanted += [(f"outputs.{p.name}", p.shape, (batch, frames)) for p in contract.outputs]
    wanted += [(f"states.{s.name}", s.shape, (batch,)) for s in contract.states]
    for field, shape, front in wanted:
        if shape[: len(front)] != front or min(shape) < 1:
            yield field, f"a shape of sizes above 0 that begins with {list(front)} was wanted, it is {list(shape)}"


def inputs(contract: Contract) -> Iterator[tuple[str, str]]:
    """Integers have a range; at most one input counts the real frames."""
    for port in contract.inputs:
        for problem in range_problems(port):
            yield f"inputs.{port.name}.range", problem
        if port.role == "valid" and (port.range != (0, contract.chunk.frames) or len(port.shape) != 1):
            yield f"inputs.{port.name}", f"one count from 0 to {contract.chunk.frames} for each stream was wanted"
    if [port.role for port in contract.inputs].count("valid") > 1:
        yield "inputs", "one count of real frames at most was wanted"


def range_problems(port: InputFacts) -> Iterator[str]:
    if port.range is None:
        if not port.dtype.startswith("float"):
            yield "integers need one"
    elif not -LARGEST < port.range[0] <= port.range[1] < LARGEST:
        yield f"a lowest and a highest value were wanted, it is {list(port.range)}"


def ranges(contract: Contract) -> Iterator[tuple[str, str]]:
    """States have a range, outputs as many labels as classes."""
    for state in contract.states:
        if state.range[0] > state.range[1]:
            yield f"states.{state.name}.range", f"a lowest and a highest value were wanted, it is {list(state.range)}"
    for port in contract.outputs:
        if port.labels is not None and len(port.labels) != port.shape[-1]:
            yield f"outputs.{port.name}.labels", f"{port.shape[-1]} were wanted, there are {len(port.labels)}"
