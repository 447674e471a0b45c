"""What LSTM, GRU and RNN share: their inputs, their activations, and the walk over the frames of a step.

    X  [time, batch, inputs]      W  [directions, gates * hidden, inputs]     B  [directions, 2 * gates * hidden]
    Y  [time, directions, batch, hidden]      R  [directions, gates * hidden, hidden]
    initial_h, Y_h, initial_c, Y_c  [directions, batch, hidden]
    layout 1: batch before time, and before directions

The products with W are one product over all frames; what follows is written out frame by frame. A frame at or beyond
`sequence_lens` leaves the state as it is and gives 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Builder, known, replace, sizes

MOST_FRAMES = 256  # of one step that are written out one by one
BOOL = ir.DataType.BOOL
REAL = "edgemem.real"  # in a node's meta store: [time] bool, which frames of a step are frames of the sequence at all
Values = tuple[ir.Value, ...]

# alpha and beta where the operator leaves them out
DEFAULTS: dict[str, tuple[float, float]] = {
    "Affine": (1.0, 0.0), "LeakyRelu": (0.01, 0.0), "ThresholdedRelu": (1.0, 0.0), "ScaledTanh": (1.0, 1.0),
    "HardSigmoid": (0.2, 0.5), "Elu": (1.0, 0.0),
}  # fmt: skip
TAKES = {"Affine": 2, "LeakyRelu": 1, "ThresholdedRelu": 1, "ScaledTanh": 2, "HardSigmoid": 2, "Elu": 1}
PLAIN = {name.lower(): name for name in ("Relu", "Tanh", "Sigmoid", "Softsign", "Softplus")}
NAMES = PLAIN | {name.lower(): name for name in DEFAULTS}


@dataclass(frozen=True)
class Activation:
    """A function of one gate."""

    name: str
    alpha: float
    beta: float

    def __call__(self, build: Builder, x: ir.Value) -> ir.Value:
        if self.name in PLAIN.values():
            return build.op(self.name, x)
        if self.name == "Affine":
            return build.op(
                "Add", build.op("Mul", x, build.floats("alpha", self.alpha)), build.floats("beta", self.beta)
            )
        if self.name == "ScaledTanh":
            inner = build.op("Tanh", build.op("Mul", x, build.floats("beta", self.beta)))
            return build.op("Mul", inner, build.floats("alpha", self.alpha))
        if self.name == "HardSigmoid":
            return build.op("HardSigmoid", x, alpha=self.alpha, beta=self.beta)
        return build.op(self.name, x, alpha=self.alpha)


class Recurrent:
    """One LSTM, GRU or RNN node, taken apart."""

    def __init__(self, graph: ir.Graph, node: ir.Node, gates: int, functions: Sequence[str]) -> None:
        self.graph, self.node, self.gates = graph, node, gates
        self.build = Builder(graph, node, node.name or node.outputs[0].name or node.op_type)
        self.hidden = sizes(self.required(2))[2]
        direction = self.text("direction", "forward")
        self.reversed = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
        self.batch_first = self.integer("layout") == 1
        shape = sizes(self.required(0))
        self.time, self.batch = (shape[1], shape[0]) if self.batch_first else (shape[0], shape[1])
        self.inputs = shape[2]
        clip = node.attributes.get("clip")
        self.clip = None if clip is None else clip.as_float()
        self.activations = self.functions(functions)
        self.lengths = self.sequence_lengths()
        self.real: ir.Value | None = node.meta.get(REAL)
        if self.time > MOST_FRAMES:
            raise ExportError(
                f"{node.op_type} ({self.build.base}) takes {self.time} frames a step, which would be written out one "
                f"by one, {MOST_FRAMES} at most; choose a shorter step by --chunk"
            )

    # --- what the node says ------------------------------------------------------------------------------------

    def required(self, index: int) -> ir.Value:
        value = self.optional(index)
        if value is None:
            raise ExportError(f"{self.node.op_type} ({self.build.base}): its input {index} is missing; export it again")
        return value

    def optional(self, index: int) -> ir.Value | None:
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def integer(self, name: str) -> int:
        found = self.node.attributes.get(name)
        return 0 if found is None else found.as_int()

    def text(self, name: str, default: str) -> str:
        found = self.node.attributes.get(name)
        return default if found is None else found.as_string().lower()

    def functions(self, defaults: Sequence[str]) -> list[list[Activation]]:
        """The activations of each direction. Those that take an alpha or a beta use them up in order."""
        attributes = self.node.attributes
        names = list(attributes["activations"].as_strings()) if "activations" in attributes else []
        names = names or [*defaults] * len(self.reversed)
        given = {
            key: list(attributes[key].as_floats()) if key in attributes else []
            for key in ("activation_alpha", "activation_beta")
        }
        found = []
        for text in names:
            name = NAMES.get(text.lower())
            if name is None:
                raise ExportError(
                    f"{self.node.op_type} ({self.build.base}): activation {text} is not one of "
                    f"{', '.join(NAMES.values())}"
                )
            alpha, beta = DEFAULTS.get(name, (0.0, 0.0))
            takes = TAKES.get(name, 0)
            if takes and given["activation_alpha"]:
                alpha = given["activation_alpha"].pop(0)
            if takes == 2 and given["activation_beta"]:
                beta = given["activation_beta"].pop(0)
            found.append(Activation(name, alpha, beta))
        count = len(defaults)
        return [found[at : at + count] for at in range(0, count * len(self.reversed), count)]

    def sequence_lengths(self) -> ir.Value | None:
        """Real frames of each stream, where not all of them are."""
        value = self.optional(4)
        array = known(value)
        return None if array is not None and bool((array == self.time).all()) else value

    def matrix(self, value: ir.Value, direction: int, name: str) -> ir.Value:
        """The matrix of one direction, transposed: [columns, rows]."""
        array = known(value)
        if array is not None:
            return self.build.constant(name, array[direction].T)
        part = self.build.slice(value, 0, direction, direction + 1)
        return self.build.op("Transpose", self.build.reshape(part, sizes(value)[1:]), perm=[1, 0])

    def vector(self, index: int, direction: int, parts: Sequence[tuple[int, int]], name: str) -> ir.Value | None:
        """The sum of some stretches of a direction's biases; None where there are none."""
        value = self.optional(index)
        if value is None:
            return None
        array = known(value)
        if array is not None:
            return self.build.constant(
                name, np.sum([array[direction, a:b] for a, b in parts], axis=0, dtype=array.dtype)
            )
        row = self.build.reshape(self.build.slice(value, 0, direction, direction + 1), [sizes(value)[1]])
        found = [self.build.slice(row, 0, a, b) for a, b in parts]
        return found[0] if len(found) == 1 else self.build.op("Add", *found)

    def initial(self, index: int, direction: int, name: str) -> ir.Value:
        """The state [batch, hidden] of one direction before the step; zeros where the node has none."""
        value, build = self.optional(index), self.build
        if value is None:
            return build.floats(name, np.zeros((self.batch, self.hidden)))
        if len(self.reversed) > 1:
            value = build.slice(value, 1 if self.batch_first else 0, direction, direction + 1)
        return build.reshape(value, [self.batch, self.hidden])

    # --- the walk ----------------------------------------------------------------------------------------------

    def rows(self) -> ir.Value:
        """The frames of X as rows [time * batch, inputs]."""
        x = self.required(0)
        if self.batch_first and self.time > 1 and self.batch > 1:
            x = self.build.op("Transpose", x, perm=[1, 0, 2])
        return self.build.reshape(x, [self.time * self.batch, self.inputs])

    def projected(self, rows: ir.Value, direction: int, bias: ir.Value | None) -> list[ir.Value]:
        """W x + bias of every frame: [batch, gates * hidden] each."""
        build, width = self.build, self.gates * self.hidden
        y = build.op("MatMul", rows, self.matrix(self.required(1), direction, "W"))
        y = y if bias is None else build.op("Add", y, bias)
        if self.time == 1:
            return [y]
        pieces = build.ops("Split", y, build.ints("split", [self.batch] * self.time), outputs=self.time, axis=0)
        for piece in pieces:
            piece.shape = ir.Shape([self.batch, width])
        return list(pieces)

    def split(self, x: ir.Value, count: int) -> Values:
        """The gates of a row."""
        if count == 1:
            return (x,)
        return tuple(self.build.ops("Split", x, self.build.ints("gates", [self.hidden] * count), outputs=count, axis=1))

    def bounded(self, x: ir.Value) -> ir.Value:
        """What goes into an activation, within the clip."""
        if self.clip is None:
            return x
        return self.build.op("Clip", x, self.build.floats("low", -self.clip), self.build.floats("high", self.clip))

    def walk(self, step: Callable[[int, int, Values], Values], starts: Sequence[Values]) -> None:
        """Write out all frames of all directions and put the results in the node's place.

        `step(direction, frame, state)` gives the state after one frame, its output first.
        """
        build, last, outputs = self.build, [], [[] for _ in range(self.time)]  # type: ignore[var-annotated]
        for direction, state in enumerate(starts):
            frames = range(self.time)
            for frame in reversed(frames) if self.reversed[direction] else frames:
                after = step(direction, frame, state)
                shown = after[0]
                if self.lengths is not None or self.real is not None:
                    real = self.is_real(frame)
                    shown = build.op("Where", real, after[0], build.floats("zero", 0.0), dtype=after[0].dtype)
                    after = tuple(
                        build.op("Where", real, new, old, dtype=new.dtype)
                        for new, old in zip(after, state, strict=True)
                    )
                state = after
                outputs[frame].append(shown)
            last.append(state)
        self.give_frames(outputs)
        for index in range(1, len(self.node.outputs)):
            self.give_last(index, [state[index - 1] for state in last])
        self.graph.remove(self.node, safe=True)

    def is_real(self, frame: int) -> ir.Value:
        """[batch, 1], or [1, 1] for all: whether a frame is one of the stream's own."""
        if self.real is not None:
            return self.build.reshape(self.build.slice(self.real, 0, frame, frame + 1), [1, 1])
        assert self.lengths is not None
        at = self.build.constant("frame", np.array(frame, known_dtype(self.lengths)))
        return self.build.reshape(self.build.op("Less", at, self.lengths, dtype=BOOL), [self.batch, 1])

    def give_frames(self, outputs: list[list[ir.Value]]) -> None:
        """Y: every direction's output of every frame."""
        y = self.node.outputs[0]
        if not y.uses() and not y.is_graph_output():
            return
        build, axes = self.build, (self.time, len(self.reversed), self.batch, self.hidden)
        flat = [build.reshape(h, [1, 1, self.batch, self.hidden]) for frame in outputs for h in frame]
        found = flat[0] if len(flat) == 1 else build.reshape(build.op("Concat", *flat, axis=0), axes)
        if self.batch_first:
            found = build.op("Transpose", found, perm=[2, 0, 1, 3])
        replace(y, found)

    def give_last(self, index: int, states: list[ir.Value]) -> None:
        """Y_h or Y_c."""
        value = self.node.outputs[index]
        if not value.uses() and not value.is_graph_output():
            return
        build, axis = self.build, 1 if self.batch_first else 0
        shape = [self.batch, self.hidden]
        shape.insert(axis, 1)
        parts = [build.reshape(state, shape) for state in states]
        replace(value, parts[0] if len(parts) == 1 else build.op("Concat", *parts, axis=axis))


def known_dtype(value: ir.Value) -> Any:
    """The NumPy type of a value."""
    assert value.dtype is not None
    return value.dtype.numpy()
