"""ONNX nodes of a `w8a8` file to operations on integer buffers.

    QuantizeLinear(x)        the rounding of whatever waits in x: one operation
    DequantizeLinear(q)      nothing: the integers and what they stand for
    Reshape, Slice, Concat…  nothing, until a kernel needs elements side by side
    MatMul, Add, Softmax…    wait for the next QuantizeLinear

uint8 becomes int8, 128 less. A state that is rounded as it comes in and comes back in the same scale is kept as these
integers. What has no integer kernel is refused by operator, and the file is then compiled with float kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgemem.modelfile import ModelFile
from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer.errors import NotInteger
from edgemem.runtimes.integer.operation import LIMITS, Operand, Operation, Out
from edgemem.runtimes.integer.operators import ROUNDED, RULES, moves, rows, wide
from edgemem.runtimes.integer.values import (
    BUFFER_BITS,
    MASK,
    WAITING,
    Array,
    Fixed,
    Ints,
    Product,
    Rows,
    Value,
    Whole,
    Wide,
    places_of,
)  # fmt: skip
from edgemem.runtimes.integer.views import pieces, view


@dataclass
class Step:
    """A step in integers; `scales` of the states that are kept as integers, by name."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)
    constants: dict[int, Array] = field(default_factory=dict)
    results: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)


def lowered(model: ModelFile) -> Step:
    """The integer step of a model file.

    Raises:
        NotInteger: an operator, or a way to use one, that has no integer kernel; the message names it.
    """
    return Lowering(model).run()


