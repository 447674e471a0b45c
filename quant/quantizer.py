"""ONNX + contract -> smaller ONNX + contract, checked before it takes its name.

    report = quantize("m.onnx", "q.onnx", "w8")

The stages: refuse what cannot be quantized, `graph.prepare`, the scheme, float16 for the vectors that are left, a
comparison with the parent over 512 steps (the certificate), one atomic write. Equal input, equal bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgemem import __version__, coarse
from edgemem import contract as contracts
from edgemem.compare import Comparison
from edgemem.contract import Certificate, Contract
from edgemem.errors import ContractError, UsageError
from edgemem.evaluation import evaluate, fitting
from edgemem.files import atomic_path, check_output
from edgemem.inspect import state_bytes
from edgemem.modelfile import ModelFile, open_model
from edgemem.narrow import as_parent, helper
from edgemem.program import Program, load
from edgemem.quant import calibration, graph
from edgemem.quant import state as states
from edgemem.quant.arguments import check_arguments
from edgemem.quant.scheme import Job, Scheme, StageTick, TensorChoice, parsed, silent
from edgemem.tasks import Score
from edgemem.trial import trial
from edgemem.weights import stored_digest

CERTIFIED_STEPS = 512
FOLLOWED = 256  # steps of calibration data over which outputs are compared
MOST_ERROR = 0.1  # of an output's RMS there, from which on it is said
MOST_APART = 0.5  # of a tensor's largest value, on random inputs, where there is no data
SMALLEST_ELEMENTS = 512  # smaller matrices stay float32: they cost little, and those of recurrences matter much


@dataclass(frozen=True)
class Report:
    """What a scheme did to a model. Bytes are those of the initializers; errors are of outputs and states.

    `max_rel_error` is the largest error against the parent, relative to the largest value of that tensor.
    """

    scheme: str
    settings: Mapping[str, int | str]
    bytes_before: int
    bytes_after: int
    state_bytes_before: int
    state_bytes_after: int
    tensors: tuple[TensorChoice, ...]
    states: Mapping[str, str]  # the policy of each
    certificate: Certificate
    relative_tolerance: float | None = None  # what `verify` allows, of each tensor's largest value
    rms_tolerance: float | None = None  # or, where that would prove nothing, of each output's RMS
    output_error: float | None = None  # RMS of the worst output over calibration data, relative to its own
    skipped: tuple[TensorChoice, ...] = ()  # matrices that are too small to be worth it
    warnings: tuple[str, ...] = ()
    quality: Mapping[str, Any] | None = None

    @property
    def ratio(self) -> float:
        return self.bytes_after / self.bytes_before

    def to_json(self) -> dict[str, Any]:
        """Plain data, as the command line prints it."""
        return {
            "scheme": self.scheme,
            "settings": dict(self.settings),
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "ratio": self.ratio,
            "state_bytes_before": self.state_bytes_before,
            "state_bytes_after": self.state_bytes_after,
            "states": dict(self.states),
            "tensors": [asdict(choice) for choice in self.tensors],
            "skipped": [asdict(choice) for choice in self.skipped],
            "relative_tolerance": self.relative_tolerance,
            "rms_tolerance": self.rms_tolerance,
            "output_error": self.output_error,
            "certificate": self.certificate.model_dump(mode="json"),
            "warnings": list(self.warnings),
            "quality": dict(self.quality or {}),
        }


def quantize(
    path_in: str | Path,
    path_out: str | Path,
    scheme: str = "w8",
    *,
    calibrate: str | Path | None = None,
    exclude: Sequence[str] = (),
    state: str = "f32",
    state_budget: float = states.BUDGET,
    smallest: int = SMALLEST_ELEMENTS,
    task: str | None = None,
    steps: int = CERTIFIED_STEPS,
    tick: StageTick = silent,
) -> Report:
    """Quantize a model file by `scheme` (`w8`, `vq:dim=4,codes=256`, … see `edgemem.quant.scheme`).

    `calibrate` is data for the schemes that look at activations (see `edgemem.quant.calibration.read`); a shipped model
    has its own. `exclude` holds globs of tensor names that stay as they are, matrices of fewer than `smallest`
    elements stay float32. `state` is how states are stored (see `edgemem.quant.state`), `auto` the narrowest that keeps
    the relative error of the outputs within `state_budget` over 5000 steps, or with `task`, what the task's metric
    loses. The result is compared with the parent over `steps` steps. `task` (see `edgemem.tasks`)
    judges both files by its excerpt. `tick` hears of every stage, and of the share of it that is done.

    Raises:
        ModelFileError, ContractError: the input is not a model with a valid contract, or is quantized already.
        UsageError: an argument that cannot be, an unknown scheme, setting or state policy, a glob that names nothing,
            no calibration data where it is needed, no matrix of `smallest` elements, a result no smaller than the
            model, or an output that cannot be written.
        InputError: calibration data that the model cannot take, a task that does not fit it.
    """
    check_arguments(scheme, exclude, state, state_budget, smallest, steps)
    chosen, settings = parsed(scheme)
    model = wanted_model(Path(path_in), Path(path_out), state, task)
    job = Job(ir.load(model.path), model.contract, model.path, settings, tuple(exclude), smallest, tick=tick)
    data = None
    if chosen.uses_data or state != "f32" or calibrate is not None:
        needed = chosen.needs_data or state not in ("f32", "f16")
        wanting = scheme if chosen.needs_data else f"{scheme} with {state} states"
        data = calibration.wanted_data(model.contract, calibrate, wanting, needed)
    keep = {s.start for s in model.contract.states if isinstance(s.start, str)}
    if rewrite(job, chosen, keep, data) == 0 and chosen.weights and job.skipped and state == "f32":
        raise UsageError(
            f"no tensor of {model.path} has {smallest} elements, so nothing was quantized: the largest matrix, "
            f"{job.skipped[0].name}, has {job.skipped[0].bytes_before // 4}; lower --smallest"
        )
    contract, found_states = narrow_states(job, state, state_budget, data, task)
    finish(job, {s.start for s in contract.states if isinstance(s.start, str)})
    contract = contract.model_copy(update={"quant": facts(job, chosen, model, data) | found_states})
    with atomic_path(Path(path_out)) as temporary:
        error = certified(job, contract, chosen, temporary, steps, data)
        report = replace(report_of(job, chosen.name, model, open_model(temporary)), output_error=error)
        check_smaller(report, model)
        return replace(report, quality=judged(task, model.path, temporary, tick) if task else {})


def wanted_model(path_in: Path, path_out: Path, state: str, task: str | None) -> ModelFile:
    """The model to be quantized, when all that can be refused before any work has been looked at.

    Raises:
        ModelFileError, ContractError, UsageError, InputError: as `quantize`.
    """
    states.check_policy(state)
    check_output(path_out)
    model = open_model(path_in)
    check_float(model)
    check_places(model.path, path_out)
    if task is not None:
        fitting(load(model.path), task)
    return model


def certified(
    job: Job, contract: Contract, scheme: Scheme, path: Path, steps: int, data: calibration.Data | None
) -> float | None:
    """Write the file, compare it with its parent over `steps` steps, and write it again with the certificate.

    Gives the error of the outputs on `data`; warns where that, or without data the certificate's, is large.
    """
    save(job.model, contract, path)
    parent = load(job.parent)
    written = open_model(path)
    candidate = as_parent(written, load(path), parent)
    found = trial(parent, candidate, steps, tick=counted(job.tick, "comparing", steps))
    outputs = [port.name for port in contract.outputs]
    quant = {**contract.quant, **coarse.tolerances(found, outputs), "stored": stored_digest(written)}
    parity = (*contract.parity, certificate(found, scheme.name, steps, quant, outputs))
    contract = contract.model_copy(update={"parity": parity, "quant": quant})
    save(job.model, contract, path)
    error = None if data is None else output_error(parent, candidate, data, min(steps, FOLLOWED))
    job.warnings.extend(warnings_of(scheme, found, outputs, error, data))
    return error


def report_of(job: Job, scheme: str, parent: ModelFile, result: ModelFile) -> Report:
    """What was done to `parent`, from the file that came of it."""
    contract = result.contract
    report = Report(
        scheme,
        job.settings,
        parent.onnx.weight_bytes,
        result.onnx.weight_bytes,
        state_bytes(parent),
        state_bytes(result),
        tuple(job.choices),
        {s.name: str(s.quant["policy"]) for s in contract.states if not helper(s)},
        contract.parity[-1],
        *coarse.claims(contract.quant),
        skipped=tuple(job.skipped),
        warnings=tuple(job.warnings),
    )
    more, saved = report.bytes_after - report.bytes_before, report.state_bytes_before - report.state_bytes_after
    if more <= 0 or saved <= 0:  # `check_smaller` refuses a larger file that saves no state
        return report
    streams = (
        f"the codebooks add {more} bytes to the file, each stream's state saves {saved}: smaller from "
        f"{-(-more // saved)} streams on"
    )
    return replace(report, warnings=(*report.warnings, streams))


def output_error(parent: Program, child: Program, data: calibration.Data, count: int) -> float:
    """RMS error of the worst output on `count` steps of calibration data, relative to its own RMS; one run."""
    left, right, found = parent.new_state(), child.new_state(), Comparison()
    names = [port.name for port in parent.contract.outputs]
    for step, inputs in calibration.steps(parent.contract, data, count, runs=()):
        wanted = {name: value.copy() for name, value in parent.step(inputs, left).items()}
        came = child.step(inputs, right)
        for name in names:
            found.add(step, name, wanted[name], came[name])
    return coarse.worst_output(found, names)[1].rms_ratio


def warnings_of(
    scheme: Scheme, found: Comparison, outputs: Sequence[str], error: float | None, data: calibration.Data | None
) -> list[str]:
    """What a user should know of a result that is far from its parent, above all that no proof of it can hold."""
    output, worst = coarse.worst_output(found, outputs)
    if worst.rms_ratio > coarse.MOST:
        said = (
            f"on random inputs {output} is off by {worst.rms_ratio:.0%} of its size (RMS), and zeros by 100%: `verify` "
            f"fails beyond {coarse.MOST:.0%}"
        )
    elif error is not None and data is not None and error > MOST_ERROR:
        said = f"on the calibration data ({data.source}) the outputs are off by {error:.0%} of their size (RMS)"
    elif error is None and found.max_rel_error > MOST_APART:
        name, tensor = found.worst
        said = (
            f"on random inputs {name} is off by up to {tensor.max_abs_error:.2g}, of at most {tensor.max_reference:.2g}"
        )
    else:
        return []
    more = "calibrate with more data, take a scheme that scales in every step (w8a8-dynamic), "
    what = "leave the tensors of the largest error out by --exclude, or take more bits, as w8 does"
    return [f"{said}: {more if scheme.needs_data else ''}{what}"]


def counted(tick: StageTick, stage: str, total: int) -> Callable[[], None]:
    """A call after each of `total` steps of a stage."""
    done = itertools.count(1)
    return lambda: tick(stage, next(done) / total)


def judged(task: str, parent: Path, path: Path, tick: StageTick) -> dict[str, Any]:
    """A task's metric of both files, streamed."""
    before = evaluate(parent, task, tick=lambda share: tick(f"{task}, before", share))
    after = evaluate(path, task, tick=lambda share: tick(f"{task}, after", share))
    return {"task": task, "metric": after.score.metric, "before": before.score.value, "after": after.score.value}


