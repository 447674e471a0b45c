"""From a torch module to an ONNX file with a contract: checked before, written whole, proved after."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgemem import __version__
from edgemem import contract as contracts
from edgemem import module as streaming
from edgemem.contract import Certificate, Chunk, Contract, InputFacts, Latency, ModelFacts, OutputFacts, StateFacts
from edgemem.digests import digest
from edgemem.errors import ExportError
from edgemem.export import graph, preflight
from edgemem.export.graph import Flat, Signature
from edgemem.files import check_output
from edgemem.module import Frames
from edgemem.program import load
from edgemem.reference import TorchProgram
from edgemem.state import Port, StateTensor
from edgemem.trial import trial
from edgemem.weights import START, tensor_digest

CERTIFIED_STEPS = 256
EXTERNAL_FROM = 2**31 - 2**20  # protobuf holds 2 GiB; weights beyond it lie beside the model file


def export_model(
    name: str,
    path: str | Path,
    settings: Mapping[str, object] | None = None,
    *,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
    chunk: int = 1,
    batch: int = 1,
    external_from: int = EXTERNAL_FROM,
    certified_steps: int = CERTIFIED_STEPS,
) -> Contract:
    """Build a model of the zoo and export it; see `to_onnx` and `edgemem.models.build_model`.

    Raises:
        ConfigError, CheckpointError: the model cannot be built.
        UsageError: `path` cannot be written to, or is the checkpoint.
        ExportError: the module cannot be exported; nothing is written.
    """
    from edgemem.models import build_model

    check_output(Path(path), None if checkpoint is None else Path(checkpoint))
    module, facts = build_model(name, settings, seed, checkpoint)
    return to_onnx(
        module,
        None,
        path,
        chunk=chunk,
        batch=batch,
        facts=facts,
        external_from=external_from,
        certified_steps=certified_steps,
    )


def to_onnx(
    module: nn.Module,
    example: Frames | None,
    path: str | Path,
    *,
    chunk: int = 1,
    batch: int = 1,
    facts: Mapping[str, object] | None = None,
    attached: Mapping[str, str] | None = None,
    external_from: int = EXTERNAL_FROM,
    certified_steps: int = CERTIFIED_STEPS,
) -> Contract:
    """Export a streaming module as a static step graph of `chunk` units and `batch` streams; returns its contract.

    `example` is an input [batch, time, *features] as the module's `forward` would take it (a dict by name for several);
    only its shape after the time axis and its dtype count. Modules that declare `inputs` and `outputs` need none. The
    file is compared with the module over `certified_steps` steps before it takes its name. Weights of `external_from`
    bytes or more lie in `NAME.data` beside it. `facts` are what the contract says of the model: family, name, config,
    source. `attached` texts travel in the file's metadata.

    Raises:
        UsageError: `path` cannot be written to.
        ExportError: what cannot be exported, named by operator and module path; nothing is written.
    """
    path = Path(path)
    check_output(path)
    if not isinstance(module, nn.Module):
        raise ExportError(
            f"a torch module was wanted, {type(module).__name__} came; give an nn.Module with step and state"
        )
    if chunk < 1 or batch < 1:
        raise ExportError(f"chunk and batch must be at least 1, got chunk={chunk} and batch={batch}")
    if streaming.floating_dtype(module) != torch.float32:
        raise ExportError(f"the module must be float32 to be exported, it is {streaming.floating_dtype(module)}")
    was_training = module.training
    module.eval()
    try:
        facts, attached = dict(facts or {}), dict(attached or {})
        return exported(module, example, path, chunk, batch, facts, attached, external_from, certified_steps)
    finally:
        module.train(was_training)


def exported(
    module: nn.Module,
    example: Frames | None,
    path: Path,
    chunk: int,
    batch: int,
    facts: dict[str, Any],
    attached: dict[str, str],
    limit: int,
    steps: int,
) -> Contract:
    """The stages of `to_onnx` one after another."""
    frames = chunk * streaming.segment_length(module)
    states = streaming.declared_states(module)
    preflight.check_declared(module, states)
    inputs = input_ports(module, example)
    needs_valid = frames > 1 or getattr(module, "look_ahead", 0) > 0
    x = sample(inputs, batch, frames)
    valid = torch.full((batch,), frames, dtype=torch.int64) if needs_valid else None
    signature = Signature(inputs, output_ports(module, x, valid), states, needs_valid)
    check_names(signature)
    preflight.check_module(module, signature, x, valid)
    arguments = (*(x.values() if isinstance(x, dict) else (x,)), *(() if valid is None else (valid,)))
    arguments += tuple(streaming.start_state(module, batch).values())
    program = preflight.traced(Flat(module, signature), arguments)
    preflight.check_causality(module, signature, x)
    parameters = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    model = graph.step_graph(program, signature, list(parameters))
    model.metadata_props.update(attached)
    starts = stored_starts(module, states)
    graph.add_starts(model, starts)
    present = {name.removesuffix(".T") for name in model.graph.initializers}
    contract = contract_of(module, signature, present, parameters, starts, chunk, batch, facts)
    with staging(path) as folder:
        return certified(module, model, contract, folder / path.name, limit, steps)


def torch_program(
    name: str,
    frames: int = 1,
    settings: Mapping[str, object] | None = None,
    *,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
) -> TorchProgram:
    """A model of the zoo as a program that torch runs, no file written; see `edgemem.models.build_model`.

    A step takes `frames` frames, rounded up to whole segments.
    """
    from edgemem.models import build_model

    module, facts = build_model(name, settings, seed, checkpoint)
    length, states = streaming.segment_length(module), streaming.declared_states(module)
    chunk = -(-frames // length)
    valid = chunk * length > 1 or int(getattr(module, "look_ahead", 0)) > 0
    signature = Signature(module.inputs, module.outputs, states, valid)
    parameters = {key: tensor.detach() for key, tensor in module.state_dict().items()}
    starts = stored_starts(module, states)
    return TorchProgram(module, contract_of(module, signature, parameters, parameters, starts, chunk, 1, facts))


def stored_starts(module: nn.Module, states: Mapping[str, StateTensor]) -> dict[str, Tensor]:
    """The start values that are tensors of the module rather than one number, by state."""
    return {n: streaming.start_value(module, n, s).detach() for n, s in states.items() if isinstance(s.start, str)}


def input_ports(module: nn.Module, example: Frames | None) -> tuple[Port, ...]:
    """The module's declared inputs, or `x` (or the dict's names) as the example shows.

    Raises:
        ExportError: neither is there, or integers without a range.
    """
    declared: tuple[Port, ...] = tuple(getattr(module, "inputs", ()))
    if declared:
        return declared
    if example is None:
        raise ExportError(f"{type(module).__name__} declares no inputs; give an example [batch, time, *features]")
    ports = []
    given = example if isinstance(example, dict) else {"x": example}
    if not given:
        raise ExportError("example has no tensors; give one by the name of each input, [batch, time, *features]")
    for name, tensor in given.items():
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"example {name}: a torch tensor [batch, time, *features] was wanted, {type(tensor).__name__} came; "
                "for example torch.zeros(1, 1, 16), or a dict of tensors by name for several inputs"
            )
        if tensor.dim() < 2:
            raise ExportError(
                f"example {name}: [batch, time, *features] was wanted, {list(tensor.shape)} came; add the missing axes"
            )
        if not tensor.is_floating_point():
            raise ExportError(
                f"example {name} is of integers, whose valid range nobody can guess; declare "
                f'inputs = (Port("{name}", shape, "int64", "tokens", low=0, high=...),) on the module'
            )
        ports.append(Port(name, tuple(tensor.shape[2:])))
    return tuple(ports)


def output_ports(module: nn.Module, x: Frames, valid: Tensor | None) -> tuple[Port, ...]:
    """The module's declared outputs, or `y` (or the dict's names) as one chunk shows.

    Raises:
        ExportError: the module's step fails.
    """
    declared: tuple[Port, ...] = tuple(getattr(module, "outputs", ()))
    if declared:
        return declared
    y, _ = preflight.first_chunk(module, x, streaming.start_state(module, streaming.extent(x)[0]), valid)
    rows = y if isinstance(y, dict) else {"y": y}
    return tuple(
        Port(name, tuple(u.shape[2:]), str(u.dtype).removeprefix("torch."), "values") for name, u in rows.items()
    )


def check_names(signature: Signature) -> None:
    """Refuse two tensors of one name.

    Raises:
        ExportError: naming the tensor.
    """
    names = [*signature.input_names, *signature.output_names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ExportError(f"the graph would have two tensors called {twice[0]}; rename an input, output or state")


def sample(ports: tuple[Port, ...], batch: int, frames: int) -> Frames:
    """One chunk of legal inputs [batch, frames, *features], seeded: normal features, uniform integers.

    Raises:
        ExportError: integers without a range.
    """
    draw = torch.Generator().manual_seed(0)
    chunk = {}
    for port in ports:
        shape = (batch, frames, *port.shape)
        if port.dtype.startswith("float"):
            chunk[port.name] = torch.randn(shape, generator=draw)
        elif port.low is None or port.high is None:
            raise ExportError(f"input {port.name} is of integers without a range; declare low and high on its Port")
        else:
            kind = getattr(torch, port.dtype)
            chunk[port.name] = torch.randint(port.low, port.high + 1, shape, generator=draw, dtype=kind)
    return chunk if len(ports) > 1 else chunk[ports[0].name]


def contract_of(
    module: nn.Module,
    signature: Signature,
    present: Collection[str],
    parameters: Mapping[str, Tensor],
    starts: Mapping[str, Tensor],
    chunk: int,
    batch: int,
    facts: dict[str, Any],
) -> Contract:
    """The contract of the graph that holds the `present` parameters, its certificate still missing."""
    tensors = {name: tensor_digest(p.numpy()) for name, p in parameters.items() if name in present}
    tensors |= {name + START: tensor_digest(start.numpy()) for name, start in starts.items()}
    length = streaming.segment_length(module)
    seconds, ahead = getattr(module, "seconds_per_frame", None), int(getattr(module, "look_ahead", 0))
    frames = chunk * length
    inputs = [input_facts(port, batch, frames) for port in signature.inputs]
    if signature.valid:
        inputs.append(InputFacts(name="valid", shape=(batch,), dtype="int64", role="valid", range=(0, frames)))
    return Contract(
        version=1,
        model=ModelFacts(
            family=str(facts.get("family", "user")),
            name=str(facts.get("name", type(module).__name__)),
            config=facts.get("config", {}),
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            digest=digest(tensors),
            tensors=tensors,
            source=facts.get("source", {"kind": "module"}),
        ),
        chunk=Chunk(
            axis=1,
            size=chunk,
            unit=getattr(module, "unit", "frame"),
            frames_per_unit=length,
            seconds_per_unit=None if seconds is None else seconds * length,
        ),
        inputs=tuple(inputs),
        outputs=tuple(
            OutputFacts(name=p.name, shape=(batch, frames, *p.shape), dtype=p.dtype, role=p.role, labels=p.labels)
            for p in signature.outputs
        ),
        states=tuple(state_facts(name, state, batch) for name, state in signature.states.items()),
        latency=Latency(look_ahead=ahead, warm_up=ahead, unit="frame"),
        quant={"scheme": "none"},
        parity=(),
    )


def input_facts(port: Port, batch: int, frames: int) -> InputFacts:
    """One input as the contract has it."""
    return InputFacts(
        name=port.name,
        shape=(batch, frames, *port.shape),
        dtype=port.dtype,
        role=port.role,
        range=None if port.low is None or port.high is None else (port.low, port.high),
        frontend=port.frontend,
        encoding=port.encoding,
    )


def state_facts(name: str, state: StateTensor, batch: int) -> StateFacts:
    """One state as the contract has it."""
    return StateFacts(
        name=name,
        shape=(batch, *state.shape),
        dtype=state.dtype,
        start=name + START if isinstance(state.start, str) else float(state.start),
        role=state.role,
        range=(float(state.low), float(state.high)),
        quant={"policy": "f32", "wide": state.wide},
    )


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`; what lies in it at the end moves to its place, data before the model."""
    made = [place for place in (path.parent, *path.parent.parents) if not place.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder
        for file in sorted(folder.iterdir(), key=lambda f: f.name == path.name):
            file.replace(path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for place in made:
            with suppress(OSError):  # not empty: all went well
                place.rmdir()


def certified(module: nn.Module, model: ir.Model, contract: Contract, path: Path, limit: int, steps: int) -> Contract:
    """Write the file, compare it with the module in onnxruntime, and write it again with the certificate.

    Raises:
        ExportError: the file differs from the module, or the module gives no numbers; the tensor is named.
    """
    save(model, contract, path, limit)
    onnx.checker.check_model(str(path), full_check=True)
    found = trial(TorchProgram(module, contract), load(path), steps)
    if found.undefined is not None:
        raise ExportError(
            f"{type(module).__name__} itself gives {found.undefined}, from finite inputs of about 1 and its own start "
            "states; keep logarithms, roots and quotients away from where they have no value (clamp, an epsilon), and "
            "recurrences from growing without end"
        )
    if not found.holds:
        rounding = found.worst[1].rounding
        own = f" (rounding moves torch itself by {rounding:.2e})" if rounding else ""
        raise ExportError(
            f"the ONNX graph differs from torch by {found.max_abs_error:.2e}, {found.tolerance:.2e} is allowed{own}; "
            f"first at {found.first_divergence}: the step may depend on something that is not its input or state"
        )
    certificate = Certificate(
        stage="onnx",
        reference="torch",
        steps=steps,
        max_abs_error=found.max_abs_error,
        max_rel_error=found.max_rel_error,
        tolerance=found.tolerance,
        versions={"edgemem": __version__, **{n: metadata.version(n) for n in ("torch", "onnx", "onnxruntime")}},
    )
    contract = contract.model_copy(update={"parity": (certificate,)})
    save(model, contract, path, limit)
    return contract


def save(model: ir.Model, contract: Contract, path: Path, limit: int) -> None:
    """Write the model with its contract; weights of `limit` bytes or more lie in `NAME.data` beside it."""
    model.metadata_props[contracts.KEY] = contracts.encode(contract)
    weights = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{path.name}.data" if weights >= limit else None)
