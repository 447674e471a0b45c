"""The C text of a step's kernel calls: what is called, in which order, and where every tensor lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgemem.contract import Contract
from edgemem.runtimes.aot.emit_rings import header_fields, ring_slots, slide_text, window_text
from edgemem.runtimes.aot.emit_tiles import FIELD
from edgemem.runtimes.aot.graph import Graph, Tensor
from edgemem.runtimes.aot.plan import Plan, StateSlot


@dataclass(frozen=True)
class Kernel:
    """A kernel's symbol, the C types of its parameters, into how many shares it can be divided, if it can, and whether
    each of them repeats some work.
    """

    symbol: str
    parameters: tuple[str, ...]
    shares: int | None = None
    repeats: bool = False


@dataclass(frozen=True)
class Source:
    """All that the C text is made of; `symbols` has the kernel of every call of the plan, in order."""

    name: str
    contract: Contract
    graph: Graph
    plan: Plan
    symbols: Sequence[Kernel]
    start_offsets: Mapping[str, int]  # of learned starts, in the weights
    identity: int  # 64 bits that say which model a state belongs to
    weight_bytes: int
    checksum: int
    flush: str | None = None  # the core's name in `emit_flush`, where subnormal numbers are to be zero
    tiles: bool = False  # whether kernels use the core's matrix unit, for which a process needs leave


def upper(name: str) -> str:
    return name.upper()


KEYWORDS = {  # of C99
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern", "float",
    "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed", "sizeof",
    "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while",
}  # fmt: skip


def identifier(name: str) -> str:
    """A tensor's name as a C identifier."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    return f"_{text}" if text[:1].isdigit() or text in KEYWORDS else text


def prefix(name: str) -> str:
    """A model's name as the beginning of the names of C functions: lower case, a letter first."""
    text = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).lower()
    return text if text[:1].isalpha() else f"m{text}"


def preamble(source: Source) -> str:
    """C text that names the kernels and the places of tensors."""
    n, kernels = source.name, {kernel.symbol: kernel for kernel in source.symbols}
    externs = "\n".join(f"extern void {k.symbol}({', '.join(k.parameters)});" for k in kernels.values())
    return f"""\
extern const unsigned char {n}_weights[];
{externs}

#define IDENTITY UINT64_C({source.identity:#018x})
#define W(offset) ((const void *)({n}_weights + (offset)))
#define A(offset) ((void *)(a + (offset)))
#define S(offset) ((void *)(s + (offset)))

typedef struct {{
    uint64_t identity;
    uint64_t turn;
{header_fields(source)}{FIELD if source.tiles else ""}}} header;
{slide_text(source)}"""


def run_text(source: Source) -> str:
    """All kernels in order, then what is copied at the end."""
    before, calls, after = run_parts(source)
    lines = [
        *before,
        *(f"    {k.symbol}({', '.join(arguments + ([] if k.shares is None else ['0', str(k.shares)]))});"
          for k, arguments in calls),
        *after,
    ]  # fmt: skip
    unused = [] if any("S(" in line or "(void *)s" in line for line in lines) else ["    (void)s;"]
    return f"""\
static void run(const {source.name}_outputs *outputs, unsigned char *s, unsigned char *a)
{{
{chr(10).join(lines + unused)}
}}
"""


def run_parts(source: Source) -> tuple[list[str], list[tuple[Kernel, list[str]]], list[str]]:
    """C lines before the kernels, every kernel with the places of its tensors, and C lines after them."""
    turns = [state.name for state in source.contract.states if source.plan.states[state.name].second]
    rings = ring_slots(source)
    before = ["    header *h = (header *)(void *)s;"] if turns or rings else []
    before += ["    const size_t turn = (size_t)(h->turn & 1u);"] if turns else []
    before += [turn_text(index, source.plan.states[name]) for index, name in enumerate(turns)]
    before += window_text(source)
    places, calls = Places(source, turns), []
    for placed, kernel in zip(source.plan.calls, source.symbols, strict=True):
        dropped = {pair[1] for pair in placed.shared}
        tensors = [*placed.call.reads, *placed.call.writes]
        kept = [tensor for index, tensor in enumerate(tensors) if index not in dropped]
        calls.append((kernel, [places.of(tensor) for tensor in kept] + [f"A({slot.offset})" for slot in placed.work]))
    after = [*places.copies(), *(["    h->turn ^= 1u;"] if turns else []), *(["    slide(s, h);"] if rings else [])]
    return before, calls, after


def turn_text(index: int, slot: StateSlot) -> str:
    assert slot.second is not None
    first, second = slot.first.offset, slot.second.offset
    return (
        f"    void *const old{index} = S(turn ? {second} : {first}); /* {slot.name} */\n"
        f"    void *const new{index} = S(turn ? {first} : {second});"
    )


class Places:
    """C expressions for the address of every tensor."""

    def __init__(self, source: Source, turns: Sequence[str]) -> None:
        self.source, self.turns = source, list(turns)
        self.before = {source.graph.inputs[state.input].number: state.name for state in source.contract.states}
        self.after: dict[int, str] = {}
        self.rings: dict[int, str] = {}
        for name, ring in source.graph.rings.items():
            slot = source.plan.states[name].ring
            assert slot is not None
            base = f"ring{slot.number}"
            self.rings[ring.before.number] = self.rings[ring.known.number] = f"(void *){base}"
            self.rings[ring.new.number] = f"(void *)({base} + {slot.rows * slot.row_bytes})"
        for name, tensor in source.plan.written.items():
            if tensor.source == "call" and tensor.number not in source.plan.arena:
                self.after[tensor.number] = name

    def state(self, name: str, which: str) -> str:
        if name in self.turns:
            return f"{which}{self.turns.index(name)}"
        return f"S({self.source.plan.states[name].first.offset})"

    def of(self, tensor: Tensor) -> str:
        plan = self.source.plan
        if tensor.number in self.rings:
            return self.rings[tensor.number]
        if tensor.number in plan.weights:
            return f"W({plan.weights[tensor.number].offset})"
        if tensor.number in self.before:
            return self.state(self.before[tensor.number], "old")
        if tensor.number in self.after:
            return self.state(self.after[tensor.number], "new")
        return f"A({plan.arena[tensor.number].offset})"

    def copies(self) -> list[str]:
        """Outputs to the caller, and states that no kernel could write where they lie."""
        lines = []
        for port in self.source.contract.outputs:
            tensor = self.source.graph.results[port.name]
            lines.append(f"    memcpy(outputs->{identifier(port.name)}, {self.of(tensor)}, {tensor.nbytes});")
        for name, tensor in self.source.plan.written.items():
            if name in self.source.graph.rings:
                continue
            target = self.state(name, "new")
            if self.of(tensor) != target:
                lines.append(f"    memcpy({target}, {self.of(tensor)}, {tensor.nbytes});")
        return lines
