"""What cannot become a step graph, found before anything is written, and named by operator and module path."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn

from edgemem import module as streaming
from edgemem.errors import ExportError
from edgemem.export.graph import Flat, Signature, first_cause, module_path, quiet
from edgemem.module import Frames, State, each, extent
from edgemem.state import StateTensor
from edgemem.text import counted

# Prefixes of torch operators that a static graph of real numbers cannot hold, and what to write instead.
REMEDIES = {
    "fft_": "write the step in the time domain, and keep the FFT in `forward`",
    "view_as_complex": "carry real and imaginary parts as two tensors",
    "complex": "carry real and imaginary parts as two tensors",
    "polar": "carry real and imaginary parts as two tensors",
    "rand": "pass the random numbers in as an input",
    "bernoulli": "pass the random numbers in as an input",
    "multinomial": "return the logits and sample outside the model",
    "nonzero": "use torch.where with a mask of fixed shape",
    "masked_select": "use torch.where with a mask of fixed shape",
    "native_dropout": "take dropout out of the step",
    "unique": "use a mask of fixed shape",
    "while_loop": "unroll the loop over a fixed number of turns",
    "scan": "unroll the loop over a fixed number of turns",
    "cond": "compute both branches and choose by torch.where",
    "bincount": "use a one-hot matrix product of fixed shape",
}
OWN = frozenset(vars(nn.Module()))  # attributes that every module has
CAUSAL_TOLERANCE = 1e-4  # of the largest output: products of another shape round differently, leaks are far larger


def check_declared(module: nn.Module, states: Mapping[str, StateTensor]) -> None:
    """See whether a module has what every streaming module has.

    Raises:
        ExportError: it has no step, declares no state, or one that starts from no number.
    """
    if not hasattr(module, "step") and not hasattr(module, "chunk"):
        raise ExportError(
            f"{type(module).__name__} has no step(x, state); write one that returns the output and the new state"
        )
    if not states:
        raise ExportError(
            f"{type(module).__name__} declares no state{attribute_hint(module)}; give it "
            "state = (StateTensor(name, shape), ...) and take and return the values in step"
        )
    for name, state in states.items():
        start = streaming.start_value(module, name, state)
        if not bool(torch.isfinite(start).all()):
            odd = start[~torch.isfinite(start)][0].item()
            raise ExportError(
                f"state {name} starts from {odd}, and a start value is finite; take a number that is beyond all "
                "others, for example -1e30 in the place of -infinity"
            )


def check_module(module: nn.Module, signature: Signature, x: Frames, valid: Tensor | None) -> None:
    """Run one step as it is and see whether it keeps the rules of a streaming module.

    Raises:
        ExportError: a step that fails, a state kept in an attribute, states or outputs that differ from what is
            declared.
    """
    state = streaming.start_state(module, extent(x)[0])
    before = contents(module)
    y, after = first_chunk(module, x, state, valid)
    check_attributes(module, before)
    check_states(signature, state, after)
    check_outputs(signature, y, x)


def first_chunk(module: nn.Module, x: Frames, state: State, valid: Tensor | None) -> tuple[Any, State]:
    """Outputs and states after one chunk, by the user's own code.

    Raises:
        ExportError: it fails, returns something else, or writes into what it was given.
    """
    given = {f"state {key}": u for key, u in state.items()}
    given |= {f"input {key}": u for key, u in (x if isinstance(x, dict) else {"x": x}).items()}
    before = {key: contents_of(u) for key, u in given.items()}
    found = called(module, x, state, valid)
    written = next((key for key, u in given.items() if contents_of(u) != before[key]), None)
    if written is not None:
        raise ExportError(
            f"{written} is modified in place by {type(module).__name__} (by mul_, add_, copy_ or an assignment to a "
            "part of it); do not modify states or inputs: compute a new tensor and return that"
        )
    return found


def contents_of(u: Tensor) -> tuple[int, bytes]:
    """What changes when something is written into a tensor, be it what was there before."""
    return u._version, u.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def called(module: nn.Module, x: Frames, state: State, valid: Tensor | None) -> tuple[Any, State]:
    """One chunk; the first step by itself before, where the module has no chunk form of its own.

    Raises:
        ExportError: the user's code fails, or returns something else than outputs and states.
    """
    form = getattr(module, "chunk", None)
    name = f"{type(module).__name__}.{'step' if form is None else 'chunk'}"
    try:
        with torch.no_grad():
            if form is not None:
                return returned(name, form(x, state, valid))
            length = streaming.segment_length(module)
            one = (streaming.frame(x, 0), {**state}) if length == 1 else (streaming.span(x, 0, length), {**state}, None)
            returned(name, module.step(*one))  # type: ignore[operator]
            return streaming.chunk(module, x, {**state}, valid)
    except KeyError as error:
        wanted = next(iter(error.args), None)
        if not isinstance(wanted, str) or wanted in state or (isinstance(x, dict) and wanted in x):
            raise failure(name, x, error) from error
        raise ExportError(
            f"{name} reads {wanted!r}, which is no state of it; declared are {', '.join(state)}: correct the name, or "
            f"declare StateTensor({wanted!r}, shape) too"
        ) from error
    except ExportError:
        raise
    except Exception as error:  # whatever the user's step raises
        raise failure(name, x, error) from error


def failure(name: str, x: Frames, error: Exception) -> ExportError:
    """An error of the user's own code, with the line that raised it."""
    line = list(walk_tb(error.__traceback__))[-1]
    place = f"{Path(line[0].f_code.co_filename).name}:{line[1]}"
    return ExportError(
        f"{name} fails on {shapes(x)} ({type(error).__name__} at {place}): {first_cause(error)}; run it on the example "
        "and its start state first"
    )


