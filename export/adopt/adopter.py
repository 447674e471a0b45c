"""From a foreign ONNX file to one with a contract: decided, rewritten, proved, and only then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from edgemem import __version__, modelfile
from edgemem.contract import Certificate, Contract
from edgemem.errors import ExportError, InputError, UsageError
from edgemem.export.adopt import axes, boundary, detect, fixed, known, source, streaming
from edgemem.export.adopt.bounds import check_ports
from edgemem.export.adopt.build import sizes
from edgemem.export.adopt.draft import DOUBTFUL, Decision, Draft
from edgemem.export.adopt.facts import check_ranges, contract_of, port_facts, say_step, start_values
from edgemem.export.adopt.freeze import Freezer
from edgemem.export.adopt.request import OPTIONS, RECIPE, Request
from edgemem.export.adopt.rewrite import REWRITES, UNROLLED
from edgemem.export.exporter import CERTIFIED_STEPS, EXTERNAL_FROM, save, staging
from edgemem.export.graph import OPSET, check_operators
from edgemem.files import check_output
from edgemem.foreign import Adoption, ForeignProgram, Named, Pair, over_whole_sequence
from edgemem.program import load
from edgemem.schema import SchemaError
from edgemem.text import counted, first_line
from edgemem.trial import trial


@dataclass(frozen=True)
class Adopted:
    """What was written, and what was decided on the way."""

    contract: Contract
    decisions: tuple[Decision, ...]


def adopt(
    path: str | Path, output: str | Path, request: Request | None = None, steps: int = CERTIFIED_STEPS
) -> Adopted:
    """Give the foreign ONNX file `path` a contract and write it to `output`.

    The file that is written is compared with the foreign one under onnxruntime over `steps` steps before it takes its
    name.

    Raises:
        ModelFileError: no ONNX file, or one that is refused whatever the options.
        UsageError: something that only the user can say, or an option that does not fit.
        ExportError: a graph that has no static step; nothing is written.
    """
    path, output = Path(path), Path(output)
    request = request or Request()
    for name, start in request.inits.items():
        if not start.exists():
            raise InputError(f"--init {name}={start}: there is no such file; save the start value there by numpy.save")
    check_output(output, path, *request.inits.values())
    draft = opened(path, request)
    frozen(draft)
    adoption = decided(draft)
    frames = boundary.check_frames(adoption, draft.entries(), draft.results())
    check_chunk(draft, frames)
    check_ranges(draft, adoption)
    starts = start_values(draft, adoption)
    facts = port_facts(draft, adoption, frames)
    boundary.apply(draft.graph, adoption, draft.entries(), draft.results(), [c.name for c in draft.carried])
    rewritten(draft)
    try:
        contract = contract_of(draft, adoption, frames, starts, facts)
    except SchemaError as error:
        raise ExportError(f"{draft.path}: no contract can say what it is ({error}); export the model again") from error
    say_step(draft, adoption, contract)
    with staging(output) as folder:
        contract = certified(draft, contract, folder / output.name, steps)
    return Adopted(contract, tuple(draft.decisions))


def opened(path: Path, request: Request) -> Draft:
    """The file, and what is known of it before anything is computed.

    Raises:
        UsageError: options that contradict each other, or what is known of the file.
    """
    if request.sound and request.seconds:
        raise UsageError(
            f"--seconds {request.seconds:g} with --sound {request.sound}: how long a frame lasts follows from its "
            "samples and their rate; leave --seconds out"
        )
    model = source.opened(path)
    found = known.recognised(model.graph, request) if request.recipes else None
    draft = Draft(path, model, request if found is None else request.over(found[1]))
    if found is not None:
        draft.say("model", found[0].title, "sure", f"its inputs and outputs; run as {found[0].source} does")
    draft.outputs = [value.name or f"output_{i}" for i, value in enumerate(model.graph.outputs)]
    ports = [*model.graph.inputs, *model.graph.outputs]
    draft.names = {value.name or "": axes.symbols(value) for value in ports}
    axes.check_said(draft.request.layouts, list(draft.names))
    against_names(draft)
    draft.constants = fixed.constants(model.graph, draft.request.sets)
    for name, value in draft.constants.items():
        draft.say(f"input {name}", f"always {value}", "sure", draft.request.because("sets", name))
    return draft


def against_names(draft: Draft) -> None:
    """Note where `--layout` says something else of an axis than its name."""
    for name, letters in draft.request.layouts.items():
        for axis, (letter, symbol) in enumerate(zip(letters, draft.names[name], strict=False)):
            named = "B" if axes.is_batch(symbol) else "T" if axes.is_time(symbol) else letter
            if named != letter and name not in (draft.request.recipe or Request()).layouts:
                draft.say(f"--layout {name}", f"{letters}: axis {axis} is {letter}", DOUBTFUL, f"it is called {symbol}")


def frozen(draft: Draft) -> None:
    """Static sizes, no control flow, standard operators of one version."""
    request = draft.request
    if request.streaming:
        draft.model = upgraded(draft.path, draft.model, static=False)
        drop_outputs(draft)
    model = draft.model
    rest = {name: value for name, value in request.sets.items() if name not in draft.constants}
    decided = fixed.sizes(model.graph, Request(**{**vars(request), "sets": rest}))
    for name, (size, reason) in decided.items():
        draft.say(f"axis {name}", str(size), "sure" if reason in (OPTIONS["sets"], RECIPE) else "likely", reason)
    check_ports(draft.path, model)
    if request.streaming:
        step_of_sequence(draft)
    else:
        common.RemoveUnusedNodesPass()(model)  # what nothing reads decides nothing
        Freezer(model, UNROLLED).run()
        common.RemoveUnusedNodesPass()(model)
        draft.model = upgraded(draft.path, model)
    separate_results(draft.model)


def separate_results(model: ir.Model) -> None:
    """Give every result of a graph a value of its own: none is an input, or another result."""
    names = [value.name for value in model.graph.inputs]
    common.OutputFixPass()(model)
    for value, name in zip(model.graph.inputs, names, strict=True):
        value.name = name  # the pass gives another to an input that is a result


def drop_outputs(draft: Draft) -> None:
    """Take the outputs out that are to be left out.

    Raises:
        UsageError: there is no such output.
    """
    for name in draft.request.drops:
        if name not in draft.outputs:
            raise UsageError(f"--drop {name}: there is no such output; there are {', '.join(draft.outputs)}")
        index = draft.outputs.index(name)
        del draft.graph.outputs[index]
        del draft.outputs[index]
    common.RemoveUnusedNodesPass()(draft.model)


def step_of_sequence(draft: Draft) -> None:
    """Let a model of whole sequences take some frames at a time; see `streaming`.

    Raises:
        UsageError: no input has a time axis that anybody knows of, or all that there is to remember is a state already.
    """
    request, letters, why = draft.request, {}, {}
    own = detect.remembered(draft.entries(), draft.results())
    for value in draft.graph.inputs:
        name = value.name or ""
        found = axes.port_axes(value, draft.names.get(name, ()), request.layouts.get(name), streaming=True)
        if "T" in found.letters and not (name in own and found.certainty != "sure"):
            letters[name], why[name] = found.letters, found
    if not letters:
        raise UsageError(
            f"{draft.path}: no input has a time axis; say which one it is by --layout INPUT=AXES, for example BTF"
        )

    def set_time(model: ir.Model, rows: int) -> None:
        for value in model.graph.inputs:
            axis = letters.get(value.name or "", "").find("T")
            if axis >= 0:
                value.shape = ir.Shape([rows if i == axis else size for i, size in enumerate(sizes(value))])

    step = streaming.streamed(draft.model, letters, draft.outputs, request.chunk or 1, set_time)
    draft.model, draft.streamed = step.model, step
    if not step.carried and own:
        raise UsageError(
            f"{draft.path} has states already ({', '.join(sorted(own))}), and there is nothing else to remember; leave "
            "--streaming out"
        )
    draft.outputs += [f"{carried.name}_out" for carried in step.carried]
    for value in draft.graph.inputs:
        name = value.name or ""
        if name in letters:
            shown, found = f"axes {letters[name]} {list(sizes(value))}", why[name]
            draft.say(f"input {name}", shown, found.certainty, draft.because("layouts", name, found))
    if step.look_ahead:
        draft.say("latency", counted(step.look_ahead, "frame"), "sure", "windows that see what comes later")
        draft.say("input valid", "frames of a step that are no padding", "sure", "latency: the end has to be told")


def upgraded(path: Path, model: ir.Model, static: bool = True) -> ir.Model:
    """The model in the operators' version that edgemem exports, if it is in an older one; frozen again if `static`."""
    version = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if version >= OPSET:
        return model
    common.NameFixPass()(model)
    try:
        proto = onnx.version_converter.convert_version(ir.serde.serialize_model(model), OPSET)
        converted = ir.serde.deserialize_model(proto)
    except Exception as error:  # the converter raises private kinds
        raise ExportError(
            f"{path}: its operators are of version {version}, and cannot be brought to {OPSET} ({first_line(error)}); "
            "export the model with a newer opset"
        ) from error
    if static:
        Freezer(converted, {}).run()
    return converted