class Lowering:
    """One walk over the nodes; the rules of `operators` call back for values and buffers."""

    def __init__(self, model: ModelFile) -> None:
        import onnx
        from onnx import numpy_helper

        self.model = model
        self.graph = onnx.load(model.path).graph
        self.step = Step()
        self.tensors: dict[int, Tensor] = {}
        self.shared: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}
        self.plain = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        self.values: dict[str, Value] = {}
        self.readers: dict[str, list[tuple[Any, int]]] = {}
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, index))

    def run(self) -> Step:
        for port in self.model.contract.inputs:
            places = self.incoming(port.name, port.shape, port.dtype)
            if port.dtype not in ("float32", "int64"):
                raise NotInteger(f"input {port.name} of {port.dtype} has no integer kernel")
            self.values[port.name] = Wide(places) if port.dtype == "float32" else Whole(places, port.dtype)
        for state in self.model.contract.states:
            if state.dtype != "float32":
                raise NotInteger(f"state {state.name} of {state.dtype} has no integer form")
            self.begin_state(state)
        for node in self.graph.node:
            if node.op_type not in RULES:
                raise NotInteger(f"{node.op_type} has no integer kernel")
            made = RULES[node.op_type](self, node)
            self.values.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=True))
        self.finish()
        return self.step

    def begin_state(self, state: Any) -> None:
        """A state as integers if all that read it round it, in one scale of int16, else as float32."""
        readers = [node for node, _ in self.readers.get(state.input, ())]
        rounded = all(node.op_type == "QuantizeLinear" for node in readers)
        scales = {float(self.plain[node.input[1]]) for node in readers if rounded and self.kind(node) == np.int16}
        if len(scales) == 1:
            scale = scales.pop()
            self.step.scales[state.name] = scale
            self.values[state.input] = Ints(self.incoming(state.input, state.shape, "int16"), "int16", scale, 0)
        else:
            self.values[state.input] = Wide(self.incoming(state.input, state.shape, "float32"))

    def kind(self, node: Any) -> np.dtype[Any]:
        """What a QuantizeLinear rounds to."""
        return self.plain[node.input[2]].dtype if len(node.input) > 2 else np.dtype(np.uint8)

    def only_right_factor(self, node: Any) -> bool:
        """Whether all that is read of a QuantizeLinear are right factors of MatMul."""
        values = [reader.output[0] for reader, _ in self.readers.get(node.output[0], ())]
        uses = [(reader.op_type, index) for name in values for reader, index in self.readers.get(name, ())]
        return bool(uses) and set(uses) == {("MatMul", 1)}

    def finish(self) -> None:
        """What leaves the step: outputs as float32, states as they came."""
        for port in self.model.contract.outputs:
            value = self.values[port.name]
            self.step.results[port.name] = self.whole(self.as_wide(value).places, copied=True)
        for state in self.model.contract.states:
            value = self.values[state.output]
            if state.name in self.step.scales:
                value = self.ints(value)
                if value.dtype != "int16" or not np.isclose(value.scale, self.step.scales[state.name], rtol=1e-6):
                    raise NotInteger(f"state {state.name} comes back in another scale than it had")
                self.step.results[state.output] = self.whole(value.places, copied=True)
            else:
                self.step.results[state.output] = self.whole(self.as_wide(value).places, copied=True)

    # --- buffers -----------------------------------------------------------------------------------------------------

    def new(self, source: Any, name: str, shape: Sequence[int], dtype: str) -> Tensor:
        tensor = Tensor(len(self.tensors), source, name, tuple(int(extent) for extent in shape), dtype)
        self.tensors[tensor.number] = tensor
        return tensor

    def incoming(self, name: str, shape: Sequence[int], dtype: str) -> Array:
        tensor = self.step.inputs[name] = self.new("input", name, shape, dtype)
        return places_of(tensor.number, tensor.shape)

    def constant(self, array: Array) -> Tensor:
        """A constant buffer; equal ones are one."""
        array = np.ascontiguousarray(array)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.new("constant", "", array.shape, str(array.dtype))
            self.step.constants[self.shared[key].number] = array.reshape(-1)
        return self.shared[key]

    def places(self, array: Array) -> Array:
        """The elements of a constant buffer."""
        return places_of(self.constant(array).number, array.shape)

    def add(self, operation: Operation) -> Array:
        """Append an operation; the elements that it writes."""
        self.step.operations.append(operation)
        return places_of(operation.write.number, operation.write.shape)

    def result(self, shape: Sequence[int], dtype: str) -> Tensor:
        return self.new("call", "", shape, dtype)

    def operand(self, places: Array, shape: Sequence[int], zero: int = 0) -> Operand:
        """What an elementwise operation with a result of `shape` reads: all elements, those that repeat included."""
        spread = np.broadcast_to(places, tuple(shape))
        found = view(spread)
        if found is None:
            spread = np.broadcast_to(places_of(self.whole(places).number, places.shape), tuple(shape))
            found = view(spread)
            assert found is not None
        return Operand(self.tensors[found.buffer], spread, zero)

    def stretch(self, places: Array) -> tuple[Tensor, int]:
        """The buffer that holds these elements side by side, and where they start."""
        flat = view(np.ascontiguousarray(places).reshape(-1))
        if flat is not None and (flat.strides == (1,) or places.size == 1):
            return self.tensors[flat.buffer], flat.start
        return self.whole(places), 0

    def whole(self, places: Array, copied: bool = False) -> Tensor:
        """A buffer of exactly these elements; `copied` where it has to be one that a call has made for this use."""
        first = self.tensors[int(places.reshape(-1)[0]) >> BUFFER_BITS]
        same = first.source == "call" and np.array_equal(
            places.reshape(-1), places_of(first.number, first.shape).reshape(-1)
        )
        if same and not (copied and first in self.step.results.values()):
            return first
        target, parts = self.result(places.shape, first.dtype), pieces(places)
        if parts is None:
            if (places >> BUFFER_BITS != first.number).any():
                raise NotInteger("elements of several tensors in an order that no loop has")
            self.add(moves.gather(first, self.constant((places.reshape(-1) & MASK).astype(np.int32)), target))
        else:
            self.add(moves.move(parts, [self.tensors[part.view.buffer] for part in parts], places.shape, target))
        return target

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        if name in self.values:
            return self.values[name]
        if name in self.plain:
            return Fixed(self.plain[name].astype(np.float64))
        raise NotInteger(f"{name} is computed by nothing that has an integer kernel")

    def fixed(self, name: str) -> Array:
        """The numbers of a constant."""
        value = self.value(name)
        if not isinstance(value, Fixed):
            raise NotInteger("a scale, a shape or an axis that is computed in the step")
        return value.real

    def ints(self, value: Value) -> Ints:
        """Integers of a value that has some."""
        if isinstance(value, Ints):
            return value
        if isinstance(value, Rows):
            return rows.as_ints(self, value)
        if isinstance(value, Fixed):
            scale = value.scale or float(np.abs(value.real).max(initial=0.0)) / LIMITS["int16"][1] or 1.0
            q = np.clip(np.rint(value.real / scale), *LIMITS["int16"]).astype(np.int16)
            return Ints(self.places(q), "int16", scale, 0)
        raise NotInteger(f"a {type(value).__name__.lower()} is used before it is rounded")

    def as_wide(self, value: Value) -> Wide:
        """float32 of a value."""
        if isinstance(value, Wide):
            return value
        if isinstance(value, Fixed):
            return Wide(self.places(value.real.astype(np.float32)))
        found = self.ints(value)
        x = self.operand(found.places, found.shape, found.zero)
        return Wide(self.add(wide.dequantize(x, self.result(found.shape, "float32"), found.scale)))

    def round(self, value: Value, scale: float, out: Out) -> Array:
        """Compute what waits and round it; the elements of the result."""
        if not isinstance(value, (*WAITING, Rows)):
            raise NotInteger(f"a {type(value).__name__.lower()} is rounded in the step")
        made = self.add(ROUNDED[type(value)](self, value, scale, out))
        return np.swapaxes(made, -1, -2) if isinstance(value, Product) and value.turned else made
