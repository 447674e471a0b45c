"""Where every tensor lies: weights, state and one arena, all fixed at compile time.

    weights   every constant, in the order of first use
    state     each state once, if the step can write it where it reads it; else two places that take turns; a state
              that slides twice, as a ring (`edgemem.runtimes.aot.rings`)
    arena     everything between: tensors that do not live at the same time share bytes

A state is written in place when nothing reads its old value afterwards, or when the kernel that writes it reads only
the element that it writes. Offsets are multiples of the machine's alignment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edgemem.contract import Contract
from edgemem.runtimes.aot.graph import Call, Graph, Tensor
from edgemem.runtimes.aot.load import ALIGNMENT

HEADER_BYTES = 16  # of a state block: which model it belongs to, and whose turn it is
RING_BYTES = 8  # of the header, for each ring: where its window starts

Key = tuple[str, int, int]  # what it is, its tensor's number or its call's, which of the call's
Request = tuple[int, int, int, Key]  # first call, last call, bytes, what for


@dataclass(frozen=True)
class Slot:
    """A span of the weights, of the state block or of the arena."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class RingSlot:
    """The room of a ring, two periods of rows; `number` tells where the header keeps its window's start."""

    number: int
    period: int  # rows
    rows: int  # of the window
    kept: int  # rows that a step adds
    row_bytes: int

    @property
    def nbytes(self) -> int:
        return 2 * self.period * self.row_bytes


@dataclass(frozen=True)
class StateSlot:
    """Where a state lies; `second` is its other place where two take turns, `ring` its room where it slides."""

    name: str
    first: Slot
    second: Slot | None
    ring: RingSlot | None = None


@dataclass(frozen=True)
class Placed:
    """A call with its kernel's variant: `shared` are pairs of parameters (kept, dropped) that are one buffer."""

    call: Call
    shared: tuple[tuple[int, int], ...]
    work: tuple[Slot, ...]


@dataclass(frozen=True)
class Plan:
    """`arena` by tensor number; `weights` by constant number; `written` is the tensor that becomes each state."""

    calls: tuple[Placed, ...]
    weights: Mapping[int, Slot]
    states: Mapping[str, StateSlot]
    written: Mapping[str, Tensor]
    arena: Mapping[int, Slot]
    weight_bytes: int
    state_bytes: int
    arena_bytes: int
    arena_lower_bound_bytes: int
    alignment: int
    requests: tuple[Request, ...]