def decided(draft: Draft) -> Adoption:
    """States, and the axes of everything."""
    if draft.streamed is None:
        drop_outputs(draft)
    request, own = draft.request, {f"{carried.name}_out" for carried in draft.carried}
    outputs = {name: value for name, value in draft.results().items() if name not in own}
    added = {"valid" if draft.streamed is not None else "", *(f"{carried.name}_in" for carried in draft.carried)}
    inputs = {name: value for name, value in draft.entries().items() if name not in added}
    found = detect.pairs(inputs, outputs, request.states, list(request.tails))
    states = {pair.input: pair for pair in found}
    data = [name for name in inputs if name not in states]
    shown = [n for n in outputs if n not in {pair.output for pair in found}]
    if not data or not shown:
        raise UsageError(
            f"{draft.path}: every {'output' if data else 'input'} is a state; a step needs an input and an output that "
            "are none: say --state INPUT= for one that is not"
        )
    if not found and not request.tails and draft.streamed is None:
        raise UsageError(
            f"{draft.path}: no state was found among the inputs {', '.join(inputs)} and outputs {', '.join(outputs)}; "
            "name it by --state INPUT=OUTPUT, or say --streaming for a model of whole sequences"
        )
    taken: set[str] = set()
    ports = tuple(input_port(draft, inputs[name], taken) for name in data)
    batch, frames = leading(ports[0], inputs[data[0]], request)
    results = tuple(output_port(draft, outputs[name], name, frames, batch, taken) for name in shown)
    pairs = tuple(state_pair(draft, pair, inputs[pair.input], batch, taken) for pair in found)
    tails = {port.name: request.tails[port.foreign] for port in ports if port.foreign in request.tails}
    ours = {port.foreign: port.name for port in results}
    return Adoption(
        inputs=ports,
        outputs=results,
        states=pairs,
        constants=draft.constants,
        tails=tails,
        streaming=draft.streamed is not None,
        frame_rows=1 if draft.streamed is None else draft.streamed.frame_rows,
        short={}
        if draft.streamed is None
        else {ours[n]: rows for n, rows in draft.streamed.short.items() if n in ours},
    )