def returned(name: str, found: Any) -> tuple[Any, State]:
    """What a step gave: outputs, and states by name.

    Raises:
        ExportError: something else.
    """
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
        parts = ", ".join(type(part).__name__ for part in found) if isinstance(found, tuple) else ""
        raise ExportError(
            f"{name} returns {f'({parts})' if isinstance(found, tuple) else type(found).__name__}; the output and the "
            'new states by name were wanted: `return y, {"NAME": value}`'
        )
    return found


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module and its parts hold beside parameters and parts, by dotted name."""
    for path, child in module.named_modules():
        for name, value in (*vars(child).items(), *child._buffers.items()):
            if name not in OWN:
                yield f"{path}.{name}" if path else name, value


def contents(module: nn.Module) -> dict[str, Any]:
    """Every attribute that could be a state, with what tells whether it changed."""
    found = {name: fingerprint(value) for name, value in attributes(module)}
    return {name: mark for name, mark in found.items() if mark is not None}


def fingerprint(value: Any, depth: int = 3) -> Any:
    """What changes with a tensor, a number, or a collection of them; None for anything else."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()  # of types that NumPy lacks, too
        return id(value), content.tobytes()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | deque | dict) and depth:
        inside = value.items() if isinstance(value, dict) else enumerate(value)
        return [(key, fingerprint(entry, depth - 1)) for key, entry in inside]
    return None


def attribute_hint(module: nn.Module) -> str:
    """Which attributes look like a state that was forgotten to be declared."""
    names = [name for name, value in attributes(module) if isinstance(value, Tensor)]
    return f" (it holds {', '.join(names[:3])} as attributes)" if names else ""


def check_attributes(module: nn.Module, before: dict[str, Any]) -> None:
    """Refuse a module that changed an attribute of its own during a step.

    Raises:
        ExportError: naming the attribute.
    """
    after = contents(module)
    changed = sorted(name for name in after if after[name] != before.get(name))
    if changed:
        raise ExportError(
            f"{changed[0]} of {type(module).__name__} changed during a step: state in an attribute is frozen by "
            "an export; declare it as a StateTensor, and take and return its value in step"
        )


def check_states(signature: Signature, before: State, after: State) -> None:
    """Refuse new states that are not those that were declared.

    Raises:
        ExportError: naming the state, with both shapes where they differ.
    """
    odd = sorted(set(before) ^ set(after))
    if odd:
        raise ExportError(
            f"state {odd[0]} is {'declared but not returned' if odd[0] in before else 'returned but not declared'}; "
            "a step returns exactly the states that its module declares"
        )
    for name, tensor in before.items():
        if after[name].shape != tensor.shape or after[name].dtype != tensor.dtype:
            raise ExportError(
                f"state {name}: {tensor.dtype}{list(tensor.shape)} goes in, "
                f"{after[name].dtype}{list(after[name].shape)} comes out; a state keeps its shape and dtype"
            )


def check_outputs(signature: Signature, y: Any, x: Frames) -> None:
    """Refuse outputs without a time axis, or others than the declared ones.

    Raises:
        ExportError: naming the output, with what was declared and what came.
    """
    rows = y if isinstance(y, dict) else {signature.outputs[0].name: y}
    batch, time = extent(x)
    for port in signature.outputs:
        if port.name not in rows:
            raise ExportError(f"output {port.name} is declared but not returned; the step returns {sorted(rows)}")
        wanted = (batch, time, *port.shape)
        if tuple(rows[port.name].shape) != wanted:
            raise ExportError(
                f"output {port.name}: {list(wanted)} was declared, {list(rows[port.name].shape)} came; "
                "a step gives one row for each frame that it takes"
            )
        if str(rows[port.name].dtype) != f"torch.{port.dtype}":
            raise ExportError(f"output {port.name}: {port.dtype} was declared, {rows[port.name].dtype} came")


