"""ONNX nodes of a `w8a8` file to operations on integer buffers.

    QuantizeLinear(x)        the rounding of whatever waits in x: one operation
    DequantizeLinear(q)      nothing: the integers and what they stand for
    Reshape, Slice, Concat…  nothing, until a kernel needs elements side by side
    MatMul, Add, Mul, Relu…  wait for the next QuantizeLinear

uint8 becomes int8, 128 less. A state that is rounded as it comes in and comes back in the same scale is kept as these
integers. What has no integer kernel is refused by operator, and the file is then compiled with float kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgemem.errors import CompileError
from edgemem.modelfile import ModelFile
from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer import kernels
from edgemem.runtimes.integer.kernels import LIMITS, NORM_BITS, Factor, Operation, Out
from edgemem.runtimes.integer.values import Array, Fixed, Ints, Norm, Product, Terms, Value, Wide, places_of, runs

SUM_BITS = 62  # of the 64 that sums have
FACTOR_BITS = 31
RUNS = 4  # stretches that are copied one by one; more are gathered by a table


class NotInteger(CompileError):
    """An operator without an integer kernel."""


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
    """One walk over the nodes."""

    def __init__(self, model: ModelFile) -> None:
        import onnx
        from onnx import numpy_helper

        self.model = model
        self.graph = onnx.load(model.path).graph
        self.step = Step()
        self.tensors: dict[int, Tensor] = {}
        self.shared: dict[tuple[str, bytes], Tensor] = {}
        self.plain = {i.name: numpy_helper.to_array(i) for i in self.graph.initializer}
        self.values: dict[str, Value] = {}
        self.states = {state.input: state for state in model.contract.states}

    def run(self) -> Step:
        for port in self.model.contract.inputs:
            if port.dtype != "float32":
                raise NotInteger(f"input {port.name} of {port.dtype} has no integer kernel")
            self.values[port.name] = Wide(self.incoming(port.name, port.shape, "float32"))
        for state in self.model.contract.states:
            if state.dtype != "float32" or isinstance(state.start, str):
                raise NotInteger(f"state {state.name} ({state.dtype}, start {state.start}) has no integer form")
            self.begin_state(state)
        for node in self.graph.node:
            rule = getattr(self, f"rule_{node.op_type}", None)
            if rule is None:
                raise NotInteger(f"{node.op_type} has no integer kernel")
            self.values[node.output[0]] = rule(node)
        self.finish()
        return self.step

    def begin_state(self, state: Any) -> None:
        """A state as integers if all that read it round it in one scale, else as float32."""
        readers = [node for node in self.graph.node if state.input in node.input]
        scales = {float(self.plain[node.input[1]]) for node in readers if node.op_type == "QuantizeLinear"}
        if len(scales) == 1 and all(node.op_type == "QuantizeLinear" for node in readers):
            scale = scales.pop()
            self.step.scales[state.name] = scale
            self.values[state.input] = Ints(self.incoming(state.input, state.shape, "int16"), "int16", scale, 0)
        else:
            self.values[state.input] = Wide(self.incoming(state.input, state.shape, "float32"))

    def finish(self) -> None:
        """What leaves the step: outputs as float32, states as they came."""
        for port in self.model.contract.outputs:
            value = self.values[port.name]
            self.step.results[port.name] = self.whole(self.as_wide(value).places, "float32", copied=True)
        for state in self.model.contract.states:
            value = self.values[state.output]
            if state.name in self.step.scales:
                value = self.ints(value)
                if value.dtype != "int16" or not np.isclose(value.scale, self.step.scales[state.name], rtol=1e-6):
                    raise NotInteger(f"state {state.name} comes back in another scale than it had")
                self.step.results[state.output] = self.whole(value.places, "int16", copied=True)
            else:
                self.step.results[state.output] = self.whole(self.as_wide(value).places, "float32", copied=True)

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
        key = (str(array.dtype), array.tobytes())
        if key not in self.shared:
            self.shared[key] = self.new("constant", "", array.shape, str(array.dtype))
            self.step.constants[self.shared[key].number] = array.reshape(-1)
        return self.shared[key]

    def add(self, operation: Operation) -> Array:
        self.step.operations.append(operation)
        return places_of(operation.write.number, operation.write.shape)

    def result(self, shape: Sequence[int], dtype: str) -> Tensor:
        return self.new("call", "", shape, dtype)

    def stretch(self, places: Array) -> tuple[Tensor, int]:
        """The buffer that holds these elements side by side, and where they start."""
        found = runs(places)
        if len(found) == 1:
            return self.tensors[found[0][0]], found[0][1]
        dtype = self.tensors[found[0][0]].dtype
        return self.whole(places, dtype), 0

    def whole(self, places: Array, dtype: str, copied: bool = False) -> Tensor:
        """A buffer of exactly these elements; `copied` where it has to be one that a call has made for this use."""
        found = runs(places)
        buffers = [self.tensors[number] for number, _, _ in found]
        entire = len(found) == 1 and buffers[0].source == "call" and places.size == int(np.prod(buffers[0].shape))
        if entire and not (copied and buffers[0] in self.step.results.values()):
            return buffers[0]
        target = self.result(places.shape, dtype)
        if len(found) <= RUNS or len({b.number for b in buffers}) > 1:
            pieces = [(b, at, count) for b, (_, at, count) in zip(buffers, found, strict=True)]
            self.add(kernels.move(pieces, target))
        else:
            table = self.constant((places.reshape(-1) & 0xFFFFFFFF).astype(np.int32))
            self.add(kernels.gather(buffers[0], table, target))
        return target

    # --- values ------------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Value:
        if name in self.values:
            return self.values[name]
        if name in self.plain:
            return Fixed(self.plain[name].astype(np.float64))
        raise NotInteger(f"{name} is computed by nothing that has an integer kernel")

    def ints(self, value: Value) -> Ints:
        """Integers of a value that has some."""
        if isinstance(value, Ints):
            return value
        if isinstance(value, Fixed):
            scale = value.scale or float(np.abs(value.real).max(initial=0.0)) / LIMITS["int16"][1] or 1.0
            q = np.clip(np.rint(value.real / scale), *LIMITS["int16"]).astype(np.int16)
            return Ints(places_of(self.constant(q).number, q.shape), "int16", scale, 0)
        raise NotInteger(f"a {type(value).__name__.lower()} is used before it is rounded")

    def as_wide(self, value: Value) -> Wide:
        """float32 of a value."""
        if isinstance(value, Wide):
            return value
        if isinstance(value, Fixed):
            array = value.real.astype(np.float32)
            return Wide(places_of(self.constant(array).number, array.shape))
        found = self.ints(value)
        tensor, at = self.stretch(found.places)
        target = self.result(found.shape, "float32")
        return Wide(self.add(kernels.dequantize(tensor, at, target, found.scale, found.zero)))

    def factor(self, places: Array, shape: tuple[int, ...], zero: int = 0) -> Factor:
        """An operand of an elementwise kernel whose result has `shape`: all of it, or a part that repeats."""
        count = int(np.prod(shape))
        trimmed = places.reshape([1] * (len(shape) - places.ndim) + list(places.shape))
        lead = 0
        while lead < len(shape) and trimmed.shape[lead] == 1:
            lead += 1
        repeats = places.size == 1 or trimmed.shape[lead:] == shape[lead:]
        if not repeats:
            trimmed = np.broadcast_to(trimmed, shape)
        tensor, at = self.stretch(np.ascontiguousarray(trimmed))
        return Factor(tensor, at, count if not repeats else places.size, zero)

    # --- rounding ----------------------------------------------------------------------------------------------------

    def rule_QuantizeLinear(self, node: Any) -> Value:
        value, scale, zero, dtype = self.value(node.input[0]), *self.quantizer(node)
        if isinstance(value, Ints) and (value.scale, value.zero, value.dtype) == (scale, zero, dtype):
            return value
        if isinstance(value, Ints):
            value = Terms(value.shape, ((value.scale, (value,)),))
        low, high = LIMITS[dtype]
        relu = not isinstance(value, (Wide, Fixed)) and value.relu
        out = Out(dtype, zero, max(low, zero) if relu else low, high)
        if isinstance(value, Wide):
            tensor, at = self.stretch(value.places)
            made = self.add(kernels.quantize(tensor, at, self.result(value.shape, dtype), scale, out))
        elif isinstance(value, Terms):
            made = self.rounded_terms(value, scale, out)
        elif isinstance(value, Product):
            made = self.rounded_product(value, scale, out)
        elif isinstance(value, Norm):
            made = self.rounded_norm(value, scale, out)
        else:
            raise NotInteger("a constant is rounded in the step")
        return Ints(made.reshape(value.shape), dtype, scale, zero)

    def quantizer(self, node: Any) -> tuple[float, int, str]:
        """Scale, zero and type of a QuantizeLinear or DequantizeLinear of one scale; uint8 as int8."""
        scale, zero = self.plain.get(node.input[1]), np.zeros((), np.int16)
        if len(node.input) > 2:
            zero = self.plain[node.input[2]]
        if scale is None or scale.size != 1 or zero.size != 1:
            raise NotInteger(f"{node.op_type} with scales by channel, of what is no constant,")
        kind = str(zero.dtype)
        if kind == "uint8":
            return float(scale), int(zero) - 128, "int8"
        if kind not in LIMITS:
            raise NotInteger(f"{node.op_type} to {kind}")
        return float(scale), int(zero), kind

    def rule_DequantizeLinear(self, node: Any) -> Value:
        if node.input[0] in self.plain:
            return self.stored(node)
        value = self.ints(self.value(node.input[0]))
        scale, zero, dtype = self.quantizer(node)
        return replace(value, scale=scale, zero=zero, dtype=dtype)

    def stored(self, node: Any) -> Fixed:
        """A constant that is stored as integers, with one scale or one along an axis."""
        q, scales = self.plain[node.input[0]].astype(np.float64), self.fixed(node.input[1])
        zeros = self.plain[node.input[2]].astype(np.float64) if len(node.input) > 2 else np.zeros(())
        if scales.size == 1:
            return Fixed((q - zeros) * scales.reshape(()), float(scales))
        shape = [1] * q.ndim
        shape[attribute(node, "axis", 1)] = -1
        return Fixed((q - zeros.reshape(-1 if zeros.size == 1 else shape)) * scales.reshape(shape))

    def fixed(self, name: str) -> Array:
        value = self.value(name)
        if not isinstance(value, Fixed):
            raise NotInteger("a scale that is computed in the step")
        return value.real

    def rounded_terms(self, value: Terms, scale: float, out: Out) -> Array:
        target = self.result(value.shape, out.dtype)
        bits = SUM_BITS - 16 * max(len(group) for _, group in value.terms) - len(value.terms)
        weights, shift = whole_numbers(np.array([factor / scale for factor, _ in value.terms]), bits)
        groups = [[self.factor(f.places, value.shape, f.zero) for f in group] for _, group in value.terms]
        terms = [(int(w), group) for w, group in zip(weights, groups, strict=True)]
        return self.add(kernels.sum_of_terms(terms, target, 0, int(np.prod(value.shape)), shift, out))

    def rounded_product(self, value: Product, scale: float, out: Out) -> Array:
        depth = value.w.shape[0]
        target = self.result(value.shape, out.dtype)
        tensor, at = self.stretch(value.x.places)
        units = value.x.scale * value.scales
        if value.x.dtype == "int8":
            q = np.rint(value.w / value.scales).astype(np.int64)
            bias = np.rint(value.bias / units) - value.x.zero * q.sum(axis=0)
            weights, shift = whole_numbers(units / scale, FACTOR_BITS)
            rows = self.constant(q.T.astype(np.int8))
            parts = (self.constant(bias.astype(np.int32)), self.constant(weights.astype(np.int32)))
            return self.add(kernels.product8(tensor, at, rows, *parts, target, depth, shift, out))
        if np.any(value.bias) or value.x.zero:
            raise NotInteger("MatMul of int16 with a bias")
        q = np.rint(value.w / value.scales).astype(np.int16)
        weights, shift = whole_numbers(units / scale, min(28, SUM_BITS - 30 - depth.bit_length()))
        parts = (self.constant(q.T), self.constant(weights.astype(np.int32)))
        return self.add(kernels.product16(tensor, at, *parts, target, depth, shift, out))

    def rounded_norm(self, value: Norm, scale: float, out: Out) -> Array:
        tensor, at = self.stretch(value.x.places)
        count = value.x.shape[-1]
        epsilon = max(1, round(value.epsilon / value.x.scale**2 * count**2))
        both, shift = whole_numbers(np.stack([value.gain, value.bias]) / scale, FACTOR_BITS - 2)
        gain, bias = (self.constant(part.astype(np.int32)) for part in both)
        target = self.result(value.shape, out.dtype)
        return self.add(kernels.layer_norm(tensor, at, gain, bias, target, epsilon, shift, out))

    # --- arithmetic --------------------------------------------------------------------------------------------------

    def rule_MatMul(self, node: Any) -> Value:
        left, right = self.value(node.input[0]), self.value(node.input[1])
        if left.shape[-1] == 1:
            return self.times(left, right)
        if not isinstance(left, Ints) or not isinstance(right, Fixed) or right.real.ndim != 2:
            raise NotInteger("MatMul of two activations")
        scales = self.column_scales(node, right)
        shape = (*left.shape[:-1], right.shape[1])
        return Product(shape, left, right.real, scales, np.zeros(right.shape[1]))

    def column_scales(self, node: Any, right: Fixed) -> Array:
        """The scales in which the columns of a weight were stored."""
        made = next((n for n in self.graph.node if n.output[0] == node.input[1]), None)
        if made is None or made.op_type != "DequantizeLinear":
            raise NotInteger("MatMul with a float weight")
        return np.broadcast_to(self.fixed(made.input[1]).reshape(-1), (right.shape[1],))

    def rule_Add(self, node: Any) -> Value:
        return self.plus(self.value(node.input[0]), self.value(node.input[1]), 1.0)

    def rule_Sub(self, node: Any) -> Value:
        return self.plus(self.value(node.input[0]), self.value(node.input[1]), -1.0)

    def plus(self, left: Value, right: Value, sign: float) -> Value:
        if isinstance(right, Product) and sign > 0:
            left, right = right, left
        if isinstance(left, Product) and isinstance(right, Fixed) and not left.relu:
            return replace(left, bias=left.bias + sign * np.broadcast_to(right.real, left.bias.shape))
        if isinstance(left, Wide) or isinstance(right, Wide):
            return self.wide("+" if sign > 0 else "-", left, right)
        terms = [*self.terms(left), *((sign * factor, group) for factor, group in self.terms(right))]
        return Terms(np.broadcast_shapes(left.shape, right.shape), tuple(terms))

    def terms(self, value: Value) -> tuple[tuple[float, tuple[Ints, ...]], ...]:
        if isinstance(value, Terms) and not value.relu:
            return value.terms
        found = self.ints(value)
        return ((found.scale, (found,)),)

    def rule_Mul(self, node: Any) -> Value:
        return self.times(self.value(node.input[0]), self.value(node.input[1]))

    def times(self, left: Value, right: Value) -> Value:
        if isinstance(left, Wide) or isinstance(right, Wide):
            return self.wide("*", left, right)
        a, b = self.ints(left), self.ints(right)
        return Terms(np.broadcast_shapes(a.shape, b.shape), ((a.scale * b.scale, (a, b)),))

    def rule_Div(self, node: Any) -> Value:
        left, right = self.value(node.input[0]), self.value(node.input[1])
        if isinstance(left, Wide) or isinstance(right, Wide):
            return self.wide("/", left, right)
        raise NotInteger("Div")

    def wide(self, sign: str, left: Value, right: Value) -> Value:
        a, b = self.as_wide(left), self.as_wide(right)
        shape = np.broadcast_shapes(a.shape, b.shape)
        factors = (self.factor(a.places, shape), self.factor(b.places, shape))
        return Wide(self.add(kernels.wide(sign, *factors, self.result(shape, "float32"))))

    def rule_Relu(self, node: Any) -> Value:
        value = self.value(node.input[0])
        if isinstance(value, Ints):
            return Terms(value.shape, ((value.scale, (value,)),), relu=True)
        if isinstance(value, (Terms, Product, Norm)):
            return replace(value, relu=True)
        raise NotInteger("Relu of a float")

    def rule_LayerNormalization(self, node: Any) -> Value:
        x = self.ints(self.value(node.input[0]))
        if attribute(node, "axis", -1) not in (-1, len(x.shape) - 1) or x.dtype != "int16":
            raise NotInteger("LayerNormalization over other axes than the last")
        gain = self.fixed(node.input[1])
        bias = self.fixed(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros_like(gain)
        return Norm(x, gain, bias, float(attribute(node, "epsilon", 1e-5)))

    # --- moving ------------------------------------------------------------------------------------------------------

    def rule_Cast(self, node: Any) -> Value:
        return Fixed(self.fixed(node.input[0]))

    def rule_Reshape(self, node: Any) -> Value:
        wanted = [int(extent) for extent in self.fixed(node.input[1])]
        return self.moving(node, lambda a: a.reshape([a.shape[i] if e == 0 else e for i, e in enumerate(wanted)]))

    def rule_Transpose(self, node: Any) -> Value:
        return self.moving(node, lambda a: a.transpose(attribute(node, "perm", None)))

    def rule_Unsqueeze(self, node: Any) -> Value:
        axes = tuple(int(axis) for axis in self.fixed(node.input[1]).reshape(-1))
        return self.moving(node, lambda a: np.expand_dims(a, axes))

    def rule_Squeeze(self, node: Any) -> Value:
        axes = tuple(int(axis) for axis in self.fixed(node.input[1]).reshape(-1)) if len(node.input) > 1 else None
        return self.moving(node, lambda a: np.squeeze(a, axes))

    def rule_Gather(self, node: Any) -> Value:
        indices = self.fixed(node.input[1]).astype(np.int64)
        return self.moving(node, lambda a: np.take(a, indices, axis=attribute(node, "axis", 0)))

    def rule_Slice(self, node: Any) -> Value:
        starts, ends, axes, steps = ([int(v) for v in self.fixed(n).reshape(-1)] for n in node.input[1:5])

        def cut(a: Array) -> Array:
            where = [slice(None)] * a.ndim
            for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
                where[axis] = slice(start, end, step)
            return a[tuple(where)]

        return self.moving(node, cut)

    def moving(self, node: Any, change: Any) -> Value:
        value = self.value(node.input[0])
        if isinstance(value, Ints | Wide):
            return value.moved(change(value.places))
        if isinstance(value, Fixed):
            return value.moved(change(value.real))
        raise NotInteger(f"{node.op_type} of what is not rounded yet")

    def rule_Concat(self, node: Any) -> Value:
        values, axis = [self.value(name) for name in node.input], attribute(node, "axis", 0)
        if all(isinstance(value, Fixed) for value in values):
            return Fixed(np.concatenate([value.real for value in values if isinstance(value, Fixed)], axis))
        if any(isinstance(value, Wide) for value in values):
            return Wide(np.concatenate([self.as_wide(value).places for value in values], axis))
        found = [self.ints(value) for value in values]
        first = next(f for f, v in zip(found, values, strict=True) if isinstance(v, Ints))
        if any((f.dtype, f.zero) != (first.dtype, first.zero) or not np.isclose(f.scale, first.scale) for f in found):
            raise NotInteger("Concat of different scales")
        return first.moved(np.concatenate([f.places for f in found], axis))


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of an attribute."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def whole_numbers(factors: Array, bits: int) -> tuple[Array, int]:
    """Whole numbers w and a shift with factors = w * 2^-shift as nearly as `bits` bits (sign included) allow."""
    largest = float(np.abs(factors).max(initial=0.0))
    if largest == 0.0:
        return np.zeros(factors.shape, np.int64), 1
    bits = min(bits, FACTOR_BITS)
    shift = bits - 1 - int(np.ceil(np.log2(largest * (1 + 2.0**-bits))))
    if not 1 <= shift <= SUM_BITS:
        raise NotInteger(f"a factor of {largest:g} between two scales")
    return np.rint(factors * 2.0**shift).astype(np.int64), shift


assert NORM_BITS == 16  # of edgemem_integer.c too
