"""Peers: a worker of another environment in the rounds of a measurement, and what keeps one from being timed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgemem import peers
from edgemem.errors import MissingDependency, UsageError
from edgemem.measure import measure
from edgemem.modelfile import open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgemem.export import export_model
    from tests.zoo import SMALL

    path = tmp_path_factory.mktemp("peers") / "r.onnx"
    export_model("rwkv4", path, SMALL["rwkv4"], seed=1)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment called onnxruntime that is this one."""
    python = tmp_path / "peers" / "onnxruntime" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (python.parents[1] / peers.NOTE).write_text(peers.PACKAGES["onnxruntime"])
    monkeypatch.setattr(peers, "FOLDER", tmp_path / "peers")
    return tmp_path


def test_a_peer_takes_its_turns_beside_the_runtimes(model: Path, here: Path) -> None:
    found = measure([model], ["ort"], rounds=3, against=["onnxruntime"])
    ours, theirs = found["rows"]
    assert (ours["runtime"], theirs["runtime"]) == ("ort", "onnxruntime")
    assert theirs["p50_us"] > 0 and theirs["bytes_per_step"] == ours["bytes_per_step"]
    assert found["skipped"] == [] and set(found["peers"]["onnxruntime"]) == {"onnxruntime", "onnx", "onnx-ir", "numpy"}


def test_a_peer_that_computes_something_else_is_not_timed(model: Path, here: Path) -> None:
    """The worker is given a model whose last weight is wrong: its outputs are held against the right one's."""
    proto = onnx.load(model)
    head = next(t for t in proto.graph.initializer if t.name.startswith("head"))
    head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * 1.01, head.name))
    wrong = here / "wrong.onnx"
    onnx.save(proto, wrong)
    right = open_model(model)
    chunks = {"tokens": np.arange(16).reshape(16, 1, 1) % 11}
    (here / "work").mkdir()
    peer = peers.started("onnxruntime", right, chunks, 1, here / "work")
    assert isinstance(peer, peers.Peer)
    peer.close()
    came = dict(np.load(here / "work" / "outputs.npz"))
    with pytest.raises(peers.CheckFailed, match=r"onnxruntime differs from onnxruntime by .* at output logits, step 0"):
        peers.check_outputs(open_model(wrong), "onnxruntime", chunks, came)


def test_a_quantized_file_has_no_torch_module_for_litert(model: Path, here: Path, tmp_path: Path) -> None:
    from edgemem.quant import quantize

    (here / "peers" / "onnxruntime").rename(here / "peers" / "litert")
    (here / "peers" / "litert" / peers.NOTE).write_text(peers.PACKAGES["litert"])
    quantize(model, tmp_path / "q.onnx", "w8", smallest=8, steps=16)
    found = measure([tmp_path / "q.onnx"], [], rounds=1, against=["litert"])
    (skipped,) = found["skipped"]
    assert "a quantized file has none" in skipped["reason"] and found["rows"] == []


def test_a_missing_environment_says_how_to_make_it(model: Path, here: Path) -> None:
    with pytest.raises(
        MissingDependency, match=r"own with openvino==\S+ nncf==\S+ numpy, and \S+/openvino is .*--install-peers"
    ):
        measure([model], ["ort"], against=["openvino"])
    with pytest.raises(
        UsageError, match=r"--against tensorrt: there are onnxruntime, onnxruntime-int8, .*, litert-int4"
    ):
        measure([model], ["ort"], against=["tensorrt"])
    (here / "peers" / "onnxruntime" / peers.NOTE).write_text("onnxruntime==1.0 numpy")
    with pytest.raises(MissingDependency, match="onnxruntime is not that"):
        peers.interpreter("onnxruntime")


def test_a_peer_without_a_wheel_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PACKAGES", {"openvino": "--no-index openvino==0.0.1"})
    with pytest.raises(MissingDependency, match=r"cannot install openvino \(.*\): .*[Nn]o matching distribution"):
        peers.install("openvino")
    assert not (here / "peers" / "openvino").exists()
    monkeypatch.setattr(peers, "PACKAGES", {"openvino": "--no-index --dry-run pip"})
    made = here / "peers" / "openvino"
    monkeypatch.setattr(peers, "command", lambda *_: made.mkdir(exist_ok=True))
    peers.install("openvino")
    assert peers.interpreter("openvino") == made / "bin" / "python"


def test_a_peer_makes_its_own_form_of_the_original(model: Path, here: Path, tmp_path: Path) -> None:
    """The worker is given the float32 model, quantizes it, and is held against that model's outputs."""
    from edgemem.quant import quantize

    narrow = tmp_path / "q.onnx"
    quantize(model, narrow, "w8", smallest=8, steps=4)
    found = measure([narrow], [], rounds=1, against={narrow: ["onnxruntime-int8"]}, originals={narrow: model})
    (row,) = found["rows"]
    assert found["skipped"] == [] and (row["runtime"], row["file"]) == ("onnxruntime-int8", str(narrow))
    (refused,) = measure([narrow], [], rounds=1, against=["onnxruntime-int8"])["skipped"]
    assert refused["reason"] == "onnxruntime-int8 is made of a float32 model; q.onnx is quantized"
    (made,) = {name for name in peers.names() if name.endswith("-blocks8")}
    assert peers.engine_of(made) == ("onnxruntime", "blocks8")
