"""Does a model file compute what its torch module computes? The same inputs, compared step by step.

    weights         every parameter against the digest recorded at export; a quantized file's tensors against theirs
    torch           the step form against the whole-sequence form, in torch
    RUNTIME         a runtime against torch: outputs and states, from the start, from warm and from random states
    RUNTIME reset   a stream filled with NaN and reset, against a fresh one: bit for bit
    SCHEME          a quantized file against its parent, within what its certificate allows (see `edgemem.coarse`)
    SCHEME RMS      the outputs of that run as a whole, which may be off by 0.9 of their size at the very most

The torch module is rebuilt from the contract's configuration and the file's initializers. A stage holds if and only
if `max_abs_error` <= `tolerance`, which is 1e-5 of the largest reference value of the worst tensor, at least 1e-6, and
more where rounding alone takes torch further than that from its own float64 (`edgemem.compare`).
An adopted file is compared with the foreign file that it was made from, if that is given; without it, its other
runtimes are compared with onnxruntime on the adopted file.
A quantized file is compared with its parent under onnxruntime, and its other runtimes with onnxruntime on the file.
Where a scheme rounds activations to 8 bits, two runtimes may round a number in the middle of two steps apart: there,
every step starts from onnxruntime's state, and one step of int8 is allowed; four where a step has many rows, of which
some meet such a middle in most steps, or is in integers throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem import contract as contracts
from edgemem import onnxfile
from edgemem.coarse import claimed, rms_allowed, worst_output
from edgemem.compare import HUGE, RELATIVE, Comparison
from edgemem.errors import ConfigError, ContractError, MissingDependency, UsageError
from edgemem.foreign import ForeignProgram, foreign_program, over_whole_sequence
from edgemem.modelfile import ModelFile, open_model
from edgemem.narrow import as_parent
from edgemem.program import Program, load
from edgemem.trial import poisoned, random_inputs, trial
from edgemem.weights import altered_tensors, stored_digest, stored_tensors

if TYPE_CHECKING:
    from torch import nn

    from edgemem.contract import Contract
    from edgemem.reference import TorchProgram

WEIGHTS = "weights"  # the stage that counts altered tensors
ROUNDED = "w8a8"  # schemes that begin so round activations
INT8_STEP = 1 / 127  # of a tensor's largest value
RESET_STEPS = 16  # a state left out of a reset shows at once or after it has been mixed in
FEW_STEPS = 4  # of int8, that a step in integers throughout, or one of many rows, may be away from onnxruntime's
SEQUENCE_FRAMES = 256  # of the whole-sequence form


@dataclass(frozen=True)
class Stage:
    """One line of the proof: of the tensor whose error is largest beside what is allowed of it.

    `first` names the tensor and step where the values parted, where they did.
    """

    name: str
    reference: str
    steps: int
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    drift_per_1000_steps: float
    first: str | None = None
    tensor: str | None = None  # whose errors and tolerance these are
    refused: str | None = None  # why there was nothing to compare

    @property
    def holds(self) -> bool:
        return self.max_abs_error <= self.tolerance

    @property
    def counts(self) -> bool:
        """Whether its error is a number of tensors."""
        return self.name == WEIGHTS

    def __str__(self) -> str:
        """The error beside what is allowed, in words."""
        if self.refused:
            return self.refused
        if self.counts:
            count = round(self.max_abs_error)
            return f"{count} tensor{'' if count == 1 else 's'} altered, none may be"
        where = f" in {self.tensor}" if self.tensor else ""
        return f"{self.max_abs_error:.1e} of {self.tolerance:.1e} allowed{where}, {self.steps} steps"


@dataclass(frozen=True)
class Report:
    """All stages of one file; `recorded` are certificates of stages that could not be run again."""

    stages: tuple[Stage, ...]
    recorded: tuple[Stage, ...] = ()

    @property
    def ok(self) -> bool:
        return all(stage.holds for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "stages": [{**asdict(s), "holds": s.holds} for s in self.stages],
            "recorded": [asdict(s) for s in self.recorded],
        }


def verify(
    path: Path,
    steps: int = 1000,
    runtimes: Sequence[str] = ("ort",),
    reference: Path | None = None,
    module: nn.Module | None = None,
    programs: Mapping[str, Program] | None = None,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> Report:
    """Run every stage of a model file; `tick` is called after every step.

    The reference is the file `reference` under onnxruntime if one is given, else `module`, else the zoo's module
    rebuilt from the file. A user's own module cannot be rebuilt: without any of these, the certificates of the
    contract take the place of the comparison. `programs` are more candidates by name, beside those of `runtimes`.

    Raises:
        ModelFileError, ContractError: the file, or its parent, is not a model with a valid contract.
        UsageError: `steps` below 1.
    """
    if steps < 1:
        raise UsageError(f"--steps must be at least 1, got {steps}")
    model = open_model(path)
    candidates = {name: load(path, runtime=name) for name in runtimes} | dict(programs or {})
    if model.contract.quant.get("scheme", "none") == "none" and model.contract.model.source.kind == "foreign":
        return verify_adopted(model, candidates, reference, steps, seed, tick)
    if model.contract.quant.get("scheme", "none") != "none":
        return verify_quantized(model, candidates, reference, steps, seed, tick)
    stages, base = references(model, reference, module)
    for name, program in candidates.items():
        if base is not None:
            stages.append(compared(name, base, program, steps, seed, tick))
        stages.append(reset_stage(name, program))
    recorded = certificates(model)
    return Report((*recorded, *stages) if base is None else tuple(stages), recorded)


def verify_adopted(
    model: ModelFile,
    candidates: Mapping[str, Program],
    parent: Path | None,
    steps: int,
    seed: int,
    tick: Callable[[], None],
) -> Report:
    """The stages of an adopted file: its weights, and its runtimes against the foreign file under onnxruntime.

    Without the foreign file, that comparison is shown as it was recorded, and other runtimes are compared with
    onnxruntime on the adopted file.

    Raises:
        ContractError: `parent` is not the file that was adopted.
    """
    stages, recorded = [weights_stage(model, altered_tensors(model, stored_tensors(model)))], certificates(model)
    base = load(model.path) if parent is None else foreign_program(model, parent)
    for name, program in candidates.items():
        if isinstance(base, ForeignProgram) and base.adoption.streaming:
            stages.append(stage(name, base.runtime, steps, over_whole_sequence(base, program, steps, seed, tick)))
        elif parent is not None or program.runtime != base.runtime:
            stages.append(compared(name, base, program, steps, seed, tick))
        stages.append(reset_stage(name, program))
    return Report((*recorded, *stages) if parent is None else tuple(stages), recorded)


def certificates(model: ModelFile) -> tuple[Stage, ...]:
    """What the contract says of earlier comparisons."""
    return tuple(
        Stage(c.stage, f"{c.reference} (recorded)", c.steps, c.max_abs_error, c.max_rel_error, c.tolerance, 0.0)
        for c in model.contract.parity
    )


def verify_quantized(
    model: ModelFile,
    candidates: Mapping[str, Program],
    parent: Path | None,
    steps: int,
    seed: int,
    tick: Callable[[], None],
) -> Report:
    """The stages of a quantized file: the parent's own, the scheme against the parent, runtimes against onnxruntime.

    Without the parent, both comparisons are shown as they were recorded.

    Raises:
        ContractError: `parent` is another model, or has been quantized itself.
    """
    scheme = str(model.contract.quant["scheme"])
    base, recorded = load(model.path), certificates(model)
    stages = [*stored_stages(model), *(() if parent is not None else recorded)]
    if parent is not None:
        relative, rms = claimed(model.contract.quant)
        reference = parent_program(model, parent)
        stages += float_stages(open_model(parent), reference, steps, seed)
        found = trial(
            reference, as_parent(model, base, reference), steps, seed, tick, RELATIVE if relative is None else relative
        )
        stages += [] if relative is None else [stage(scheme, "parent", steps, found)]
        stages.append(outputs_stage(scheme, steps, found, [port.name for port in model.contract.outputs], rms))
    for name, program in candidates.items():
        if program.runtime != base.runtime:
            stages.append(on_one_file(name, scheme, base, program, steps, seed, tick))
        stages.append(reset_stage(name, program))
    return Report(tuple(stages), recorded)


def outputs_stage(scheme: str, steps: int, found: Comparison, outputs: Sequence[str], share: float) -> Stage:
    """The outputs of a run as a whole: the RMS error of the worst beside `share` of its own RMS."""
    name, tensor = worst_output(found, outputs)
    allowed = rms_allowed(tensor, share)
    first = name if tensor.rms_error > allowed else None
    return Stage(
        f"{scheme} RMS", "parent", steps, tensor.rms_error, tensor.rms_ratio, allowed, 0.0, first=first, tensor=name
    )


def on_one_file(
    name: str, scheme: str, base: Program, program: Program, steps: int, seed: int, tick: Callable[[], None]
) -> Stage:
    """A runtime against onnxruntime on the same quantized file."""
    if not scheme.startswith(ROUNDED):
        return compared(name, base, program, steps, seed, tick)
    several = program.integer or base.contract.chunk.frames > 1
    allowed = INT8_STEP * (FEW_STEPS if several else 1)
    return stage(name, base.runtime, steps, trial(base, program, steps, seed, tick, allowed, together=True))


def float_stages(parent: ModelFile, program: Program, steps: int, seed: int) -> list[Stage]:
    """The parent against torch, or as it was recorded where torch or the module is not there."""
    try:
        _, base = references(parent, None, None)
    except (ImportError, MissingDependency):
        base = None
    if base is None:
        return list(certificates(parent))
    return [compared("parent", base, program, steps, seed, lambda: None)]


def references(model: ModelFile, parent: Path | None, module: nn.Module | None) -> tuple[list[Stage], Program | None]:
    """The program to compare with, and the stages that say how far it can be trusted itself."""
    if parent is not None:
        return [], parent_program(model, parent)
    from edgemem.reference import TorchProgram, rebuilt

    if module is not None:
        program = TorchProgram(module, model.contract)
        return [torch_stage(program)], program
    try:
        tensors = stored_tensors(model)
        program = rebuilt(model, tensors)
    except ConfigError:
        return [], None
    return [weights_stage(model, altered_tensors(model, tensors)), torch_stage(program)], program


def parent_program(model: ModelFile, path: Path) -> Program:
    """The parent file under onnxruntime, if its states and inputs are those of the model.

    Raises:
        ContractError: the parent is another model, or has no contract.
    """
    if path.is_file() and contracts.KEY not in onnxfile.read(path).metadata:
        raise ContractError(
            f"{path} is ONNX without a contract, and the reference of {model.path} is the float file with a contract "
            f"that it was made from; if that file was adopted from {path.name}, hold each to the one before it: "
            f"`edgemem verify FLOAT.onnx --reference {path}`, `edgemem verify {model.path} --reference FLOAT.onnx`"
        )
    parent = load(path)
    if model.contract.quant.get("scheme", "none") != "none":
        check_parent(model, parent.contract, path)
    for field in ("inputs", "outputs"):
        ours = [(port.name, port.shape) for port in getattr(model.contract, field)]
        theirs = [(port.name, port.shape) for port in getattr(parent.contract, field)]
        if ours != theirs:
            raise ContractError(f"{path} is not the parent of {model.path}: its {field} are {theirs}, not {ours}")
    return parent


def check_parent(model: ModelFile, parent: Contract, path: Path) -> None:
    """Refuse a parent with other weights, or one that is quantized itself.

    Raises:
        ContractError: naming both files, with their digests and schemes.
    """
    if parent.quant.get("scheme", "none") != "none" or parent.model.digest != model.contract.model.digest:
        raise ContractError(
            f"{path} is not the parent of {model.path}: a float file of {model.contract.model.name} with weights "
            f"{model.contract.model.digest[:12]}… was wanted, {parent.model.name} with {parent.model.digest[:12]}…, "
            f"scheme {parent.quant.get('scheme', 'none')}, came; give the file that was quantized"
        )


def unbuilt(name: str, reason: Exception) -> Stage:
    """The stage of a board that cannot have the program; it fails."""
    return Stage(name, "budget", 0, 1.0, 1.0, 0.0, 0.0, first="the build", refused=str(reason))


def weights_stage(model: ModelFile, altered: Sequence[str]) -> Stage:
    """Counts the parameters that differ from the digests recorded at export; one is too many."""
    count = float(len(altered))
    first = f"{altered[0]}, which differs from its digest" if altered else None
    return Stage(WEIGHTS, "contract", 0, count, count, 0.0, 0.0, first)


def stored_stages(model: ModelFile) -> list[Stage]:
    """A quantized file's tensors against their digest, which has no names; none of a file that has no digest."""
    wanted = model.contract.quant.get("stored")
    return [] if wanted is None else [weights_stage(model, [] if stored_digest(model) == wanted else ["a tensor"])]