def check_chunk(draft: Draft, frames: int) -> None:
    """Refuse `--chunk` where the file decides how many frames a step takes.

    Raises:
        UsageError: with both numbers.
    """
    if draft.request.chunk not in (None, frames):
        raise UsageError(
            f"--chunk {draft.request.chunk}: a step of {draft.path} takes {frames}, and no dynamic time axis leaves a "
            "choice; leave --chunk out, or say which axis is time by --layout INPUT=AXES, for example BTF"
        )


def leading(port: Named, value: ir.Value, request: Request) -> tuple[int, int]:
    """Streams and frames of the first input."""
    shape = boundary.contract_shape(sizes(value), port.axes, "BT")
    return shape[0], (shape[1] - (request.tails.get(port.foreign, 0) if "T" in port.axes else 0))


def flowing(draft: Draft, name: str) -> str | None:
    """The axes of an input or output of a step of sequences."""
    return None if draft.streamed is None else draft.streamed.axes.get(name)


def input_port(draft: Draft, value: ir.Value, taken: set[str]) -> Named:
    name = value.name or ""
    found = axes.port_axes(value, draft.names.get(name, ()), flowing(draft, name) or draft.request.layouts.get(name))
    if not found.letters and name not in draft.request.layouts:
        raise UsageError(
            f"input {name} is one number, {detect.described(value)}, and no state; say what it always is by "
            f"--set {name}=VALUE, or --layout {name}= if every step has its own"
        )
    if flowing(draft, name) is None:
        letters, why = found.letters or "none", draft.because("layouts", name, found)
        draft.say(f"input {name}", f"axes {letters} {list(sizes(value))}", found.certainty, why)
    return Named(name=boundary.identifier(name, taken), foreign=name, axes=found.letters)


