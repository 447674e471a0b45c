"""`edgemem doctor`: what is installed here, and what would add the rest."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata

import click

from edgemem.cli.options import json_option, print_json, stdout, table

# what it is for, package or tool, how it is installed
PACKAGES = (
    ("stream", "numpy", "pip install edgemem"),
    ("stream", "onnxruntime", "pip install edgemem"),
    ("stream", "safetensors", "pip install edgemem"),
    ("stream", "pydantic", "pip install edgemem"),
    ("stream", "click", "pip install edgemem"),
    ("stream", "rich", "pip install edgemem"),
    ("export", "torch", "pip install 'edgemem[export]'"),
    ("export", "onnx", "pip install 'edgemem[export]'"),
    ("export", "onnxscript", "pip install 'edgemem[export]'"),
    ("export", "onnx-ir", "pip install 'edgemem[export]'"),
    ("Hugging Face", "optimum-onnx", "pip install 'edgemem[hf]'"),
    ("Hugging Face", "transformers", "pip install 'edgemem[hf]'"),
    ("Hugging Face", "tokenizers", "pip install 'edgemem[hf]'"),
    ("compile", "apache-tvm", "pip install 'edgemem[tvm]'"),
    ("OpenCL", "pyopencl", "pip install 'edgemem[opencl]'"),
    ("CUDA", "nvidia-cuda-nvrtc-cu12", "pip install 'edgemem[cuda]'"),
    ("CUDA", "nvidia-cuda-runtime-cu12", "pip install 'edgemem[cuda]'"),
    ("CUDA", "nvidia-cuda-runtime", "pip install 'edgemem[cuda]'"),
    ("audio", "soundfile", "pip install 'edgemem[audio]'"),
    ("audio", "soxr", "pip install 'edgemem[audio]'"),
    ("microphone", "sounddevice", "pip install 'edgemem[mic]'"),
    ("pictures", "matplotlib", "pip install 'edgemem[plot]'"),
    ("recipes and benchmarks", "scikit-learn", "pip install 'edgemem[bench]'"),
)
TOOLS = (
    ("compile", "gcc", "apt-get install gcc"),
    ("Cortex-M boards", "arm-none-eabi-gcc", "make boards"),
    ("Cortex-M boards", "qemu-system-arm", "make boards"),
    ("Linux boards", "aarch64-linux-gnu-gcc", "make boards"),
    ("Linux boards", "arm-linux-gnueabihf-gcc", "make boards"),
    ("Linux boards", "riscv64-linux-gnu-gcc", "make boards"),
    ("Linux boards", "qemu-aarch64", "make boards"),
    ("Linux boards", "qemu-arm", "make boards"),
    ("Linux boards", "qemu-riscv64", "make boards"),
    ("RISC-V boards", "riscv64-unknown-elf-gcc", "make boards"),
    ("RISC-V boards", "qemu-system-riscv32", "make boards"),
)


def command_for(missing: ModuleNotFoundError) -> str:
    """The command that installs what could not be imported.

    Raises:
        ModuleNotFoundError: it is not a package that edgemem knows how to install.
    """
    package = str(missing.name).partition(".")[0].replace("_", "-")
    for _, name, command in PACKAGES:
        if name.removeprefix("apache-") == package:
            return command
    raise missing


def found() -> list[dict[str, str | None]]:
    """Every package and tool with its version or place, or None and the command that installs it."""
    rows: list[dict[str, str | None]] = []
    for purpose, name, command in PACKAGES:
        try:
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        rows.append({"for": purpose, "name": name, "found": version, "install": None if version else command})
    for purpose, name, command in TOOLS:
        place = shutil.which(name)
        rows.append({"for": purpose, "name": name, "found": place, "install": None if place else command})
    return rows


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Show what edgemem finds on this machine, and the command that adds what is missing.

    \b
    edgemem doctor
    """
    rows = found()
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    if as_json:
        print_json({"machine": machine, "rows": rows})
        return
    cells = [(str(row["for"]), str(row["name"]), row["found"] or "–", row["install"] or "") for row in rows]
    stdout().print(table(("for", "name", "found", "install with"), cells, wrap="found", title=machine))