def narrow_states(
    job: Job, policy: str, budget: float, data: calibration.Data | None, task: str | None
) -> tuple[Contract, dict[str, Any]]:
    """Store the states by `policy`; the contract with its new states, and what the choice was measured by."""
    contract = job.contract
    if policy == "f32":
        return contract, {}
    if policy != "auto":
        chosen = states.chosen_policies(policy, contract)
    names = [end for s in contract.states if states.may_be_narrow(s) for end in (s.input, s.output)]
    largest: dict[str, Any] = {}
    if data is not None:
        seen = calibration.observed(
            job.model, contract, data, names, states.DRIFT_STEPS, tick=partial(job.tick, "rolling states")
        )
        largest = states.scales(contract, seen)
    measured: dict[str, Any] = {"policy": policy}
    if policy == "auto":
        assert data is not None
        loss = metric_loss(job, largest, task) if task else None
        chosen, measured = states.automatic(
            job.model,
            contract,
            data,
            largest,
            budget,
            states.DRIFT_STEPS,
            loss,
            tick=partial(job.tick, "choosing states"),
        )
        measured |= {"task": task} if task else {}
    return states.rewrite(job.model, contract, chosen, largest), {"states": measured}


def metric_loss(job: Job, largest: Mapping[str, Any], task: str) -> Callable[[Mapping[str, str]], float]:
    """By what share a task's metric becomes worse when the states are stored by given policies."""

    def score(chosen: Mapping[str, str]) -> Score:
        trial_job = replace(job, model=ir.from_proto(ir.to_proto(job.model)))
        contract = states.rewrite(trial_job.model, job.contract, chosen, largest)
        finish(trial_job, {s.start for s in contract.states if isinstance(s.start, str)})
        with tempfile.TemporaryDirectory() as folder:
            save(trial_job.model, contract, Path(folder) / "trial.onnx")
            return evaluate(Path(folder) / "trial.onnx", task).score

    wide = score({})
    return lambda chosen: score(chosen).worse_than(wide)


