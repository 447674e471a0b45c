"""Which outputs of a foreign graph are next step's inputs, and how sure that is.

    sure      the user said so; a recurrent operator reads the input as its initial state and writes the output as its
              last; or the names say so by one of the rules below, and dtype and shape agree
    likely    the only output of the input's dtype and shape is the only such input's, and depends on it
    unclear   several would do: nothing is decided, the user is asked

A name is compared in lower case, without `:0`, and a rule turns an input's name into the output's:

    x -> x_out, xN, x_new, x_next      hN -> hN_out      h0 -> hn      h_in -> h_out      prev_x -> next_x, x
    cached_x -> new_cached_x           past_x -> present_x             past_key_values.0.key -> present.0.key
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from edgemem.errors import UsageError
from edgemem.export.adopt.build import sizes
from edgemem.text import nearest

RULES: tuple[tuple[str, str], ...] = (
    (r"(.*)_in$", r"\1_out"),
    (r"(.*)\.in$", r"\1.out"),
    (r"^in_(.*)", r"out_\1"),
    (r"^input_(.*)", r"output_\1"),
    (r"(.*)_input$", r"\1_output"),
    (r"^past_key_values(.*)", r"present\1"),
    (r"^past_key_values(.*)", r"present_key_values\1"),
    (r"^past_(.*)", r"present_\1"),
    (r"^past\.(.*)", r"present.\1"),
    (r"^past_(.*)", r"\1"),
    (r"^cached_(.*)", r"new_cached_\1"),
    (r"^cache_(.*)", r"new_cache_\1"),
    (r"^(prev|previous|last|old)_(.*)", r"next_\2"),
    (r"^(prev|previous|last|old)_(.*)", r"new_\2"),
    (r"^(prev|previous|last|old)_(.*)", r"current_\2"),
    (r"^(prev|previous|last|old)_(.*)", r"\2"),
    (r"(.*)_(prev|previous|old)$", r"\1_next"),
    (r"(.*)_(prev|previous|old)$", r"\1_new"),
    (r"(.*)_(prev|previous|old)$", r"\1"),
    (r"^initial_(.*)", r"final_\1"),
    (r"^init_(.*)", r"final_\1"),
    (r"(.*)_t-1$", r"\1_t"),
    (r"(.*?)_?0$", r"\1n"),
    (r"(.*?)_?0$", r"\1_n"),
    (r"(.*)", r"\1_out"),
    (r"(.*)", r"\1.out"),
    (r"(.*)", r"\1n"),
    (r"(.*)", r"\1_n"),
    (r"(.*)", r"\1_new"),
    (r"(.*)", r"\1_next"),
    (r"(.*)", r"\1_output"),
    (r"(.*)", r"\1_updated"),
    (r"(.*)", r"new_\1"),
    (r"(.*)", r"next_\1"),
    (r"(.*)", r"out_\1"),
    (r"(.*)", r"output_\1"),
    (r"(.*)", r"updated_\1"),
    (r"(.*)", r"present_\1"),
)
SHAPE_ONLY = frozenset({"Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast", "Flatten"})
REMEMBERED = r"past|cache|state|hidden|memory|^[hc]_?\d*(_in)?$"  # names that only states have
EARLIER = (
    r"[_.](in|prev|previous|old|t-1)$|^(prev|previous|old|last|init|initial)[_.]"  # that many inputs of states have
)
SHOWN = 32  # states that an example may have
TAKING = SHAPE_ONLY | {"Slice", "Split", "Gather"}  # a layer's part of a state that is stored with others'
RECURRENT = {"LSTM": ((5, 1), (6, 2)), "GRU": ((5, 1),), "RNN": ((5, 1),)}  # initial state's input, last state's output


@dataclass(frozen=True)
class Found:
    """A state: input and output by name, and why."""

    input: str
    output: str
    certainty: str
    reason: str


def pairs(
    inputs: Mapping[str, ir.Value],
    outputs: Mapping[str, ir.Value],
    said: Mapping[str, str],
    data: Sequence[str] = (),
) -> list[Found]:
    """The states of a frozen graph, in the order of its inputs; these and its results by their foreign names.

    `said` maps inputs to outputs as the user has it, to '' where an input is no state. Inputs in `data` are none.

    Raises:
        UsageError: what the user said does not fit, or several pairs would do.
    """
    check_said(inputs, outputs, said)
    found = {i: Found(i, o, "sure", "--state") for i, o in said.items() if o}
    open_inputs = {n: v for n, v in inputs.items() if n not in said and n not in data}
    taken = {f.output for f in found.values()}
    for source in (by_operator, by_name):
        left = {n: v for n, v in outputs.items() if n not in taken}
        for pair in source({n: v for n, v in open_inputs.items() if n not in found}, left):
            if pair.input not in found and pair.output not in taken:
                found[pair.input] = pair
                taken.add(pair.output)
    rest = {n: v for n, v in open_inputs.items() if n not in found}
    left = {n: v for n, v in outputs.items() if n not in taken}
    for pair in by_shape(rest, left, len(inputs) - len(found)):
        found[pair.input] = pair
    return [found[name] for name in inputs if name in found]


def check_said(inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value], said: Mapping[str, str]) -> None:
    """Refuse `--state` with unknown names, one output for two states, or tensors that do not fit each other."""
    for name, output in said.items():
        if name not in inputs:
            raise UsageError(
                f"--state {name}={output}: there is no input {name}{nearest(name, inputs)}; "
                f"there are {', '.join(inputs)}"
            )
        if not output:
            continue
        if output not in outputs:
            raise UsageError(
                f"--state {name}={output}: there is no output {output}{nearest(output, outputs)}; "
                f"there are {', '.join(outputs)}"
            )
        if not agree(inputs[name], outputs[output]):
            raise UsageError(
                f"--state {name}={output}: a state keeps dtype and shape, but {name} is {described(inputs[name])} and "
                f"{output} is {described(outputs[output])}; a cache that grows cannot be a state of fixed size"
            )
    taken = [output for output in said.values() if output]
    for output in taken:
        if taken.count(output) > 1:
            raise UsageError(f"--state: output {output} is given to two inputs; each state has an output of its own")


def agree(x: ir.Value, y: ir.Value) -> bool:
    """Same dtype and shape."""
    return x.dtype == y.dtype and sizes(x) == sizes(y)


def described(value: ir.Value) -> str:
    """dtype and shape of a value, in words."""
    assert value.dtype is not None
    return f"{value.dtype.name.lower()}{list(sizes(value))}"


def remembered(inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value]) -> set[str]:
    """Inputs that are states whatever their sizes: a recurrent operator starts from one, or its name and one of
    `outputs` say so."""
    plain = {simple(name) for name in outputs}
    starts = {(kind, start) for kind, ends in RECURRENT.items() for start, _ in ends}
    by_reader = {n for n, v in inputs.items() if any((node.op_type, i) in starts for node, i in reached(v))}
    fits = [(n, re.fullmatch(rule, simple(n)), wanted) for n in inputs if is_remembered(n) for rule, wanted in RULES]
    return by_reader | {n for n, match, wanted in fits if match and match.expand(wanted) in plain}


def is_remembered(name: str) -> bool:
    """Whether a name is one that states have."""
    return re.search(f"{REMEMBERED}|{EARLIER}", simple(name)) is not None


# --- where a pair can be seen ------------------------------------------------------------------------------------


def by_operator(inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value]) -> Iterator[Found]:
    """Pairs of which a recurrent operator reads the one as its start and writes the other as its end."""
    names = {value: name for name, value in outputs.items()}
    for name, value in inputs.items():
        for node, index in reached(value):
            for start, last in RECURRENT.get(node.op_type, ()):
                if index != start or last >= len(node.outputs):
                    continue
                for end in [v for v in downstream(node.outputs[last]) if v in names]:
                    if agree(value, end):
                        yield Found(
                            name, names[end], "sure", f"{node.op_type} starts from the one and ends in the other"
                        )


def reached(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The nodes that read a value, or some of its elements in another shape."""
    for part in onwards(value, lambda node, index: node.op_type in TAKING and index == 0):
        yield from part.uses()


