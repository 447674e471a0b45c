"""ONNX + contract -> smaller ONNX + contract, checked before it takes its name.

    report = quantize("m.onnx", "q.onnx", "w8")

The stages: refuse what cannot be quantized, `graph.prepare`, the scheme, float16 for the vectors that are left, a
comparison with the parent over 512 steps (the certificate), one atomic write. Equal input, equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgemem import __version__, onnxfile
from edgemem import contract as contracts
from edgemem.compare import Comparison
from edgemem.contract import Certificate, Contract
from edgemem.errors import ContractError, UsageError
from edgemem.files import atomic_path
from edgemem.modelfile import ModelFile, open_model
from edgemem.program import load
from edgemem.quant import calibration, graph
from edgemem.quant.scheme import Job, Scheme, TensorChoice, parsed
from edgemem.trial import trial

CERTIFIED_STEPS = 512
HEADROOM = 2.0  # a longer run on other inputs meets larger errors than the certificate's
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
    tensors: tuple[TensorChoice, ...]
    certificate: Certificate
    warnings: tuple[str, ...] = ()
    quality: Mapping[str, float] | None = None

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
            "tensors": [asdict(choice) for choice in self.tensors],
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
    smallest: int = SMALLEST_ELEMENTS,
    steps: int = CERTIFIED_STEPS,
    tick: Callable[[], None] = lambda: None,
) -> Report:
    """Quantize a model file by `scheme` (`w8`, `vq:dim=4,codes=256`, … see `edgemem.quant.scheme`).

    `calibrate` is data for the schemes that look at activations (see `edgemem.quant.calibration.read`); a shipped model
    has its own. `exclude` holds globs of tensor names that stay as they are, matrices of fewer than `smallest`
    elements stay float32. The result is compared with the parent over `steps` steps; `tick` is called after each.

    Raises:
        ModelFileError, ContractError: the input is not a model with a valid contract, or is quantized already.
        UsageError: an unknown scheme or setting, a glob that names nothing, no calibration data where it is needed, a
            result no smaller than the model.
        InputError: calibration data that the model cannot take.
    """
    chosen, settings = parsed(scheme)
    model = open_model(path_in)
    check_float(model)
    job = Job(ir.load(model.path), model.contract, model.path, settings, tuple(exclude), smallest)
    keep = {state.start for state in model.contract.states if isinstance(state.start, str)}
    data = (
        calibration.wanted_data(model.contract, calibrate, chosen.name, chosen.needs_data) if chosen.uses_data else None
    )
    rewrite(job, chosen, keep, data)
    contract = model.contract.model_copy(update={"quant": facts(job, chosen, model)})
    with atomic_path(Path(path_out)) as temporary:
        save(job.model, contract, temporary)
        found = trial(load(model.path), load(temporary), steps, tick=tick)
        certificate = certified(found, chosen.name, steps)
        contract = contract.model_copy(
            update={
                "parity": (*contract.parity, certificate),
                "quant": {**contract.quant, "relative_tolerance": relative_tolerance(found)},
            }
        )
        save(job.model, contract, temporary)
        report = Report(
            chosen.name,
            settings,
            model.onnx.weight_bytes,
            onnxfile.read(temporary).weight_bytes,
            tuple(job.choices),
            certificate,
            tuple(job.warnings),
        )
        check_smaller(report, model)
    return report


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


def rewrite(job: Job, scheme: Scheme, keep: set[str], data: calibration.Data | None = None) -> None:
    """All edits of the graph, in place.

    Raises:
        UsageError: a glob that names no constant.
    """
    before = set(job.model.graph.initializers)
    for glob in job.exclude:
        lone = Job(job.model, job.contract, job.parent, {}, (glob,))
        if not any(lone.excluded(name) for name in before):
            raise UsageError(f"--exclude {glob!r} names no tensor; `edgemem inspect --json` lists them")
    graph.prepare(job.model, keep)
    if data is not None:
        job.calibration = calibration.Calibration(job.model, job.contract, data)
    scheme.apply(job)
    done = {choice.name for choice in job.choices}
    for value in list(graph.small_floats(job.model, done, keep, job.smallest)):
        if not job.excluded(str(value.name)):
            _, array = graph.halve(job.model, value)
            job.record(str(value.name), array, array.astype(np.float16).astype(np.float32), "float16", array.size * 2)
    graph.drop_unused(job.model, keep)
    common.TopologicalSortPass()(job.model)
    common.ShapeInferencePass()(job.model)


def facts(job: Job, scheme: Scheme, model: ModelFile) -> dict[str, Any]:
    """The contract's `quant` field."""
    return {
        "scheme": scheme.name,
        "settings": dict(job.settings),
        "tensors": {choice.name: choice.choice for choice in job.choices},
        "exclude": list(job.exclude),
        "calibration": job.calibration.digest if job.calibration else None,
        "parent": hashlib.sha256(model.path.read_bytes()).hexdigest(),
    }


def relative_tolerance(found: Comparison) -> float:
    """What `verify` allows, relative to the largest reference value of each tensor."""
    worst = max((t.max_abs_error / t.max_reference for t in found.tensors.values() if t.max_reference), default=0.0)
    return float(f"{HEADROOM * worst:.3g}")


def certified(found: Comparison, scheme: str, steps: int) -> Certificate:
    """The errors against the parent; the tolerance is what `relative_tolerance` allows of the worst tensor."""
    ratios = {n: t.max_abs_error / t.max_reference for n, t in found.tensors.items() if t.max_reference}
    worst = found.tensors[max(ratios, key=lambda name: ratios[name])] if ratios else found.worst[1]
    return Certificate(
        stage=scheme,
        reference="parent",
        steps=steps,
        max_abs_error=worst.max_abs_error,
        max_rel_error=max(ratios.values(), default=0.0),
        tolerance=max(1e-6, relative_tolerance(found) * worst.max_reference),
        versions={"edgemem": __version__, **{n: metadata.version(n) for n in ("onnx-ir", "onnxruntime")}},
    )


def check_smaller(report: Report, model: ModelFile) -> None:
    """Refuse a result that is no smaller than its parent.

    Raises:
        UsageError: with both sizes.
    """
    if report.bytes_after >= report.bytes_before or not report.tensors:
        raise UsageError(
            f"scheme {report.scheme} would not shrink {model.path}: {report.bytes_before} bytes before, "
            f"{report.bytes_after} after, {len(report.tensors)} tensors rewritten; "
            "lower --smallest (elements of a matrix), exclude less, or keep the float file"
        )


def save(model: ir.Model, contract: Contract, path: Path) -> None:
    """Write the model with its contract, weights inside."""
    model.metadata_props[contracts.KEY] = contracts.encode(contract)
    ir.save(model, path)
