"""Frozen records that are read from JSON by their annotations: nothing missing, nothing unknown, nothing converted.

    class Chunk(Record):                 {"size": 4, "unit": "frame"}  ->  Chunk(size=4, unit="frame")
        size: int
        unit: Literal["frame", "token"]

An annotation is a type of JSON, a Record, a Literal, a tuple (of one kind, or of one each), a dict by name, or a union.
Whole numbers pass for float, and nothing else for anything else. This is what a device reads contracts with: it needs
nothing but the standard library, and starts quickly.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Self, TypeVar, dataclass_transform

Found = TypeVar("Found", bound="Record")
SIMPLE = {type(None): "null", bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
SHOWN = 80  # characters of a value in a message


class SchemaError(ValueError):
    """A value that does not fit: `where` names its field, `problem` says what was wanted and what came."""

    def __init__(self, where: tuple[str, ...], problem: str) -> None:
        super().__init__(f"{'.'.join(where)}: {problem}" if where else problem)
        self.where, self.problem = where, problem


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Record:
    """Base of the records: fields by keyword, checked when they are given, never changed.

    Not a dataclass: those are compiled one by one whenever a process starts.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(fitted(type(self), values, ()))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be set; make a copy with model_copy(update=...)")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def model_dump(self, mode: Literal["json"] = "json") -> dict[str, Any]:
        """The record as JSON values."""
        return {name: plain(value) for name, value in self.__dict__.items()}

    def model_copy(self, update: Mapping[str, Any]) -> Self:
        """The record with other values in some fields."""
        return type(self)(**{**self.__dict__, **update})


@cache
def kinds_of(record: type[Any]) -> dict[str, Any]:
    """The types of a record's fields by name, in their order."""
    return typing.get_type_hints(record)


def plain(value: Any) -> Any:
    """A field's value as JSON."""
    if isinstance(value, Record):
        return value.model_dump()
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return {key: plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def read(record: type[Found], value: Any, where: tuple[str, ...] = ()) -> Found:
    """A record of JSON values.

    Raises:
        SchemaError: naming the first field that is missing, unknown, or of another type.
    """
    if not isinstance(value, dict):
        raise wanted("an object", value, where)
    made = record.__new__(record)
    made.__dict__.update(fitted(record, value, where))
    return made


def fitted(record: Any, values: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
    """Every field of a record with its checked value, in the order of the annotations."""
    kinds = kinds_of(record)
    unknown = next((key for key in values if key not in kinds), None)
    if unknown is not None:
        raise SchemaError((*where, unknown), "there is no such field")
    found = {}
    for name, kind in kinds.items():
        if name not in values and not hasattr(record, name):
            raise SchemaError((*where, name), "it is missing")
        found[name] = checked(kind, values[name] if name in values else getattr(record, name), (*where, name))
    return found


def checked(kind: Any, value: Any, where: tuple[str, ...]) -> Any:
    """A value of an annotation; lists become tuples, and objects records.

    Raises:
        SchemaError: it is of another type.
    """
    if kind in SIMPLE:
        return simple(kind, value, where)
    if kind is object or kind is Any:
        return json_value(value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is None:
        return value if isinstance(value, kind) else read(kind, value, where)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise wanted(f"one of {', '.join(map(repr, arguments))}", value, where)
        return value
    if origin is tuple:
        return sequence(arguments, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise wanted("an object", value, where)
        return {text(key, where): checked(arguments[1], part, (*where, str(key))) for key, part in value.items()}
    if origin is list:
        return list(sequence((*arguments, ...), value, where))
    assert origin in (typing.Union, types.UnionType), kind
    return one_of(arguments, value, where)


def simple(kind: type, value: Any, where: tuple[str, ...]) -> Any:
    """A value without parts, as the very type that it is of."""
    if kind is str:
        return text(value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and fits(value):
        return float(value)
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    if kind in (int, float) or type(value) is not kind:
        raise wanted(SIMPLE[kind], value, where)
    return value


def fits(value: float) -> bool:
    """Whether a number is one that a float can hold."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def text(value: Any, where: tuple[str, ...]) -> str:
    """Text that can be written as UTF-8: a lone surrogate cannot."""
    if not isinstance(value, str):
        raise wanted("text", value, where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise wanted("text of whole characters", ascii(value), where) from error
    return str(value)


def sequence(kinds: tuple[Any, ...], value: Any, where: tuple[str, ...]) -> tuple[Any, ...]:
    """A tuple of any length of one kind, or of one value of each."""
    if not isinstance(value, list | tuple):
        raise wanted("a list", value, where)
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise wanted(f"a list of {len(kinds)}", value, where)
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(checked(kind, part, (*where, str(index))) for index, (kind, part) in pairs)


def one_of(kinds: tuple[Any, ...], value: Any, where: tuple[str, ...]) -> Any:
    """The first of several kinds that a value fits."""
    problem: SchemaError | None = None
    for kind in kinds:
        try:
            return checked(kind, value, where)
        except SchemaError as error:
            problem = error
    raise wanted(" or ".join(map(described, kinds)), value, where) from problem


def described(kind: Any) -> str:
    """An annotation in words."""
    return SIMPLE.get(kind) or ("a list" if typing.get_origin(kind) in (tuple, list) else "an object")


def json_value(value: Any, where: tuple[str, ...]) -> Any:
    """Any value of JSON."""
    if isinstance(value, dict):
        return {text(key, where): json_value(part, (*where, str(key))) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part, (*where, str(index))) for index, part in enumerate(value)]
    kind = next((kind for kind in SIMPLE if isinstance(value, kind)), None)
    if kind is None:
        raise wanted("a value of JSON", value, where)
    return simple(kind, value, where)


def wanted(what: str, value: Any, where: tuple[str, ...]) -> SchemaError:
    return SchemaError(where, f"{what} was wanted (got {str(value)[:SHOWN]})")
