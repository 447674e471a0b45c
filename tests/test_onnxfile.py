"""The reader of ONNX files: as the ONNX library reads them, and safe from whatever else lies in a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgemem import onnxfile
from edgemem.errors import ModelFileError


@pytest.mark.parametrize("name", ["lmu.onnx", "lm.onnx", "k.onnx"])
def test_files_read_as_the_onnx_library_reads_them(models: Path, name: str) -> None:
    found, wanted = onnxfile.read(models / name), onnx.load(models / name)
    assert found.opset == wanted.opset_import[0].version
    assert dict(found.metadata) == {p.key: p.value for p in wanted.metadata_props}
    assert list(found.inputs) == [value.name for value in wanted.graph.input]
    assert list(found.outputs) == [value.name for value in wanted.graph.output]
    for value in (*wanted.graph.input, *wanted.graph.output):
        kind = (found.inputs | found.outputs)[value.name]
        assert kind.shape == tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        assert kind.dtype == np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
    assert set(found.initializers) == {tensor.name for tensor in wanted.graph.initializer}
    for tensor in wanted.graph.initializer:
        np.testing.assert_array_equal(found.initializers[tensor.name].numpy(), numpy_helper.to_array(tensor))
    assert [(n.op_type, list(n.inputs), list(n.outputs)) for n in found.nodes] == [
        (n.op_type, list(n.input), list(n.output)) for n in wanted.graph.node
    ]
    for mine, theirs in zip(found.nodes, wanted.graph.node, strict=True):
        for attribute in theirs.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, int | float | list):
                assert mine.attributes[attribute.name] == value


def small_model(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in "xy")
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y], list(tensors)))


@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "int64", "int32", "int8", "uint8", "bool", "float16", "uint64"]
)
@pytest.mark.parametrize("raw", [False, True])
def test_initializers_of_every_type_and_storage(dtype: str, raw: bool, tmp_path: Path) -> None:
    array = np.array([[0, 1], [1, 3]]).astype(dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    content = array.tobytes() if raw else array.flatten()
    onnx.save(small_model(onnx.helper.make_tensor("w", kind, [2, 2], content, raw=raw)), tmp_path / "m.onnx")
    found = onnxfile.read(tmp_path / "m.onnx").initializers["w"].numpy()
    if dtype != "float16" or raw:
        assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def external(tmp_path: Path, location: str, offset: int = 0, length: int = 8) -> Path:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "folder" / "m.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(small_model(tensor).SerializeToString())
    return path


def test_external_data_is_read_inside_the_folder_only(tmp_path: Path) -> None:
    path = external(tmp_path, "w.data", offset=4)
    (path.parent / "w.data").write_bytes(np.array([9, 1, 2], np.float32).tobytes())
    np.testing.assert_array_equal(onnxfile.read(path).initializers["w"].numpy(), [1, 2])
    (tmp_path / "outside").write_bytes(bytes(16))
    (path.parent / "link").symlink_to(tmp_path / "outside")
    for location in ("../outside", str(tmp_path / "outside"), "link", "", "sub/../../outside"):
        with pytest.raises(ModelFileError, match="outside the model's folder"):
            onnxfile.read(external(tmp_path, location))
    for location, offset, length in (("w.data", 8, 8), ("w.data", -4, 8), ("none", 0, 8), ("w.data", 0, 1 << 60)):
        with pytest.raises(ModelFileError, match=r"which is missing; copy|is too short .* bytes"):
            onnxfile.read(external(tmp_path, location, offset, length))


def test_a_shape_must_fit_its_bytes(tmp_path: Path) -> None:
    for dims in ([3], [1 << 40, 1 << 40], [-1]):
        tensor = onnx.TensorProto(name="w", data_type=1, dims=dims, raw_data=bytes(8))
        (tmp_path / "m.onnx").write_bytes(small_model(tensor).SerializeToString())
        with pytest.raises(ModelFileError, match="initializer w"):
            onnxfile.read(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n" + bytes(60), b"hello", b"\x08\x08", bytes(100), b"\xff" * 50]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match="not a whole ONNX file"):
        onnxfile.read(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "attribute",
    [b"\x0a\x01a\x10\x05", b"\x0a\x01a\x12\x01x", b"\x0a\x01a\x20\x85\x80\x80\x80\x10", b"\x0a\x01a\x42\x01\xff"],
    ids=["float as a number", "float of one byte", "string as a number", "half a number in a list"],
)
def test_attributes_of_another_kind_are_refused(attribute: bytes, tmp_path: Path) -> None:
    node = b"\x22\x04Relu" + b"\x2a" + bytes([len(attribute)]) + attribute
    graph = b"\x0a" + bytes([len(node)]) + node
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x3a" + bytes([len(graph)]) + graph)
    with pytest.raises(ModelFileError, match="not a whole ONNX file"):
        onnxfile.read(tmp_path / "m.onnx")


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is a folder"):
        onnxfile.read(tmp_path)
    with pytest.raises(ModelFileError, match="does not exist"):
        onnxfile.read(tmp_path / "m.onnx")


@settings(max_examples=400)
@given(st.data())
def test_damaged_files_are_refused_or_read_but_never_crash(
    models: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((models / "lmu.onnx").read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    for _ in range(data.draw(st.integers(1, 4), label="flips") if content else 0):
        # the structure lies at both ends of the file, weights in the middle: aim at all of it
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        content[place] = data.draw(st.integers(0, 255), label="byte")
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    path.write_bytes(content)
    try:
        found = onnxfile.read(path)
        for initializer in found.initializers.values():
            if initializer.dtype in ("float32", "int64"):
                initializer.numpy()
    except ModelFileError as error:
        assert "fuzz.onnx" in str(error)