def aligned(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


def planned(
    graph: Graph,
    contract: Contract,
    elementwise: Callable[[str, int, int], bool],
    work_bytes: Callable[[str, tuple[tuple[int, int], ...]], Sequence[int]],
    alignment: int = ALIGNMENT,
    mark_bytes: int = 0,
) -> Plan:
    """Place everything.

    `elementwise(kernel, read, written)` says whether a kernel may write parameter `written` over parameter `read`;
    `work_bytes` gives the sizes of the scratch buffers of a kernel's variant; the state block's header has `mark_bytes`
    more at its end.
    """
    states = {state.name: graph.inputs[state.input] for state in contract.states}
    direct = directly_written(graph, contract)
    shared, in_place = in_place_states(graph, states, direct, elementwise)
    rings = ring_slots(graph)
    placed_states, state_bytes = state_slots(states, in_place, rings, alignment, mark_bytes)
    calls = [(call, shared.get(index, ())) for index, call in enumerate(graph.calls)]
    works = [tuple(work_bytes(call.kernel, pairs)) for call, pairs in calls]
    elsewhere = {ring.new.number for ring in graph.rings.values()}
    lives = lifetimes(graph, elsewhere | {tensor.number for tensor in direct.values()})
    requests = [(start, end, tensor.nbytes, ("tensor", tensor.number, 0)) for tensor, (start, end) in lives.items()]
    for index, sizes in enumerate(works):
        requests += [(index, index, size, ("work", index, place)) for place, size in enumerate(sizes)]
    arena, arena_bytes = packed(requests, alignment)
    weights, weight_bytes = weight_slots(graph, alignment)
    return Plan(
        calls=tuple(
            Placed(call, pairs, tuple(arena["work", index, place] for place in range(len(works[index]))))
            for index, (call, pairs) in enumerate(calls)
        ),
        weights=weights,
        states=placed_states,
        written={name: graph.results[f"{name}_out"] for name in states},
        arena={number: slot for (kind, number, _), slot in arena.items() if kind == "tensor"},
        weight_bytes=weight_bytes,
        state_bytes=state_bytes,
        arena_bytes=max(arena_bytes, alignment),
        arena_lower_bound_bytes=peak(requests, alignment),
        alignment=alignment,
        requests=tuple(requests),
    )


def directly_written(graph: Graph, contract: Contract) -> dict[str, Tensor]:
    """States whose new value a kernel may write to its place: made by a call, for no other state and no output."""
    results = [result.number for result in graph.results.values()]
    return {
        state.name: graph.results[state.output]
        for state in contract.states
        if graph.results[state.output].source == "call" and results.count(graph.results[state.output].number) == 1
    }


def in_place_states(
    graph: Graph,
    states: Mapping[str, Tensor],
    direct: Mapping[str, Tensor],
    elementwise: Callable[[str, int, int], bool],
) -> tuple[dict[int, tuple[tuple[int, int], ...]], set[str]]:
    """Which states need one place only, and the parameters that this makes one buffer, by call."""
    shared: dict[int, tuple[tuple[int, int], ...]] = {}
    in_place: set[str] = set()
    passed_on = {tensor.number for tensor in graph.results.values()}
    for name, before in states.items():
        readers = [i for i, call in enumerate(graph.calls) if before in call.reads]
        if before.number in passed_on and graph.results[f"{name}_out"] != before:
            continue  # its old value leaves through an output or becomes another state, at the end of the step
        if graph.results[f"{name}_out"] == before or name not in direct:
            in_place.add(name)  # it stays as it is, or is copied over when nothing reads the old value any more
            continue
        writer = next(i for i, call in enumerate(graph.calls) if direct[name] in call.writes)
        last = max(readers, default=-1)
        if last < writer:
            in_place.add(name)
        elif last == writer and before.nbytes == direct[name].nbytes:
            call = graph.calls[writer]
            read, write = call.reads.index(before), len(call.reads) + call.writes.index(direct[name])
            if call.reads.count(before) == 1 and elementwise(call.kernel, read, write):
                shared[writer] = (*shared.get(writer, ()), (read, write))
                in_place.add(name)
    return shared, in_place


def ring_slots(graph: Graph) -> dict[str, RingSlot]:
    """The rings in the order of the graph. A period holds all rows of a step, in whole turns of what a step adds."""
    return {
        name: RingSlot(number, aligned(ring.reach, ring.kept), ring.rows, ring.kept, ring.row_bytes)
        for number, (name, ring) in enumerate(graph.rings.items())
    }


def state_slots(
    states: Mapping[str, Tensor],
    in_place: set[str],
    rings: Mapping[str, RingSlot],
    alignment: int,
    mark_bytes: int = 0,
) -> tuple[dict[str, StateSlot], int]:
    """Offsets in the state block."""
    header = HEADER_BYTES + (RING_BYTES * (1 + len(rings)) if rings else 0) + mark_bytes
    offset = aligned(header, alignment)
    slots = {}
    for name, tensor in states.items():
        if name in rings:
            slots[name] = StateSlot(name, Slot(offset, tensor.nbytes), None, rings[name])
            offset += aligned(rings[name].nbytes, alignment)
            continue
        places = []
        for _ in range(1 if name in in_place else 2):
            places.append(Slot(offset, tensor.nbytes))
            offset += aligned(tensor.nbytes, alignment)
        slots[name] = StateSlot(name, places[0], places[1] if len(places) > 1 else None)
    return slots, offset


def weight_slots(graph: Graph, alignment: int) -> tuple[dict[int, Slot], int]:
    """Offsets in the weights, in the order in which a step reads them."""
    offset, slots = 0, {}
    used = [tensor.number for call in graph.calls for tensor in call.reads if tensor.source == "constant"]
    used += [tensor.number for tensor in graph.results.values() if tensor.source == "constant"]
    for number in dict.fromkeys(used):
        slots[number] = Slot(offset, graph.constants[number].nbytes)
        offset += aligned(slots[number].nbytes, alignment)
    return slots, offset


def lifetimes(graph: Graph, elsewhere: set[int]) -> dict[Tensor, tuple[int, int]]:
    """First and last call of every tensor of the arena; inputs are copied in, outputs copied out at the end."""
    end = len(graph.calls)
    lives: dict[Tensor, tuple[int, int]] = {}
    for name, tensor in graph.inputs.items():
        if not name.endswith("_in"):
            lives[tensor] = (-1, -1)
    for index, call in enumerate(graph.calls):
        for tensor in call.writes:
            if tensor.number not in elsewhere:
                lives[tensor] = (index, index)
        for tensor in call.reads:
            if tensor in lives:
                lives[tensor] = (lives[tensor][0], index)
    for tensor in graph.results.values():
        if tensor in lives:
            lives[tensor] = (lives[tensor][0], end)
    return lives


def packed(requests: Sequence[Request], alignment: int = ALIGNMENT) -> tuple[dict[Key, Slot], int]:
    """Offsets for spans of time and bytes: the largest first, each at the lowest place that is free all its life."""
    placed: list[tuple[int, int, Slot]] = []
    slots: dict[Key, Slot] = {}
    for start, end, nbytes, key in sorted(requests, key=lambda r: (-r[2], r[0], str(r[3]))):
        offset = 0
        for first, last, other in sorted(placed, key=lambda p: p[2].offset):
            if first <= end and start <= last and offset < other.offset + aligned(other.nbytes, alignment):
                if offset + aligned(nbytes, alignment) <= other.offset:
                    break
                offset = other.offset + aligned(other.nbytes, alignment)
        slots[key] = Slot(offset, nbytes)
        placed.append((start, end, slots[key]))
    return slots, max((slot.offset + aligned(slot.nbytes, alignment) for slot in slots.values()), default=0)


def peak(requests: Sequence[Request], alignment: int = ALIGNMENT) -> int:
    """The most bytes that are alive at once: no arena can be smaller."""
    times = {start for start, _, _, _ in requests}
    return max(
        (sum(aligned(size, alignment) for first, last, size, _ in requests if first <= time <= last) for time in times),
        default=0,
    )
