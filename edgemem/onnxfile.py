"""Reading ONNX files without the ONNX library: a bounds-checked walk over their protobuf bytes.

Only what a runtime needs is decoded: metadata, the graph's inputs and outputs, initializers (mapped, not copied), nodes
and the types of values. A file from outside is hostile: lengths are checked against the bytes that are there, shapes
against the data, external data against the model's own folder. Nothing here recurses into the file. Field numbers are
those of onnx.proto3.

    message = fields          field = key value          key = (number << 3) | wire type, a varint
    wire type 0: varint    1: 8 bytes    2: length, bytes    5: 4 bytes
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgemem.errors import ModelFileError

Array = np.ndarray[Any, np.dtype[Any]]
Wire = dict[int, list[Any]]

DTYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
        10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 21: "uint4", 22: "int4",
    }
)  # fmt: skip
BITS = {"float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "uint4": 4, "int4": 4,
        "float16": 16, "bfloat16": 16, "int16": 16, "uint16": 16, "int8": 8, "uint8": 8, "bool": 8}  # fmt: skip
EXTERNAL = 1  # TensorProto.data_location
UNKNOWN = -1  # a symbolic or missing dimension
MAX_ELEMENTS = 1 << 40
SHOWN = 200  # characters of a place in a message


@dataclass(frozen=True)
class TensorType:
    """dtype and shape; a dimension that is not a number is -1."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Initializer:
    """A constant of the graph. Its bytes stay in the file until `numpy()`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def numpy(self) -> Array:
        """The values; a view of the file's bytes where they are stored raw.

        Raises:
            ModelFileError: a type that NumPy has not.
        """
        if BITS.get(self.dtype, 4) < 8 or self.dtype == "bfloat16":
            raise ModelFileError(f"initializer {self.name}: {self.dtype} has no NumPy type; read it with onnxruntime")
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Node:
    """One operator; attributes that are integers, floats or strings, or lists of them."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class OnnxFile:
    """What a model file says, by name."""

    path: Path
    file_bytes: int
    opset: int
    producer: str
    metadata: Mapping[str, str]
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    initializers: Mapping[str, Initializer]
    nodes: tuple[Node, ...]
    values: Mapping[str, TensorType]

    @property
    def weight_bytes(self) -> int:
        return sum(initializer.nbytes for initializer in self.initializers.values())


class Malformed(Exception):
    """Bytes that are not the protobuf message they should be."""


