"""The contract: what an ONNX step graph promises about its state, as JSON inside the file.

    metadata_props["edgemem.contract"] = {"version": 1, "model": {...}, ..., "sha256": {FIELD: hex, ...}}

Every top-level field has the SHA-256 of its canonical JSON beside it, so that a file that was altered by
accident or by a tool is refused with the field's name. The graph itself stays standard ONNX: state NAME is graph
input `NAME_in` and graph output `NAME_out`, of the same shape and dtype.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from edgemem import consistency, schema
from edgemem.digests import canonical, digest
from edgemem.errors import ContractError
from edgemem.schema import Record, SchemaError
from edgemem.state import PortRole, StateRole

KEY = "edgemem.contract"
VERSION = 1
Json = None | bool | int | float | str | list[Any] | dict[str, Any]


class Source(Record):
    """Where the weights came from."""

    kind: Literal["seed", "checkpoint", "module", "foreign"]
    seed: int | None = None
    sha256: str | None = None  # of the checkpoint or of the foreign file


class ModelFacts(Record):
    """What was exported. `tensors` holds the SHA-256 of every parameter and learned start by name, `digest` of all."""

    family: str
    name: str
    config: dict[str, Json]
    parameters: int
    digest: str
    tensors: dict[str, str]
    source: Source


class Chunk(Record):
    """How much one step takes: `size` units along `axis`, each of `frames_per_unit` frames (rows of the input)."""

    axis: Literal[1]
    size: int
    unit: Literal["frame", "token", "sample", "segment"]
    frames_per_unit: int
    seconds_per_unit: float | None

    @property
    def frames(self) -> int:
        """Rows of the input that one step takes."""
        return self.size * self.frames_per_unit


class InputFacts(Record):
    """A graph input that is not a state. `shape` includes batch and time."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: PortRole
    range: tuple[int, int] | None = None  # of integers, both ends included
    frontend: dict[str, object] | None = None  # checked by the front end itself
    encoding: str | None = None


class OutputFacts(Record):
    """A graph output that is not a state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: PortRole
    labels: tuple[str, ...] | None = None


class StateFacts(Record):
    """One state: `start` is a fill value, or the name of the initializer that holds the start of one stream.

    `range` bounds the legal random states; `quant` is how the tensor is stored (`f32`: as it is).
    """

    name: str
    shape: tuple[int, ...]  # with the batch axis first
    dtype: str
    start: float | str
    role: StateRole
    range: tuple[float, float]
    quant: dict[str, Json]

    @property
    def input(self) -> str:
        return f"{self.name}_in"

    @property
    def output(self) -> str:
        return f"{self.name}_out"


class Latency(Record):
    """Frames an output waits for (`look_ahead`), and output rows before the first real one (`warm_up`)."""

    look_ahead: int
    warm_up: int
    unit: Literal["frame"]


class Certificate(Record):
    """Proof that one stage changed nothing: the largest error over `steps` steps against `reference`."""

    stage: str
    reference: str
    steps: int
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    versions: dict[str, str]


class Contract(Record):
    """See the module docstring and DESIGN: one per ONNX file."""

    version: Literal[1]
    model: ModelFacts
    chunk: Chunk
    inputs: tuple[InputFacts, ...]
    outputs: tuple[OutputFacts, ...]
    states: tuple[StateFacts, ...]
    latency: Latency
    quant: dict[str, Json]
    parity: tuple[Certificate, ...]

    @property
    def batch(self) -> int:
        """Streams that one step advances."""
        return self.inputs[0].shape[0]

    @property
    def state_bytes(self) -> int:
        """Bytes of all states as the graph keeps them, of all `batch` streams."""
        from edgemem.onnxfile import BITS

        return sum(math.prod(state.shape) * BITS[state.dtype] // 8 for state in self.states)

    @property
    def valid_input(self) -> InputFacts | None:
        """The input that counts real frames, where the graph has one."""
        return next((port for port in self.inputs if port.role == "valid"), None)

    @property
    def seconds_per_frame(self) -> float | None:
        seconds = self.chunk.seconds_per_unit
        return None if seconds is None else seconds / self.chunk.frames_per_unit


class TensorType(Protocol):
    """dtype and shape of a graph's input, output or initializer."""

    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def encode(contract: Contract) -> str:
    """The contract as the JSON text that goes into the file, digests included."""
    fields = contract.model_dump(mode="json")
    return canonical({**fields, "sha256": {name: digest(value) for name, value in fields.items()}})