def torch_stage(program: TorchProgram) -> Stage:
    """The step form of the torch module against its whole-sequence form."""
    import torch

    from edgemem.module import extent, scan

    contract = program.contract
    rng = np.random.default_rng(0)
    chunks = [random_inputs(contract, rng) for _ in range(max(2, SEQUENCE_FRAMES // contract.chunk.frames))]
    ports = [port.name for port in contract.inputs if port.role != "valid"]
    whole = {name: torch.from_numpy(np.concatenate([c[name] for c in chunks], axis=1)) for name in ports}
    x: Any = whole if len(ports) > 1 else whole[ports[0]]
    frames = contract.chunk.frames_per_unit
    with torch.no_grad():
        stepped, _ = scan(program.module, x, sizes=[frames])
        at_once = program.module(x) if has_forward(program.module) else scan(program.module, x)[0]
    found = Comparison()
    for frame in range(extent(x)[1]):
        found.add(frame, contract.outputs[0].name, at_once[:, frame].numpy(), stepped[:, frame].numpy())
    return stage("torch", "forward", extent(x)[1] // frames, found)


def has_forward(module: nn.Module) -> bool:
    """Whether a module has a whole-sequence form of its own."""
    from torch import nn

    return type(module).forward is not nn.Module.forward


def compared(name: str, base: Program, program: Program, steps: int, seed: int, tick: Callable[[], None]) -> Stage:
    """A runtime against the reference."""
    return stage(name, base.runtime, steps, trial(base, program, steps, seed, tick))


def reset_stage(name: str, program: Program) -> Stage:
    """A poisoned and reset stream against a fresh one; any differing bit counts."""
    worst, first = 0.0, None
    for step, tensor, error in reset_errors(program):
        if error > worst:
            worst, first = error, first or f"{tensor} at step {step} after the reset"
    return Stage(f"{name} reset", "fresh stream", RESET_STEPS, worst, worst, 0.0, 0.0, first)


def reset_errors(program: Program) -> Iterator[tuple[int, str, float]]:
    """For every differing tensor: step, name, largest difference (of NaN, or of 0 and -0: the largest float)."""
    tensors = len(program.contract.outputs) + len(program.contract.states)  # of each step
    for index, (name, wanted, came) in enumerate(poisoned(program, RESET_STEPS)):
        if wanted.tobytes() == came.tobytes():
            continue
        difference = float(np.abs(wanted.astype(np.float64) - came.astype(np.float64)).max())
        measurable = np.isfinite(difference) and difference > 0
        yield index // tensors, name, difference if measurable else float(np.finfo(np.float32).max)


def stage(name: str, reference: str, steps: int, found: Comparison) -> Stage:
    """One line of the report, from what a comparison found."""
    if found.undefined is not None:
        reason = f"{reference} itself gives {found.undefined}, from finite inputs: there is nothing to be equal to"
        return Stage(name, reference, steps, HUGE, HUGE, 0.0, 0.0, first=found.undefined, refused=reason)
    return Stage(
        name,
        reference,
        steps,
        found.max_abs_error,
        found.max_rel_error,
        found.tolerance,
        found.drift_per_1000_steps,
        found.first_divergence,
        found.worst[0] if found.tensors else None,
    )
