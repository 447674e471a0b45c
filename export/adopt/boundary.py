"""The contract's shapes around a foreign graph: names, axes, and inputs that see their own past again.

    foreign                               contract
    input x, axes TBF [time, batch, f]    x [batch, time, f], transposed on the way in
    input x, axes BF [batch, f]           x [batch, 1, f]
    state h -> hn, [layers, batch, f]     h_in, h_out [batch, layers, f]
    input x, axes BF, with a tail of n    x [batch, 1, f - n], x_tail_in [batch, 1, n]: joined on the way in
    output                                as an input, the other way

Only where an axis of more than one element moves is there a Transpose; else the same bytes get another shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.export.adopt.build import Builder, replace, sizes
from edgemem.foreign import PORT, STATE, TAIL, Adoption, Named, order, tail_axis
from edgemem.text import counted


def contract_shape(shape: Sequence[int], axes: str, first: str) -> tuple[int, ...]:
    """The shape that the contract has for a foreign tensor."""
    found = [shape[index] for index in order(axes, first)]
    for index, letter in enumerate(first):
        if letter not in axes:
            found.insert(index, 1)
    return tuple(found)


def identifier(name: str, taken: set[str]) -> str:
    """A foreign name as one of letters, digits and underscores that is still free."""
    plain = re.sub(r"\W+", "_", re.sub(r":\d+$", "", name), flags=re.ASCII).strip("_") or "tensor"
    plain = f"t{plain}" if plain[0].isdigit() else plain
    free, count = plain, 2
    while free in taken:
        free, count = f"{plain}_{count}", count + 1
    taken.add(free)
    return free


def state_name(pair: tuple[str, str], taken: set[str]) -> str:
    """What a state is called: its input's name without the word that says that it comes in."""
    plain = re.sub(r"(^(in|input|past|prev|previous|initial|cached)[_.])|([_.](in|input|prev)$)", "", pair[0])
    return identifier(plain or pair[0], taken)


def rearranged(
    build: Builder, x: ir.Value, moves: Sequence[int], middle: Sequence[int], shape: Sequence[int]
) -> ir.Value:
    """x transposed by `moves` to sizes `middle`, and reshaped to `shape`."""
    long = [index for index in moves if sizes(x)[index] > 1]
    if long != sorted(long):
        x = build.op("Transpose", x, perm=list(moves))
        x.shape = ir.Shape(middle)
    return x if tuple(sizes(x)) == tuple(shape) else build.reshape(x, shape)