def check_float(model: ModelFile) -> None:
    """Refuse a file that has been quantized.

    Raises:
        ContractError: naming its scheme.
    """
    scheme = model.contract.quant.get("scheme", "none")
    if scheme != "none":
        raise ContractError(
            f"{model.path} is quantized already (scheme {scheme}); quantize the float file that it was made from"
        )


def check_places(path_in: Path, path_out: Path) -> None:
    """Refuse to write over the model that is quantized: it is what the result is compared with, ever after.

    Raises:
        UsageError: both paths are one file.
    """
    if path_out.exists() and path_out.samefile(path_in):
        raise UsageError(f"the result would replace {path_in}, which `verify --reference` needs; write to another file")


def rewrite(job: Job, scheme: Scheme, keep: set[str], data: calibration.Data | None = None) -> int:
    """All edits of the graph, in place; the number of constants that the scheme itself rewrote.

    Raises:
        UsageError: a glob that names no constant.
    """
    before = set(job.model.graph.initializers)
    for glob in job.exclude:
        lone = Job(job.model, job.contract, job.parent, {}, (glob,))
        if not any(lone.excluded(name) for name in before):
            raise UsageError(f"--exclude {glob!r} names no tensor; `edgemem inspect --json` lists them")
    graph.prepare(job.model, keep)
    job.skipped = too_small(job) if scheme.weights else []
    if data is not None:
        tick = partial(job.tick, "calibrating")
        job.calibration = calibration.Calibration(job.model, job.contract, data, tick=tick)
    scheme.apply(job)
    rewritten = len(job.choices)
    if scheme.weights and not rewritten:
        job.warnings.append(
            f"no matrix of {job.smallest} elements or more was left to {scheme.name}: vectors become float16, no more; "
            "lower --smallest, or exclude less"
        )
    done = {choice.name for choice in job.choices} if scheme.weights else set(job.model.graph.initializers)
    for value in list(graph.small_floats(job.model, done, keep, job.smallest)):
        if not job.excluded(str(value.name)):
            warn_of_product(job, scheme, value)
            _, array = graph.halve(job.model, value)
            job.record(str(value.name), array, array.astype(np.float16).astype(np.float32), "float16", array.size * 2)
    return rewritten


