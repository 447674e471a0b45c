"""The tvm runtime on CUDA, with TVM's own library for it and a played driver: everything but the machine code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")

from edgemem.cli.main import cli
from edgemem.errors import MissingDependency
from edgemem.export import export_model
from tests import played_cuda
from tests.aot_programs import model_file
from tests.played_cuda.checks import CHECKS
from tests.zoo import SMALL

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each check found: nothing, or a traceback."""
    folder = tmp_path_factory.mktemp("played")
    try:
        played_cuda.headers()
    except MissingDependency as error:
        pytest.skip(f"the headers of CUDA 13's runtime are not installed: {error}")
    model_file("rwkv4", folder)
    export_model("memformer", folder / "memformer.onnx", SMALL["memformer"], seed=1, batch=3)
    silero_vad = pytest.importorskip("silero_vad", reason="silero-vad is not installed: pip install 'edgemem[dev]'")
    vad = next(Path(silero_vad.__file__).parent.glob("data/silero_vad.onnx"))
    result = CliRunner().invoke(cli, ["adopt", str(vad), "-o", str(folder / "silero.onnx")])
    assert result.exit_code == 0, result.output
    libraries = played_cuda.install(folder)
    run = subprocess.run(
        [sys.executable, "-m", "tests.played_cuda.checks", str(folder)],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", [check.__name__ for check in CHECKS])
def test_on_a_played_gpu(name: str, said: dict[str, str]) -> None:
    assert not said[name], said[name]