class Boundary:
    """Puts the contract's inputs and outputs in the place of a graph's own."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        first = next(iter(graph), None)
        self.before, self.after = Builder(graph, first, "adopted"), Builder(graph, None, "adopted")

    def entrance(
        self, foreign: ir.Value, name: str, axes: str, first: str, tail: int = 0, group: int = 1
    ) -> ir.Value | None:
        """A new input under the contract's name and shape in the place of a foreign one; the tail's next value."""
        build, shape = self.before, contract_shape(sizes(foreign), axes, first)
        taken = list(shape)
        axis = tail_axis(axes)
        taken[axis] -= tail
        port = ir.Value(name=name, shape=ir.Shape(taken), type=ir.TensorType(foreign.dtype))  # type: ignore[arg-type]
        inside, after = port, None
        if group > 1:  # `group` rows of the foreign input are one frame
            port.shape = ir.Shape([shape[0], shape[1] // group, group, *shape[2:]])
            inside = build.reshape(port, shape)
        if tail:
            seen = ir.Shape([tail if i == axis % len(shape) else n for i, n in enumerate(shape)])
            past = ir.Value(name=f"{name}{TAIL}_in", shape=seen, type=port.type)
            self.graph.inputs.append(past)
            inside = build.op("Concat", past, port, axis=axis % len(shape))
            inside.shape = ir.Shape(shape)
            after = build.slice(inside, axis % len(shape), shape[axis] - tail, shape[axis])
            after.shape = past.shape
        self.graph.inputs.insert(list(self.graph.inputs).index(foreign), port)
        middle = tuple(sizes(foreign))
        back = list(inverse(order(axes, first)))
        squeezed = [shape[i] for i in range(len(shape)) if i >= len(first) or first[i] in axes]
        plain = inside if len(squeezed) == len(shape) else build.reshape(inside, squeezed)
        replace(foreign, rearranged(build, plain, back, middle, middle))
        self.graph.inputs.remove(foreign)
        return after

    def exit(self, value: ir.Value, name: str, axes: str, first: str) -> ir.Value:
        """A graph's result under the contract's name and shape."""
        moves = order(axes, first)
        middle = [sizes(value)[index] for index in moves]
        found = rearranged(self.after, value, moves, middle, contract_shape(sizes(value), axes, first))
        return self.named(found, name)

    def named(self, value: ir.Value, name: str) -> ir.Value:
        """A value under a name of its own: a copy, which is taken out again where nothing needs it."""
        found = self.after.op("Identity", value)
        found.name, found.shape = name, value.shape
        return found


def inverse(moves: Sequence[int]) -> list[int]:
    return sorted(range(len(moves)), key=lambda index: moves[index])


def apply(
    graph: ir.Graph,
    adoption: Adoption,
    inputs: Mapping[str, ir.Value],
    outputs: Mapping[str, ir.Value],
    carried: Sequence[str],
) -> None:
    """Give a frozen graph the contract's inputs and outputs; the foreign ones are given by their names.

    The states that streaming added, `carried`, are in the contract's shape already.
    """
    boundary, results = Boundary(graph), []
    tails = {}
    for port in adoption.inputs:
        rows, group = adoption.tails.get(port.name, 0), adoption.frame_rows if "T" in port.axes else 1
        tail = boundary.entrance(inputs[port.foreign], port.name, port.axes, PORT, rows, group)
        if tail is not None:
            tails[port.name] = tail
    for pair in adoption.states:
        boundary.entrance(inputs[pair.input], f"{pair.name}_in", pair.axes, STATE)
    found = [outputs[port.foreign] for port in adoption.outputs]
    for port, value in zip(adoption.outputs, found, strict=True):
        results.append(boundary.exit(value, port.name, port.axes, PORT))
    for pair in adoption.states:
        results.append(boundary.exit(outputs[pair.output], f"{pair.name}_out", pair.axes, STATE))
    results += [boundary.named(value, f"{name}{TAIL}_out") for name, value in tails.items()]
    results += [boundary.named(outputs[f"{name}_out"], f"{name}_out") for name in carried]
    graph.outputs.clear()
    graph.outputs.extend(results)


def check_frames(adoption: Adoption, inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value]) -> int:
    """Frames of one step, which every input and output has along its time axis.

    Raises:
        UsageError: they differ, or a batch does.
    """
    seen: dict[str, tuple[int, ...]] = {}
    for port in adoption.inputs:
        shape = list(contract_shape(sizes(inputs[port.foreign]), port.axes, PORT))
        shape[tail_axis(port.axes)] -= adoption.tails.get(port.name, 0)
        shape[1] //= adoption.frame_rows
        if min(shape) < 1:
            raise UsageError(
                f"--tail {port.foreign}={adoption.tails[port.name]}: the file takes {sizes(inputs[port.foreign])}, "
                "which leaves no room for new rows; give a longer step by --set or --chunk"
            )
        seen[port.foreign] = tuple(shape[:2])
    seen |= {p.foreign: contract_shape(sizes(outputs[p.foreign]), p.axes, PORT)[:2] for p in adoption.outputs}
    wanted = seen[adoption.inputs[0].foreign]
    for name, found in seen.items():
        if found != wanted:
            raise UsageError(complaint(name, found, adoption.inputs[0], wanted))
    return wanted[1]


def complaint(name: str, found: tuple[int, ...], port: Named, wanted: tuple[int, ...]) -> str:
    came = f"{counted(found[1], 'frame')} in {counted(found[0], 'stream')}"
    return (
        f"{name} has {came} where {port.foreign} has {wanted[1]} in {wanted[0]}; say what their axes are by --layout "
        "NAME=AXES (B batch, T time, F anything else; without T a step is one frame), or leave an output out by --drop "
        "NAME"
    )
