"""The contract in a file: whatever is altered is refused with the name of its field."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgemem import contract as contracts
from edgemem import onnxfile
from edgemem.contract import Contract
from edgemem.digests import digest
from edgemem.errors import ContractError
from edgemem.modelfile import open_model
from edgemem.program import Array, Program, StateBlock
from tests.toy import ToyState

Path_ = tuple[str | int, ...]


@pytest.fixture(scope="module")
def fields(models: Path) -> dict[str, Any]:
    """The JSON of a real contract, digests included; the spotter's has every kind of field."""
    found: dict[str, Any] = json.loads(open_model(models / "k.onnx").onnx.metadata[contracts.KEY])
    return found


def leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every value inside a JSON value that holds no others, with where it lies."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from leaves(child, (*path, key))
    if not items or not value:
        yield path, value


def at(value: Any, path: Path_) -> Any:
    for key in path:
        value = value[key]
    return value


def replaced(fields: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(fields)
    at(other, path[:-1])[path[-1]] = value
    return other


def other_value(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return {str: f"{value}x", type(None): 1, list: [1], dict: {"x": 1}}[type(value)]


def other_type(value: Any) -> Any:
    return 7 if isinstance(value, str | list | dict) else "seven"


def refusal(fields: dict[str, Any]) -> str:
    with pytest.raises(ContractError) as caught:
        contracts.decode(json.dumps(fields))
    return str(caught.value)


class Zeros(Program):
    """Gives zeros of the shapes in its contract, and remembers nothing."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract

    def new_state(self) -> ToyState:
        return ToyState(self.contract)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        return {port.name: np.zeros(port.shape, port.dtype) for port in self.contract.outputs}


def test_a_contract_survives_a_round_trip(models: Path) -> None:
    text = open_model(models / "k.onnx").onnx.metadata[contracts.KEY]
    assert contracts.encode(contracts.decode(text)) == text


@pytest.mark.parametrize("change", [other_value, other_type])
def test_every_altered_value_is_refused_by_its_field(fields: dict[str, Any], change: Any) -> None:
    seen = 0
    for path, value in leaves(fields):
        message = refusal(replaced(fields, path, change(value)))
        field = str(path[1] if path[0] == "sha256" and len(path) > 1 else path[0])
        assert field in message, (path, message)
        seen += 1
    assert seen > 100


def test_every_removed_or_renamed_key_is_refused_by_its_field(fields: dict[str, Any]) -> None:
    parents = {path[:i] for path, _ in leaves(fields) for i in range(len(path))}
    for parent in sorted(parents, key=str):
        if not isinstance(at(fields, parent), dict):
            continue
        for key in at(fields, parent):
            for renamed in (None, f"{key}_"):
                other = copy.deepcopy(fields)
                value = at(other, parent).pop(key)
                if renamed:
                    at(other, parent)[renamed] = value
                field = parent[0] if parent and parent[0] != "sha256" else key
                assert str(field) in refusal(other), (parent, key, renamed)


@pytest.mark.parametrize("field", ["inputs", "outputs", "states", "parity"])
def test_another_order_or_number_is_refused(fields: dict[str, Any], field: str) -> None:
    for other in (fields[field][::-1], fields[field] * 2, fields[field][1:]):
        if other != fields[field]:
            assert field in refusal({**fields, field: other})


def test_a_field_with_a_fresh_digest_must_still_fit_the_graph(
    models: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    changes = {
        ("states", 0, "name"): "other",
        ("states", 0, "shape"): [1, 9, 9],
        ("states", 0, "dtype"): "float64",
        ("states", 0, "start"): "no_such_initializer",
        ("inputs", 0, "name"): "other",
        ("inputs", 0, "shape"): [1, 1, 81],
        ("inputs", 0, "dtype"): "int64",
        ("outputs", 0, "name"): "other",
        ("outputs", 0, "shape"): [1, 1, 13],
    }
    for path, value in changes.items():
        other = replaced(fields, path, value)
        other["sha256"][path[0]] = digest(other[str(path[0])])
        model = onnx.load(models / "k.onnx")
        model.metadata_props[0].value = json.dumps(other)
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(ContractError, match=str(path[0])):
            open_model(tmp_path / "m.onnx")


ANYTHING = (None, True, 0, -1, 3, 1 << 70, 1.5, 1e308, "", "x", "int64", [], [1], [[]], {}, {"a": 1})


def test_whatever_a_contract_with_fresh_digests_says_is_refused_or_streams(models: Path) -> None:
    """Whoever can write a contract can write its digests: no value may crash what reads it."""
    onnxed = onnxfile.read(models / "lmu4.onnx")
    fields = json.loads(onnxed.metadata[contracts.KEY])
    read = refused = 0
    for path, _ in leaves(fields):
        for value in ANYTHING if path[0] != "sha256" else ():
            other = replaced(fields, path, value)
            other["sha256"][path[0]] = digest(other[str(path[0])])
            try:
                contract = contracts.decode(json.dumps(other))
                contracts.check_graph(contract, onnxed.inputs, onnxed.outputs, onnxed.initializers)
                stream = Zeros(contract).stream()
                stream.push(np.ones((6, 3), np.float32))
                assert len(stream.flush()) <= 6
                stream.fork()
                read += 1
            except ContractError:
                refused += 1
    assert read > 100 and refused > 500


def test_json_that_readers_take_in_two_ways_is_refused(fields: dict[str, Any]) -> None:
    text = json.dumps(fields)
    assert "'version' is there twice" in str(refused_text(text[:-1] + ', "version": 1}'))
    assert "NaN" in str(refused_text(text.replace('"chunk": {', '"chunk": {"more": NaN, ', 1)))


def refused_text(text: str) -> ContractError:
    with pytest.raises(ContractError) as caught:
        contracts.decode(text)
    return caught.value


def test_a_graph_that_changed_is_refused(models: Path, tmp_path: Path) -> None:
    def refused(change: Any) -> str:
        model = onnx.load(models / "lmu.onnx")
        change(model.graph)
        onnx.save(model, tmp_path / "m.onnx")
        with pytest.raises(ContractError) as caught:
            open_model(tmp_path / "m.onnx")
        return str(caught.value)

    def rename(graph: Any) -> None:
        graph.input[-1].name = "else_in"

    def widen(graph: Any) -> None:
        graph.output[0].type.tensor_type.shape.dim[2].dim_value += 1

    def free(graph: Any) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"

    def retype(graph: Any) -> None:
        graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE

    def more(graph: Any) -> None:
        graph.input.append(onnx.helper.make_tensor_value_info("surplus", 1, [1]))

    assert "states." in refused(rename)
    assert "outputs." in refused(widen)
    assert "inputs." in refused(free)
    assert re.search(r"inputs\..*float32.*float64", refused(retype))
    assert "surplus is not in the contract" in refused(more)


def test_what_is_not_a_contract_at_all_is_refused() -> None:
    for text, message in (
        ("{", "not JSON"),
        ("[1]", "JSON object"),
        ("{}", "sha256"),
        ('{"version": 9}', "version: 9 is newer"),
    ):
        with pytest.raises(ContractError, match=message):
            contracts.decode(text)
    with pytest.raises(ContractError, match="JSON"):
        contracts.decode("[" * 100_000)
