"""Other engines beside edgemem's, each in a virtual environment and a process of its own, measured in the same rounds.

    onnxruntime   with I/O binding, from the ONNX file
    openvino      on the CPU, from the ONNX file
    litert        LiteRT (XNNPACK), from the torch module through litert-torch: models of the zoo

NAME-int8, NAME-int4 (and onnxruntime-blocks8) are the engine's own quantization of a float32 model, as its makers
advise for the CPU; a quantized file of edgemem's is then measured beside its original in that form. The environments
lie in the user's cache, each beside a note of what was installed. A peer that does not compute what onnxruntime
computes is not timed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.errors import CheckFailed, EdgememError, MissingDependency, PeerError, UsageError
from edgemem.modelfile import ModelFile, start_values
from edgemem.program import Array

WORKER = Path(__file__).with_name("worker.py")
FOLDER = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgemem" / "peers"
NOTE = "edgemem-peer.txt"  # written last: an environment without it was cut off, or is of other versions
CHECKED = 8  # steps whose outputs are compared with onnxruntime's
FORMS: Mapping[str, Sequence[str]] = {
    "onnxruntime": ("", "int8", "blocks8", "int4"),
    "openvino": ("", "int8", "int4"),
    "litert": ("", "int8", "int4"),
}
# Of the largest output, over a few steps, by form: another engine's rounding, or its own quantization. Of a quantized
# file too, where engines round activations to int8 by themselves. What computes something else is off by 1 and more.
RELATIVE = {"": 1e-3, "int8": 0.1, "blocks8": 0.1, "int4": 0.7}
PACKAGES: Mapping[str, str] = {
    "onnxruntime": "onnxruntime==1.32.0 onnx==1.23.2 onnx-ir==1.1.0 numpy",
    "openvino": "openvino==2026.4.1 nncf==3.4.0 numpy",
    "litert": "litert-torch==0.10.0 ai-edge-litert==2.3.0 ai-edge-quantizer==0.10.0 torch==2.13.0 numpy",
}


@dataclass(frozen=True)
class Skipped:
    """A peer that does not run a file, and why."""

    runtime: str
    file: str
    reason: str


class Peer:
    """A running worker; `round` lets it step for a while."""

    def __init__(self, name: str, python: Path, folder: Path, threads: int) -> None:
        self.name = name
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._process = subprocess.Popen(
            [python, WORKER, engine_of(name)[0], folder, str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._line("ready")

    def round(self, seconds: float) -> list[float]:
        """Microseconds of single steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        times: list[float] = json.loads(self._line("["))
        return times

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self, wanted: str) -> str:
        """The next line that begins like this; engines print of their own."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(wanted):
                return line
        _, error = self._process.communicate()
        raise PeerError(f"{self.name} ended before its answer: {last_line(error)}")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def names() -> list[str]:
    """All peers: every engine, and the forms that it makes of a model."""
    return [engine + (f"-{form}" if form else "") for engine in PACKAGES for form in FORMS[engine]]


def engine_of(name: str) -> tuple[str, str]:
    """An engine, and the form of its weights: "" for the file's own.

    Raises:
        UsageError: no such peer.
    """
    if name not in names():
        raise UsageError(f"--against {name}: there are {', '.join(names())}")
    engine, _, form = name.partition("-")
    return engine, form


def interpreter(name: str) -> Path:
    """Python of a peer's environment.

    Raises:
        UsageError: no such peer.
        MissingDependency: its environment is not there.
    """
    engine, _ = engine_of(name)
    folder = FOLDER / engine
    note = folder / NOTE
    if not note.is_file() or note.read_text() != PACKAGES[engine]:
        raise MissingDependency(
            f"{name} wants an environment of its own with {PACKAGES[engine]}, and {folder} is not that; "
            "--install-peers makes it"
        )
    return folder / "bin" / "python"


def install(name: str) -> None:
    """Make a peer's environment, if it is not there.

    Raises:
        UsageError: no such peer.
        MissingDependency: one of its packages cannot be installed here; nothing is left.
    """
    try:
        interpreter(name)
    except MissingDependency:
        engine, _ = engine_of(name)
        folder = FOLDER / engine
        shutil.rmtree(folder, ignore_errors=True)
        command("make an environment for", engine, "venv", "--without-pip", str(folder))
        command("install", engine, "pip", "--python", str(folder), "install", "-q", *PACKAGES[engine].split())
        (folder / NOTE).write_text(PACKAGES[engine])


def command(what: str, name: str, *arguments: str) -> None:
    """Run a module of this Python.

    Raises:
        MissingDependency: it fails; what it had made is removed.
    """
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        raise MissingDependency(f"cannot {what} {name} ({PACKAGES[name]}): {last_line(done.stderr)}")


def started(
    name: str,
    model: ModelFile,
    chunks: Mapping[str, Array],
    threads: int,
    work: Path,
    original: ModelFile | None = None,
) -> Peer | Skipped:
    """A peer with the model loaded, or the reason why it does not run it.

    `chunks` [count, *shape] by input; `work` is an empty folder that outlives the peer; `original` is the float32 model
    of a quantized one, of which a peer makes its own form.
    """
    python, (_, form) = interpreter(name), engine_of(name)
    peer = None
    try:
        source = prepared(name, form, model, original)
        write_job(source, chunks, form, work)
        if name.startswith("litert"):
            converted(source, python, work)
        if form:
            worker(f"{name} cannot make its own form", python, "narrow", name, str(work))
        peer = Peer(name, python, work, threads)
        rounded = form or ("" if source.contract.quant.get("scheme") == "none" else "int8")
        check_outputs(source, name, chunks, dict(np.load(work / "outputs.npz")), RELATIVE[rounded])
    except EdgememError as error:
        if peer is not None:
            peer.close()
        return Skipped(name, str(model.path), str(error))
    return peer


def prepared(name: str, form: str, model: ModelFile, original: ModelFile | None) -> ModelFile:
    """The model that a peer starts from.

    Raises:
        UsageError: a quantized one, where a peer has to make its own form.
    """
    source = model if original is None or not form else original
    if form and source.contract.quant.get("scheme") != "none":
        raise UsageError(f"{name} is made of a float32 model; {source.path.name} is quantized")
    return source


def write_job(model: ModelFile, chunks: Mapping[str, Array], form: str, work: Path) -> None:
    """What the worker reads."""
    contract = model.contract
    job = {"model": str(model.path.resolve()), "folder": str(work), "inputs": list(chunks),
           "outputs": {port.name: port.dtype for port in contract.outputs}, "narrow": bool(form),
           "states": [state.name for state in contract.states], "checked": CHECKED}  # fmt: skip
    (work / "job.json").write_text(json.dumps(job))
    starts = {f"start.{state}": array for state, array in start_values(model).items()}
    np.savez(work / "data.npz", **chunks, **starts)  # type: ignore[arg-type]


def worker(what: str, python: Path, *arguments: str) -> None:
    """Run the worker for one of its other jobs.

    Raises:
        PeerError: it failed.
    """
    done = subprocess.run([python, WORKER, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"{what}: {last_line(done.stderr)}")


def converted(model: ModelFile, python: Path, work: Path) -> None:
    """The step of the model's torch module as model.tflite.

    Raises:
        UsageError: quantized, or not of the zoo.
        PeerError: the converter refuses it.
    """
    if model.contract.quant.get("scheme") != "none":
        raise UsageError("litert is built from the torch module; a quantized file has none")
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("litert is built from the torch module: pip install 'edgemem[export]'") from error
    from edgemem.export.graph import Flat, Signature
    from edgemem.export.preflight import traced
    from edgemem.module import StreamingModule, declared_states
    from edgemem.reference import rebuilt
    from edgemem.weights import stored_tensors

    module = rebuilt(model, stored_tensors(model)).module
    assert isinstance(module, StreamingModule)
    valid = model.contract.valid_input is not None
    signature = Signature(module.inputs, module.outputs, declared_states(module), valid)
    with np.load(work / "data.npz") as data:
        arrays = [data[port.name][0] for port in model.contract.inputs]
        arrays += [data[f"start.{state.name}"] for state in model.contract.states]
    exported = traced(Flat(module, signature), tuple(torch.tensor(array) for array in arrays))
    torch.export.save(exported, work / "step.pt2")
    worker("litert-torch cannot convert the step", python, "convert", str(work))


def check_outputs(
    model: ModelFile, name: str, chunks: Mapping[str, Array], came: Mapping[str, Array], relative: float = RELATIVE[""]
) -> None:
    """Refuse a peer whose first outputs are farther than `relative` from onnxruntime's.

    Raises:
        CheckFailed: the first output that differs.
    """
    from edgemem.program import load

    program = load(model.path)
    state = program.new_state()
    for index in range(CHECKED):
        outputs = program.step({key: array[index] for key, array in chunks.items()}, state)
        for output, wanted in outputs.items():
            error = float(np.abs(wanted - came[output][index]).max())
            if not error <= relative * max(1.0, float(np.abs(wanted).max())):
                raise CheckFailed(f"{name} differs from onnxruntime by {error:.1e} at output {output}, step {index}")


def versions(name: str) -> dict[str, Any]:
    """What is installed in a peer's environment."""
    code = "import json, importlib.metadata as m, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    packages = [requirement.partition("==")[0] for requirement in PACKAGES[engine_of(name)[0]].split()]
    done = subprocess.run([interpreter(name), "-c", code, *packages], capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found