def downstream(value: ir.Value) -> Iterator[ir.Value]:
    """A value, and the same elements in other shapes, beside others too."""
    return onwards(value, lambda node, index: node.op_type == "Concat" or (node.op_type in SHAPE_ONLY and index == 0))


def onwards(value: ir.Value, passes: Callable[[ir.Node, int], bool]) -> Iterator[ir.Value]:
    """A value, and the results of all nodes that `passes` lets through from one of these by an input; each once."""
    seen, waiting = {value}, deque([value])
    while waiting:
        here = waiting.popleft()
        yield here
        for node, index in here.uses():
            fresh = [result for result in node.outputs if result not in seen] if passes(node, index) else []
            seen.update(fresh)
            waiting.extend(fresh)


def by_name(inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value]) -> Iterator[Found]:
    """Pairs whose names fit a rule, and whose dtype and shape agree."""
    plain = {simple(name): name for name in outputs}
    for pattern, wanted in RULES:
        for name, value in inputs.items():
            match = re.fullmatch(pattern, simple(name))
            output = plain.get(match.expand(wanted)) if match else None
            if output is None:
                continue
            if agree(value, outputs[output]):
                yield Found(name, output, "sure", "their names")
            elif re.search(REMEMBERED, simple(name)):
                raise UsageError(
                    f"state {name} -> {output}: a state keeps dtype and shape, but the input is {described(value)} and "
                    f"the output {described(outputs[output])}; export the model with a cache of fixed size, or say "
                    f"--state {name}= if it is no state"
                )


