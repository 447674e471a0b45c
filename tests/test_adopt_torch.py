"""Adoption of models that torch's own exporters wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

import edgemem
from edgemem.errors import UsageError
from edgemem.export.adopt import Request, adopt
from edgemem.foreign import adoption_of
from edgemem.verify import verify
from tests.foreign_files import refused, states, written


class TorchStep(torch.nn.Module):
    """A recurrent layer of torch and a head, state in and out."""

    def __init__(self, kind: str, layers: int, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = getattr(torch.nn, kind)(5, 6, layers, batch_first=batch_first)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y, after = self.layer(x, state if len(state) > 1 else state[0])
        return (self.head(y), *(after if isinstance(after, tuple) else (after,)))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers_of_torch(kind: str, batch_first: bool, tmp_path: Path) -> None:
    """Two layers; batch second, as torch has states; names that say nothing: the operator does."""
    time, count = 3, 2 if kind == "LSTM" else 1
    module = TorchStep(kind, 2, batch_first).eval()
    x = torch.randn(1, time, 5) if batch_first else torch.randn(time, 1, 5)
    state = [torch.randn(2, 1, 6) for _ in range(count)]
    path = tmp_path / "f.onnx"
    names = [f"in{i}" for i in range(count)], [f"after{i}" for i in range(count)]
    torch.onnx.export(module, (x, *state), path, dynamo=False, input_names=["x", *names[0]],
                      output_names=["y", *names[1]], opset_version=17)  # fmt: skip
    found = adopt(path, tmp_path / "m.onnx", steps=32)
    assert set(states(found).values()) == {"sure"} and len(found.contract.states) == count
    assert found.contract.chunk.frames == time and found.contract.states[0].shape == (1, 2, 6)
    stream = edgemem.load(tmp_path / "m.onnx").stream()
    stream.set_state({s.name: t.numpy().swapaxes(0, 1) for s, t in zip(found.contract.states, state, strict=True)})
    with torch.no_grad():
        wanted, *after = module(x, *state)
    np.testing.assert_allclose(
        stream.step(x.numpy().reshape(1, time, 5)).reshape(-1), wanted.numpy().reshape(-1), atol=1e-5
    )
    for s, t in zip(found.contract.states, after, strict=True):
        np.testing.assert_allclose(stream.state[s.name], t.numpy().swapaxes(0, 1), atol=1e-5)
    assert verify(tmp_path / "m.onnx", 32, reference=path).ok


class DecoderStep(torch.nn.Module):
    """A layer of torch's TransformerDecoder over a window of the last tokens, which it carries, and a fixed memory."""

    WINDOW, WIDTH = 4, 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.TransformerDecoderLayer(self.WIDTH, 2, 16, dropout=0.0, batch_first=True)
        self.register_buffer("memory", torch.randn(1, 5, self.WIDTH))

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = torch.cat([past, x], dim=1)
        return self.layer(seen, self.memory)[:, -1:], seen[:, 1:]


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_transformer_decoder_step_of_torch(dynamo: bool, tmp_path: Path) -> None:
    """By both of torch's exporters."""
    module = DecoderStep().eval()
    x, past = torch.randn(1, 1, 8), torch.zeros(1, 3, 8)
    path = tmp_path / "f.onnx"
    torch.onnx.export(module, (x, past), path, dynamo=dynamo, input_names=["x", "past_tokens"], verbose=False,
                      output_names=["y", "present_tokens"], opset_version=18)  # fmt: skip
    found = adopt(path, tmp_path / "m.onnx", steps=16)
    assert states(found) == {"past_tokens": "sure"} and found.contract.states[0].role == "cache"
    stream = edgemem.load(tmp_path / "m.onnx").stream()
    for _ in range(5):
        x = torch.randn(1, 1, 8)
        with torch.no_grad():
            wanted, past = module(x, past)
        np.testing.assert_allclose(stream.step(x.numpy()), wanted.numpy(), atol=1e-5)


def test_the_names_of_keras(tmp_path: Path) -> None:
    """An LSTM whose states come back as `lstm_1` and `lstm_2`: names say nothing, and both have one shape."""
    nodes = [
        helper.make_node("Unsqueeze", ["lstm_input_h:0", "zero"], ["h"]),
        helper.make_node("Unsqueeze", ["lstm_input_c:0", "zero"], ["c"]),
        helper.make_node("Transpose", ["keras_tensor"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "W", "R", "", "", "h", "c"], ["Y", "Y_h", "Y_c"], hidden_size=4),
        helper.make_node("Squeeze", ["Y_h", "zero"], ["Identity_1:0"]),
        helper.make_node("Squeeze", ["Y_c", "zero"], ["Identity_2:0"]),
        helper.make_node("Squeeze", ["Y", "one"], ["s"]),
        helper.make_node("Transpose", ["s"], ["Identity:0"], perm=[1, 0, 2]),
    ]
    rng = np.random.default_rng(0)
    constants = {
        "W": rng.normal(size=(1, 16, 3)).astype(np.float32),
        "R": rng.normal(size=(1, 16, 4)).astype(np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    state = ["unk__1", 4]
    inputs = {"keras_tensor": ["unk__1", "unk__2", 3], "lstm_input_h:0": state, "lstm_input_c:0": state}
    outputs = {"Identity:0": ["unk__1", "unk__2", 4], "Identity_1:0": state, "Identity_2:0": state}
    path = written(tmp_path / "f.onnx", nodes, inputs, outputs, constants)
    refused(path, UsageError, r"input keras_tensor \[unk__1, unk__2, 3\]: how long is axis 0 \(unk__1\)\?")
    found = adopt(path, tmp_path / "m.onnx", Request(sets={"unk__1": "1", "unk__2": "2"}), steps=16)
    assert states(found) == {"lstm_input_h:0": "sure", "lstm_input_c:0": "sure"}
    pairs = [(pair.input, pair.output) for pair in adoption_of(found.contract).states]
    assert pairs == [("lstm_input_h:0", "Identity_1:0"), ("lstm_input_c:0", "Identity_2:0")]
    assert found.contract.inputs[0].shape == (1, 2, 3) and found.contract.outputs[0].shape == (1, 2, 4)
