"""CUDA without a GPU: a driver that TVM's own library for CUDA is loaded with, and kernels that run on the processor.

driver.cpp   the functions of NVIDIA's driver and runtime that TVM calls; as strict as a GPU
threads.h    what a kernel's CUDA C++ is compiled behind: the threads of a block and what they wait for
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from edgemem.runtimes.vm.nvrtc import package

HERE = Path(__file__).parent
KERNEL = re.compile(
    r'^extern "C" __global__ void __launch_bounds__\((\d+)\) (\w+)\(([^)]*)\) \{\n(.*?)^\}', re.MULTILINE | re.DOTALL
)
WAITING = ("__syncthreads", "__shfl", "__activemask")
SYMBOLS = "libcudart.so.13 { global: cu*; played_*; local: *; };"


def headers() -> Path:
    """Those of CUDA 13's runtime, which TVM's library was built with.

    Raises:
        MissingDependency: they are not installed.
    """
    return package("cu13", "include")


def install(folder: Path) -> Path:
    """Build both libraries into a folder, to be named in LD_LIBRARY_PATH."""
    (folder / "symbols").write_text(SYMBOLS)
    runtime = folder / "libcudart.so.13"
    build(
        runtime,
        HERE / "driver.cpp",
        "-Wl,-soname,libcudart.so.13",
        f"-Wl,--version-script={folder / 'symbols'}",
        "-ldl",
    )
    (folder / "empty.cpp").write_text("")
    build(
        folder / "libcuda.so.1",
        folder / "empty.cpp",
        "-Wl,-soname,libcuda.so.1",
        "-Wl,--no-as-needed",
        str(runtime),
        "-Wl,-rpath,$ORIGIN",
    )
    return folder


def build(target: Path, source: Path, *options: str) -> None:
    """A shared object of C++, which ends the process where a vector is not aligned as a GPU wants it."""
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-w",
        "-fPIC",
        "-shared",
        "-ffp-contract=off",
        "-fsanitize=alignment",
        "-fsanitize-undefined-trap-on-error",
        f"-I{headers()}",
        f"-I{HERE}",
    ]
    subprocess.run([*command, str(source), *options, "-o", str(target)], check=True, capture_output=True, text=True)


def machine_code(source: str, arch: str) -> bytes:
    """What the played driver takes for a cubin of CUDA C++ (in place of `nvrtc.cubin`)."""
    kernels = [played(*found) for found in KERNEL.findall(source)]
    assert kernels, "no kernel was found in the CUDA C++"
    with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
        text = Path(folder) / "kernels.cpp"
        text.write_text("\n".join(['#include "threads.h"', source, *kernels]))
        build(text.with_suffix(".so"), text)
        return text.with_suffix(".so").read_bytes()


def played(bound: str, name: str, parameters: str, body: str) -> str:
    """The functions and facts by which the driver runs one kernel."""
    types = [parameter.rsplit(" ", 1)[0].replace("__restrict__", "").strip() for parameter in parameters.split(", ")]
    kinds = "".join("p" if "*" in one else "8" if "64" in one else "4" for one in types)
    values = ", ".join(f"*({one}*)held_{name}[{index}]" for index, one in enumerate(types))
    waits = str(any(word in body for word in WAITING)).lower()
    return f"""
static void** held_{name};
extern "C" const char {name}__kinds[] = "{kinds}";
extern "C" const unsigned {name}__bound = {bound};
extern "C" void {name}__run(void** given, dim3 blocks, dim3 threads) {{
  held_{name} = given;
  played::grid(blocks, threads, {waits}, [] {{ {name}({values}); }});
}}"""
