"""The package holds what it must, and importing it pulls in nothing heavy."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HEAVY = ("torch", "onnx", "onnxscript", "onnx_ir", "tvm", "matplotlib", "soundfile", "soxr", "sklearn", "scipy")


def test_every_package_folder_is_listed() -> None:
    found = set()
    for top in ("edgemem", "export", "quant", "runtimes", "devices"):
        for init in (ROOT / top).rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            found.add(name if top == "edgemem" else f"edgemem.{name}")
    assert found == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_test_modules_leave_one_another_alone() -> None:
    """What several of them need lies in a module of its own: importing one would run its marks and fixtures too."""
    wrong = re.compile(r"^\s*(from tests\.test_\w+ import|from tests import test_|import tests\.test_)", re.MULTILINE)
    assert [file.name for file in (ROOT / "tests").rglob("*.py") if wrong.search(file.read_text())] == []


def test_the_stages_leave_one_another_alone() -> None:
    """Each starts from a file and ends in one; what several of them need is in `edgemem`, and boards are `devices`."""
    stages = ("export", "quant", "runtimes", "devices")
    imported = re.compile(r"^\s*(?:from|import) edgemem\.(\w+)", re.MULTILINE)
    wrong = [
        f"{file.relative_to(ROOT)} imports {name}"
        for stage in stages
        for file in (ROOT / stage).rglob("*.py")
        for name in imported.findall(file.read_text())
        if name in stages and name != stage
    ]
    assert wrong == []


def imported_by(code: str) -> set[str]:
    """Top-level modules in a fresh process after `code`."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("code", "also_absent"),
    [
        ("import edgemem; edgemem.load; edgemem.Stream", ("onnxruntime", "pydantic", "click", "rich")),
        ("import edgemem.runtimes.ort, edgemem.contract", ("pydantic",)),
        (
            "import edgemem.runtimes.aot.load, edgemem.stream",
            ("onnxruntime", "pydantic", "click", "rich", "safetensors"),
        ),
        ("import edgemem.audio", ("onnxruntime", "pydantic")),
        ("import edgemem.cli.main", ("numpy", "onnxruntime", "pydantic", "rich")),
        ("import edgemem.export", ("onnxruntime", "pydantic")),
    ],
)
def test_importing_stays_light(code: str, also_absent: tuple[str, ...]) -> None:
    assert not imported_by(code) & {*HEAVY, *also_absent}


def test_an_installation_streams_without_torch_and_onnx() -> None:
    needed = {re.split(r"[<>=\[]", line)[0] for line in PYPROJECT["project"]["dependencies"]}
    assert not needed & {*HEAVY, "onnxscript", "onnx-ir", "apache-tvm"}


def test_every_dependency_has_its_version_pinned() -> None:
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    project = PYPROJECT["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    names = {re.split(r"[<>=\[]", line)[0].lower() for line in wanted} - {"edgemem"}
    assert names <= pinned