def warn_of_product(job: Job, scheme: Scheme, value: ir.Value) -> None:
    """Say so where a large matrix becomes float16 for the operator that reads it."""
    readers = sorted({node.op_type for node, _ in value.uses()} & graph.PRODUCTS)
    array = graph.numpy_of(value)
    if readers and array.size >= job.smallest and scheme.name != "f16":
        job.warnings.append(
            f"{value.name} {list(array.shape)} becomes float16, no less: {', '.join(readers)} reads it, and "
            f"{scheme.name} takes matrices [in, out] that MatMul, Gemm, Conv or Gather read; write the product as x @ W"
        )


def too_small(job: Job) -> list[TensorChoice]:
    """The matrices that stay float32 for their size, the largest first."""
    found = [w for w in graph.weights(job.model, 0) if w.array.size < job.smallest and not job.excluded(w.name)]
    reason = f"float32, fewer than {job.smallest} elements"
    return [
        TensorChoice(w.name, tuple(w.array.shape), reason, w.array.nbytes, w.array.nbytes, 0.0, 0.0)
        for w in sorted(found, key=lambda w: -w.array.size)
    ]


def finish(job: Job, keep: set[str]) -> None:
    """Leave out what nothing reads, put the nodes in order, and note every shape."""
    graph.drop_unused(job.model, keep)
    common.TopologicalSortPass()(job.model)
    common.ShapeInferencePass()(job.model)