def decode(text: str) -> Contract:
    """The contract in a JSON text.

    Raises:
        ContractError: not JSON, of a newer version, malformed or altered; the field is named.
    """
    try:
        fields = json.loads(text, parse_constant=no_number, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"the contract is not JSON ({error}); export the model again") from error
    if not isinstance(fields, dict):
        raise ContractError(f"the contract must be a JSON object, got {type(fields).__name__}; export the model again")
    version = fields.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise ContractError(
            f"contract field version: {version} is newer than {VERSION}; upgrade edgemem to read this file"
        )
    stored = fields.pop("sha256", None)
    if not isinstance(stored, dict):
        raise ContractError(
            "contract field sha256: a digest for each field was wanted, none came; export the model again"
        )
    try:
        contract = schema.read(Contract, fields)
    except SchemaError as error:
        where = ".".join(error.where)
        raise ContractError(f"contract field {where}: {error.problem}; export the model again") from error
    except RecursionError as error:
        raise ContractError("the contract is nested too deeply; export the model again") from error
    check_digests(fields, stored)
    consistency.check(contract)
    return contract


def no_number(name: str) -> None:
    """Refuse NaN and infinities, which Python's reader takes and JSON has not."""
    raise ValueError(f"{name} is not a number of JSON")


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; refuses a key that is there twice, of which readers take one or the other."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def check_digests(fields: Mapping[str, object], stored: Mapping[str, object]) -> None:
    """Refuse fields that differ from their stored SHA-256.

    Raises:
        ContractError: naming the first such field, in the order of the contract.
    """
    known = list(schema.kinds_of(Contract))
    for name in [*known, *sorted(set(stored) - set(known))]:
        if name not in fields:
            raise ContractError(f"contract field sha256.{name}: there is no field {name}; export the model again")
        if stored.get(name) != digest(fields[name]):
            raise ContractError(
                f"contract field {name}: its SHA-256 is {digest(fields[name])[:12]}…, the file says "
                f"{str(stored.get(name))[:12]}…; it was altered after it was written: export the model again"
            )


def check_graph(
    contract: Contract,
    inputs: Mapping[str, TensorType],
    outputs: Mapping[str, TensorType],
    initializers: Mapping[str, TensorType],
) -> None:
    """Refuse a contract that does not describe its graph, tensor by tensor.

    Raises:
        ContractError: naming the field, what the contract says and what the graph has.
    """
    wanted_in = [(f"inputs.{port.name}", port.name, port.dtype, port.shape) for port in contract.inputs]
    wanted_out = [(f"outputs.{port.name}", port.name, port.dtype, port.shape) for port in contract.outputs]
    for state in contract.states:
        wanted_in.append((f"states.{state.name}", state.input, state.dtype, state.shape))
        wanted_out.append((f"states.{state.name}", state.output, state.dtype, state.shape))
        if isinstance(state.start, str):
            compare(
                f"states.{state.name}.start", state.start, state.dtype, state.shape[1:], initializers, "initializer"
            )
    for side, wanted, found in (("input", wanted_in, inputs), ("output", wanted_out, outputs)):
        for field, name, dtype, shape in wanted:
            compare(field, name, dtype, shape, found, side)
        extra = sorted(set(found) - {name for _, name, _, _ in wanted})
        if extra:
            raise ContractError(
                f"contract field {side}s: the graph's {side} {extra[0]} is not in the contract; export the model again"
            )


def compare(
    field: str, name: str, dtype: str, shape: Sequence[int], found: Mapping[str, TensorType], side: str
) -> None:
    """Refuse a tensor that is missing from the graph or of another dtype or shape.

    Raises:
        ContractError: naming the field, with what the contract says and what the graph has.
    """
    if name not in found:
        raise ContractError(f"contract field {field}: the graph has no {side} {name}; export the model again")
    came = found[name]
    if came.dtype != dtype or tuple(came.shape) != tuple(shape):
        raise ContractError(
            f"contract field {field}: {dtype}{list(shape)} in the contract, "
            f"{came.dtype}{list(came.shape)} in the graph's {side} {name}; export the model again"
        )