def simple(name: str) -> str:
    """A name as it is compared."""
    return re.sub(r":\d+$", "", name).lower()


def by_shape(inputs: Mapping[str, ir.Value], outputs: Mapping[str, ir.Value], data: int) -> Iterator[Found]:
    """Pairs that nothing else would fit; `data` counts the inputs that are no states so far: one must stay so.

    Raises:
        UsageError: several would do.
    """
    fits: dict[str, list[str]] = {name: [] for name in inputs}
    for output, value in outputs.items() if len(outputs) > 1 and data > 1 else ():
        behind = ancestors(value)  # of one output at a time: a file may have thousands of both
        for name, read in inputs.items():
            if agree(read, value) and read in behind:
                fits[name].append(output)
    candidates = {name: found for name, found in fits.items() if found}
    if not candidates:
        return  # the only output is what the model is for, the only input what it is given
    for name, found in candidates.items():
        rivals = [other for other, theirs in candidates.items() if set(theirs) & set(found)]
        if len(found) == 1 and len(rivals) == 1:
            yield Found(name, found[0], "likely", "nothing else has its dtype and shape")
        else:
            answer = example(candidates, name, len(candidates) == data, len(outputs))
            raise UsageError(ambiguous(name, inputs[name], found, rivals, answer))


def ambiguous(name: str, value: ir.Value, outputs: Sequence[str], rivals: Sequence[str], answer: str) -> str:
    """The question that only the user can answer; `answer` is an example, or nothing."""
    others = f" as {', '.join(r for r in rivals if r != name)} could" if len(rivals) > 1 else ""
    return (
        f"input {name} {described(value)} could be a state with the output {' or '.join(outputs)}{others}, and nothing "
        f"tells which; say --state of each{f', for example {answer}' if answer else ''}; IN=OUT where OUT is the next "
        "step's IN, IN= where the input is no state"
    )


def example(candidates: Mapping[str, Sequence[str]], asked: str, alone: bool, outputs: int) -> str:
    """Options that would answer for all candidates at once, '' if none do: a state each, with an output of its own.

    `alone`: the candidates are all inputs, so one must be data: `asked`, unless it is called like a state and another
    is not. One of the `outputs` stays a result. Where several would do, the last outputs go to the last states.
    """
    plain = [name for name in candidates if not is_remembered(name)]
    data = asked if asked in plain or not plain else plain[0]
    states = [name for name in candidates if not (alone and name == data)]
    owner: dict[str, str] = {}  # state by output

    def place(state: str, tried: set[str]) -> bool:
        """Give a state an output, moving others on where it must."""
        free = [o for o in reversed(candidates[state]) if o not in owner]
        for output in [*free, *(o for o in reversed(candidates[state]) if o in owner)]:
            if output not in tried:
                tried.add(output)
                if output not in owner or place(owner[output], tried):
                    owner[output] = state
                    return True
        return False

    if len(states) > SHOWN or len(states) >= outputs or not all(place(state, set()) for state in reversed(states)):
        return ""
    chosen = {state: output for output, state in owner.items()}
    return " ".join(f"--state {name}={chosen.get(name, '')}" for name in candidates)


def ancestors(result: ir.Value) -> set[ir.Value]:
    """A result, and everything that it is computed from."""
    seen, waiting = {result}, [result]
    while waiting:
        node = waiting.pop().producer()
        fresh = {v for v in (node.inputs if node is not None else ()) if v is not None} - seen
        seen |= fresh
        waiting.extend(fresh)
    return seen