def facts(job: Job, scheme: Scheme, model: ModelFile, data: calibration.Data | None) -> dict[str, Any]:
    """The contract's `quant` field."""
    return {
        "scheme": scheme.name,
        "settings": dict(job.settings),
        "tensors": {choice.name: choice.choice for choice in job.choices},
        "exclude": list(job.exclude),
        "calibration": data.digest if data else None,
        "parent": hashlib.sha256(model.path.read_bytes()).hexdigest(),
    }


def certificate(
    found: Comparison, scheme: str, steps: int, quant: Mapping[str, Any], outputs: Sequence[str]
) -> Certificate:
    """The errors against the parent, and what the contract's `quant` field allows of the worst tensor.

    Where that claims RMS errors alone, they are those of the worst output.
    """
    versions = {"edgemem": __version__, **{n: metadata.version(n) for n in ("onnx-ir", "onnxruntime")}}
    relative, rms = coarse.claimed(quant)
    if relative is None:
        _, output = coarse.worst_output(found, outputs)
        return Certificate(
            stage=f"{scheme} RMS",
            reference="parent",
            steps=steps,
            max_abs_error=output.rms_error,
            max_rel_error=output.rms_ratio,
            tolerance=coarse.rms_allowed(output, rms),
            versions=versions,
        )
    ratios = {n: t.max_abs_error / t.max_reference for n, t in found.tensors.items() if t.max_reference}
    worst = found.tensors[max(ratios, key=lambda name: ratios[name])] if ratios else found.worst[1]
    return Certificate(
        stage=scheme,
        reference="parent",
        steps=steps,
        max_abs_error=worst.max_abs_error,
        max_rel_error=max(ratios.values(), default=0.0),
        tolerance=max(1e-6, relative * worst.max_reference),
        versions=versions,
    )


def check_smaller(report: Report, model: ModelFile) -> None:
    """Refuse a result that is no smaller than its parent.

    Raises:
        UsageError: with both sizes.
    """
    if report.state_bytes_after < report.state_bytes_before:
        return
    if not report.tensors:
        raise UsageError(
            f"scheme {report.scheme} would not shrink {model.path}: every tensor is excluded or too small; "
            "exclude less, lower --smallest (elements of a matrix), or keep the float file"
        )
    if report.bytes_after >= report.bytes_before:
        raise UsageError(
            f"scheme {report.scheme} would not shrink {model.path}: {report.bytes_before} bytes before, "
            f"{report.bytes_after} after, {len(report.tensors)} tensors rewritten; "
            "lower --smallest (elements of a matrix), exclude less, or keep the float file"
        )


def save(model: ir.Model, contract: Contract, path: Path) -> None:
    """Write the model with its contract, weights inside."""
    model.metadata_props[contracts.KEY] = contracts.encode(contract)
    ir.save(model, path)