def output_port(draft: Draft, value: ir.Value, name: str, frames: int, batch: int, taken: set[str]) -> Named:
    said = flowing(draft, name) or draft.request.layouts.get(name)
    found = axes.output_axes(value, draft.names.get(name, ()), said, frames, batch)
    why = draft.because("layouts", name, found) if flowing(draft, name) is None else "time, followed through the graph"
    draft.say(f"output {name}", f"axes {found.letters or 'none'} {list(sizes(value))}", found.certainty, why)
    return Named(name=boundary.identifier(name, taken), foreign=name, axes=found.letters)


def state_pair(draft: Draft, pair: detect.Found, value: ir.Value, batch: int, taken: set[str]) -> Pair:
    found = axes.state_axes(value, draft.names.get(pair.input, ()), draft.request.layouts.get(pair.input), batch)
    why = draft.because("states", pair.input, pair)
    draft.say(f"state {pair.input}", f"-> {pair.output} {list(sizes(value))}", pair.certainty, why)
    name = boundary.state_name((pair.input, pair.output), taken)
    return Pair(name=name, input=pair.input, output=pair.output, axes=found.letters)


def rewritten(draft: Draft) -> None:
    """Primitive operators only, every constant an initializer, no leftovers."""
    model, names = draft.model, [value.name or "" for value in draft.graph.outputs]
    Freezer(model, REWRITES).run()
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    separate_results(model)
    named(model.graph, names)
    common.NameFixPass()(model)
    common.TopologicalSortPass()(model)
    common.ClearMetadataAndDocStringPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.name, model.producer_name, model.producer_version = "step", "edgemem", ""
    model.ir_version = max(model.ir_version or 0, 10)
    check_operators(model)


def named(graph: ir.Graph, names: Sequence[str]) -> None:
    """Give the results their names, which no other value keeps."""
    for value in [value for node in graph for value in node.outputs] + list(graph.initializers.values()):
        if value.name in names:
            value.name = f"{value.name}.inner"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


# --- the proof ---------------------------------------------------------------------------------------------------


def certified(draft: Draft, contract: Contract, path: Path, steps: int) -> Contract:
    """Write the file, compare it with the foreign one in onnxruntime, and write it again with the certificate.

    Raises:
        ExportError: the files differ; the first diverging tensor is named.
    """
    save(draft.model, contract, path, EXTERNAL_FROM)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # onnx raises its own private kinds
        raise ExportError(
            f"{draft.path} gives a step that is no valid ONNX graph ({first_line(error)}); nothing was written"
        ) from error
    program = load(path)
    reference = ForeignProgram(draft.path, contract, modelfile.start_values(modelfile.open_model(path)))
    compared = over_whole_sequence if reference.adoption.streaming else trial
    found = compared(reference, program, steps)
    if found.undefined is not None:
        raise ExportError(
            f"{draft.path} itself gives {found.undefined}, from finite inputs and the start of its states; say what it "
            "starts from by --init STATE=FILE, or what its inputs may be by --range or --set; nothing was written"
        )
    if not found.holds:
        raise ExportError(
            f"the adopted graph differs from {draft.path} by {found.max_abs_error:.2e}, {found.tolerance:.2e} is "
            f"allowed; first at {found.first_divergence}; nothing was written"
        )
    certificate = Certificate(
        stage="adopt",
        reference="foreign",
        steps=steps,
        max_abs_error=found.max_abs_error,
        max_rel_error=found.max_rel_error,
        tolerance=found.tolerance,
        versions={"edgemem": __version__, **{n: metadata.version(n) for n in ("onnx", "onnxruntime")}},
    )
    contract = contract.model_copy(update={"parity": (certificate,)})
    save(draft.model, contract, path, EXTERNAL_FROM)
    return contract