def check_causality(module: nn.Module, signature: Signature, x: Frames) -> None:
    """Change the last frame (segment) of a longer input and look for a change in the outputs before it.

    Rows that a step has given may not move, whatever the next one brings.

    Raises:
        ExportError: a row that moved.
    """
    length, state = streaming.segment_length(module), streaming.start_state(module, extent(x)[0])
    time = 4 if length == 1 else 2 * length
    changed_from = time - length
    longer = each(x, lambda u: u.repeat(1, math.ceil(time / u.shape[1]), *[1] * (u.dim() - 2))[:, :time])
    other = each(longer, lambda u: changed(u, changed_from))
    with torch.no_grad():
        first, _ = streaming.chunk(module, longer, state)
        second, _ = streaming.chunk(module, other, state)
    for port in signature.outputs:
        a, b = (y[port.name] if isinstance(y, dict) else y for y in (first, second))
        scale = float(a.abs().max()) or 1.0
        # look-ahead models emit late, so their rows before the change may not move either
        error = float((a[:, :changed_from] - b[:, :changed_from]).abs().max())
        if error > CAUSAL_TOLERANCE * scale:
            raise ExportError(
                f"output {port.name} of a frame changes by {error:.1e} with the input "
                f"{counted(time - changed_from, 'frame')} after it; a stream has not seen that yet: mask it, or "
                "declare look_ahead"
            )


def changed(u: Tensor, start: int) -> Tensor:
    """u with other legal values from frame `start` on."""
    other = 1 - u.clamp(0, 1) if not u.is_floating_point() else -u + 0.5
    return torch.cat([u[:, :start], other[:, start:].to(u.dtype)], dim=1)


def shapes(x: Frames) -> str:
    """Shapes of the inputs, for messages."""
    return str({name: list(u.shape) for name, u in x.items()} if isinstance(x, dict) else list(x.shape))


def traced(flat: Flat, arguments: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The module as torch's exported program, its operators checked.

    Raises:
        ExportError: shapes or control flow that depend on data, or an operator of `REMEDIES`.
    """
    try:
        with quiet(), redirect_stderr(io.StringIO()), torch.no_grad():  # torch dumps the half-traced graph there
            program = torch.export.export(flat, arguments, strict=False)
    except Exception as error:  # torch.export has many private error classes
        raise ExportError(f"{innermost(error, flat.module)} {untraceable(first_cause(error))}") from error
    for node in program.graph.nodes:
        if node.op == "call_function":
            check_operator(node)
    return program


def untraceable(cause: str) -> str:
    """What torch.export could not follow, and what to write instead, in the words of who wrote the step."""
    if ".numpy()" in cause:
        return "leaves torch by .numpy(), which a graph cannot hold; compute the same with operators of torch"
    told = "" if "data-dependent" in cause else f" ({cause})"  # that one is of torch's own symbols
    return (
        f"depends on its data in a way that a static graph cannot{told}: an `if`, a number or a shape is made of the "
        "values of a tensor; replace `if` and `.item()` on tensors by torch.where, and keep shapes fixed"
    )


def innermost(error: BaseException, module: nn.Module) -> str:
    """The dotted name of the part of a module in whose code an error was raised, and where in it.

    Its class, if that is the whole.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    paths = {id(part): path for path, part in module.named_modules()}
    frames = [(frame.f_locals.get("self"), frame, line) for frame, line in walk_tb(error.__traceback__)]
    found = [(paths[id(part)], frame, line) for part, frame, line in frames if id(part) in paths]
    if not found:
        return type(module).__name__
    path, frame, line = found[-1]
    return f"{path or type(module).__name__} ({Path(frame.f_code.co_filename).name}:{line})"


def check_operator(node: torch.fx.Node) -> None:
    """Refuse one operator of an exported program by name and module path.

    Raises:
        ExportError: with what to write instead.
    """
    operator = str(getattr(node.target, "__name__", node.target)).partition(".")[0]
    remedy = next((text for prefix, text in REMEDIES.items() if operator.startswith(prefix)), None)
    value = node.meta.get("val")
    if remedy is None and isinstance(value, Tensor) and value.is_complex():
        remedy = REMEDIES["complex"]
    elif operator == "index" and has_mask(node.args[1]):
        remedy = REMEDIES["nonzero"]
    elif operator == "dropout" and node.args[2] is True:
        remedy = "leave dropout to nn.Dropout, which is off in evaluation mode"
    if remedy is not None:
        raise ExportError(f"{module_path(node)}: operator {node.target} cannot be in a step graph; {remedy}")


def has_mask(indices: Any) -> bool:
    """Whether one of several indices picks by true and false: how many it picks depends on the data."""
    return any(isinstance(i, torch.fx.Node) and i.meta["val"].dtype == torch.bool for i in indices)