def read(path: str | Path) -> OnnxFile:
    """Read an ONNX file.

    Raises:
        ModelFileError: missing, a folder, empty, truncated, or not ONNX; external data outside its folder.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; an ONNX file was wanted")
    if path.exists() and not path.is_file():
        raise ModelFileError(f"{path} is no file but a device or a pipe; an ONNX file was wanted")
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) if size else memoryview(b"")
    except FileNotFoundError as error:
        raise ModelFileError(
            f"{path} does not exist; `edgemem export MODEL -o {path.name}` makes a model file"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); give an ONNX file") from error
    try:
        return model(path, data)
    except (Malformed, UnicodeDecodeError, OverflowError, ValueError) as error:
        raise ModelFileError(
            f"{path} ({size} bytes) is not a whole ONNX file: {error}; "
            "it is truncated or of another kind, export it again"
        ) from error


def model(path: Path, data: memoryview) -> OnnxFile:
    """A ModelProto."""
    fields = message(data)
    if 7 not in fields or 1 not in fields:
        raise Malformed("it has no graph")
    graph = message(last(fields, 7))
    metadata = dict(string_pair(entry) for entry in fields.get(14, []))
    initializers = {i.name: i for i in (initializer(path, entry) for entry in graph.get(5, []))}
    inputs = dict(value(entry) for entry in graph.get(11, []))
    return OnnxFile(
        path=path,
        file_bytes=len(data),
        opset=opset(fields),
        producer=text(fields.get(2, [b""])[-1]),
        metadata=metadata,
        inputs={name: kind for name, kind in inputs.items() if name not in initializers},
        outputs=dict(value(entry) for entry in graph.get(12, [])),
        initializers=initializers,
        nodes=tuple(node(entry) for entry in graph.get(1, [])),
        values=dict(value(entry) for entry in graph.get(13, [])),
    )


def opset(fields: Wire) -> int:
    """Version of the standard operators."""
    for entry in map(message, fields.get(8, [])):
        if text(entry.get(1, [b""])[-1]) in ("", "ai.onnx"):
            return integer(entry.get(2, [0])[-1])
    return 0


def value(entry: Any) -> tuple[str, TensorType]:
    """A ValueInfoProto: name and type."""
    fields = message(entry)
    kind = message(last(message(last(fields, 2)), 1)) if 2 in fields and 1 in message(last(fields, 2)) else {}
    shape = message(last(kind, 2)).get(1, []) if 2 in kind else []
    dims = tuple(dimension(message(dim)) for dim in shape)
    return text(last(fields, 1)), TensorType(DTYPES.get(integer(kind.get(1, [0])[-1]), "unknown"), dims)


def dimension(fields: Wire) -> int:
    """A size, or -1 where it is a name or missing."""
    return integer(fields[1][-1]) if 1 in fields else UNKNOWN


def node(entry: Any) -> Node:
    """A NodeProto."""
    fields = message(entry)
    return Node(
        op_type=text(last(fields, 4)),
        domain=text(fields.get(7, [b""])[-1]),
        name=text(fields.get(3, [b""])[-1]),
        inputs=tuple(text(name) for name in fields.get(1, [])),
        outputs=tuple(text(name) for name in fields.get(2, [])),
        attributes=dict(attribute(a) for a in fields.get(5, [])),
    )


def attribute(entry: Any) -> tuple[str, Any]:
    """Name and value of an AttributeProto; None for tensors and graphs."""
    fields = message(entry)
    name = text(last(fields, 1))
    if 8 in fields:
        return name, [signed(n) for n in integers(fields[8])]
    if 3 in fields:
        return name, signed(integer(fields[3][-1]))
    if 2 in fields:
        return name, float(np.frombuffer(raw(fields[2][-1], 4), "<f4")[0])
    if 4 in fields:
        return name, bytes(raw(fields[4][-1])).decode("utf-8", "replace")
    return name, None


def initializer(path: Path, entry: Any) -> Initializer:
    """A TensorProto, its bytes checked against its shape."""
    fields = message(entry)
    name, shape = text(fields.get(8, [b""])[-1]), tuple(signed(n) for n in integers(fields.get(1, [])))
    dtype = DTYPES.get(integer(fields.get(2, [0])[-1]), "unknown")
    if any(size < 0 for size in shape) or dtype not in BITS:
        raise Malformed(f"initializer {name} has type {dtype} and shape {list(shape)}")
    elements = math.prod(shape)
    if elements > MAX_ELEMENTS:
        raise Malformed(f"initializer {name} claims {elements} elements")
    wanted = (elements * BITS[dtype] + 7) // 8
    if integer(fields.get(14, [0])[-1]) == EXTERNAL:
        data = external(path, name, dict(string_pair(pair) for pair in fields.get(13, [])), wanted)
    elif 9 in fields:
        data = raw(fields[9][-1])
    else:
        data = memoryview(typed_data(fields, dtype).tobytes())
    if len(data) != wanted:
        raise Malformed(f"initializer {name}: {wanted} bytes for {dtype}{list(shape)} were wanted, {len(data)} came")
    return Initializer(name, dtype, shape, data)


def typed_data(fields: Wire, dtype: str) -> Array:
    """Values that are stored in a typed field instead of raw bytes."""
    if dtype == "float32":
        return np.frombuffer(b"".join(raw(part) for part in fields.get(4, [])), "<f4")
    if dtype == "float64":
        return np.frombuffer(b"".join(raw(part) for part in fields.get(10, [])), "<f8")
    number = {"int64": 7, "uint64": 11, "uint32": 11}.get(dtype, 5)
    values = [signed(n) for n in integers(fields.get(number, []))]
    if dtype in ("float16", "bfloat16"):
        return np.array([n & 0xFFFF for n in values], np.uint16)
    return np.array(values).astype(dtype if BITS[dtype] >= 8 else "uint8")


def external(path: Path, name: str, where: Mapping[str, str], wanted: int) -> memoryview:
    """Bytes of an initializer that lie in another file of the model's folder.

    Raises:
        ModelFileError: a path that leaves the folder, or a file that is missing or too short.
    """
    offset, length = int(where.get("offset", "0")), int(where.get("length", str(wanted)))
    target = data_file(path, name, where.get("location", ""), offset, length)
    if length == 0:
        return memoryview(b"")
    with target.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[offset : offset + length]


def data_file(path: Path, name: str | None, place: str, offset: int, length: int) -> Path:
    """The file of the model's folder in which `length` bytes of a tensor lie at `offset`.

    Raises:
        ModelFileError: a path that leaves the folder, or no file, or one that is too short.
    """
    folder = path.resolve().parent
    try:
        target = (folder / place).resolve()
        size = target.stat().st_size if target.is_file() else -1
    except (OSError, ValueError):  # names that are too long, or hold a zero
        target, size = folder, -1
    if not place or Path(place).is_absolute() or not target.is_relative_to(folder):
        raise ModelFileError(
            f"{path}: initializer {name} lies in {place[:SHOWN]!r}, outside the model's folder; this is refused"
        )
    if size < 0:
        raise ModelFileError(
            f"{path}: initializer {name} lies in {place[:SHOWN]!r}, which is missing; copy the model with its data file"
        )
    if offset < 0 or length < 0 or offset + length > size:
        raise ModelFileError(
            f"{path}: initializer {name} wants {length:,} bytes at {offset:,} of {place[:SHOWN]!r}, which is too "
            f"short ({size:,} bytes); copy the model with its data file again"
        )
    return target


def string_pair(entry: Any) -> tuple[str, str]:
    """A StringStringEntryProto."""
    fields = message(entry)
    return text(fields.get(1, [b""])[-1]), text(fields.get(2, [b""])[-1])


def message(data: Any) -> Wire:
    """The fields of a message: numbers for wire type 0, bytes for the others, in order."""
    if not isinstance(data, memoryview):
        raise Malformed("a number stands where a message was wanted")
    found: Wire = {}
    for number, content in walk(data):
        found.setdefault(number, []).append(content)
    return found


def walk(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Field number and content, one after another."""
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Malformed(f"field number 0 at byte {at}")
        if wire == 0:
            content, at = varint(data, at)
            yield number, content
            continue
        if wire == 2:
            length, at = varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise Malformed(f"wire type {wire} at byte {at}")
        if length > end - at:
            raise Malformed(f"{length} bytes were announced, {end - at} are left")
        yield number, data[at : at + length]
        at += length


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, 7 bits a byte, and the place behind it."""
    result = 0
    for index in range(10):
        if at + index >= len(data):
            raise Malformed("it ends in the middle of a number")
        byte = data[at + index]
        result |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return result & (1 << 64) - 1, at + index + 1
    raise Malformed(f"a number longer than 64 bits at byte {at}")


def integers(parts: list[Any]) -> list[int]:
    """Numbers of a repeated field, packed or not."""
    numbers: list[int] = []
    for part in parts:
        if isinstance(part, int):
            numbers.append(part)
            continue
        at = 0
        while at < len(part):
            number, at = varint(part, at)
            numbers.append(number)
    return numbers


def signed(number: int) -> int:
    """A 64-bit two's complement number as Python's."""
    return number - (1 << 64) if number >> 63 else number


def integer(content: Any) -> int:
    if not isinstance(content, int):
        raise Malformed("bytes stand where a number was wanted")
    return content


def raw(content: Any, size: int | None = None) -> memoryview:
    """Bytes, `size` of them where it is given."""
    if not isinstance(content, bytes | memoryview) or (size is not None and len(content) != size):
        raise Malformed("a number stands where bytes were wanted, or bytes of another size")
    return memoryview(content)


def text(content: Any) -> str:
    return bytes(raw(content)).decode("utf-8")


def last(fields: Wire, number: int) -> Any:
    """The field that counts where a field comes more than once."""
    if number not in fields:
        raise Malformed(f"field {number} is missing")
    return fields[number][-1]
