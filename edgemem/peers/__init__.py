"""Other engines beside edgemem's, each in a virtual environment and a process of its own, measured in the same rounds.

    onnxruntime   with I/O binding, from the ONNX file
    openvino      on the CPU, from the ONNX file
    litert        LiteRT (XNNPACK), from the torch module through litert-torch: models of the zoo, float32

The environments lie in the user's cache, each beside a note of what was installed. A peer that does not compute what
onnxruntime computes is not timed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
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
RELATIVE = 1e-3  # of the largest output: another engine's rounding, over a few steps
PACKAGES: Mapping[str, str] = {
    "onnxruntime": "onnxruntime==1.32.0 numpy",
    "openvino": "openvino==2026.4.1 numpy",
    "litert": "litert-torch==0.10.0 ai-edge-litert==2.3.0 torch==2.13.0 numpy",
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
            [python, WORKER, name, folder, str(threads)],
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


def interpreter(name: str) -> Path:
    """Python of a peer's environment.

    Raises:
        UsageError: no such peer.
        MissingDependency: its environment is not there.
    """
    if name not in PACKAGES:
        raise UsageError(f"--against {name}: there are {', '.join(PACKAGES)}")
    folder = FOLDER / name
    note = folder / NOTE
    if not note.is_file() or note.read_text() != PACKAGES[name]:
        raise MissingDependency(
            f"{name} wants an environment of its own with {PACKAGES[name]}, and {folder} is not that; "
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
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        command("make an environment for", name, "venv", "--without-pip", str(folder))
        command("install", name, "pip", "--python", str(folder), "install", "-q", *PACKAGES[name].split())
        (folder / NOTE).write_text(PACKAGES[name])


def command(what: str, name: str, *arguments: str) -> None:
    """Run a module of this Python."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(FOLDER / name, ignore_errors=True)
        raise MissingDependency(f"cannot {what} {name} ({PACKAGES[name]}): {last_line(done.stderr)}")


def started(name: str, model: ModelFile, chunks: Mapping[str, Array], threads: int, work: Path) -> Peer | Skipped:
    """A peer with the model loaded, or the reason why it does not run it.

    `chunks` [count, *shape] by input; `work` is an empty folder that outlives the peer.
    """
    python = interpreter(name)
    contract = model.contract
    outputs = {port.name: port.dtype for port in contract.outputs}
    job = {"model": str(model.path.resolve()), "folder": str(work), "inputs": list(chunks), "outputs": outputs,
           "states": [state.name for state in contract.states], "checked": CHECKED}  # fmt: skip
    (work / "job.json").write_text(json.dumps(job))
    starts = {f"start.{state}": array for state, array in start_values(model).items()}
    np.savez(work / "data.npz", **chunks, **starts)  # type: ignore[arg-type]
    peer = None
    try:
        if name == "litert":
            converted(model, python, work)
        peer = Peer(name, python, work, threads)
        check_outputs(model, name, chunks, dict(np.load(work / "outputs.npz")))
    except EdgememError as error:
        if peer is not None:
            peer.close()
        return Skipped(name, str(model.path), str(error))
    return peer


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
    done = subprocess.run([python, WORKER, "convert", work], capture_output=True, text=True)
    if done.returncode or not (work / "model.tflite").exists():
        raise PeerError(f"litert-torch cannot convert the step: {last_line(done.stderr)}")


def check_outputs(model: ModelFile, name: str, chunks: Mapping[str, Array], came: Mapping[str, Array]) -> None:
    """Refuse a peer whose first outputs are not onnxruntime's.

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
            if not error <= RELATIVE * max(1.0, float(np.abs(wanted).max())):
                raise CheckFailed(f"{name} differs from onnxruntime by {error:.1e} at output {output}, step {index}")


def versions(name: str) -> dict[str, Any]:
    """What is installed in a peer's environment."""
    code = "import json, importlib.metadata as m, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    packages = [requirement.partition("==")[0] for requirement in PACKAGES[name].split()]
    done = subprocess.run([interpreter(name), "-c", code, *packages], capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    return found
