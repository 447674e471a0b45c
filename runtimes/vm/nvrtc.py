"""CUDA C++ to a cubin by NVIDIA's run-time compiler, which needs no GPU.

NVIDIA, "NVRTC" (CUDA 12.9): a library of six functions, called here through ctypes. Version 12 knows every architecture
from sm_50 to sm_120; version 13 has dropped those before sm_75, Jetson Xavier's among them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any

from edgemem.errors import CompileError, MissingDependency

INSTALL = "pip install 'edgemem[cuda]'"
LIBRARY = "libnvrtc.so.12"
# What CUDA C++ has from the headers of the C library, which NVRTC does not read.
PREAMBLE = """\
typedef signed char int8_t; typedef unsigned char uint8_t;
typedef short int16_t; typedef unsigned short uint16_t;
typedef int int32_t; typedef unsigned int uint32_t;
typedef long long int64_t; typedef unsigned long long uint64_t;
#define INFINITY __int_as_float(0x7f800000)
"""
LEFT_OUT = (
    "#include <cuda.h>",
    "#include <cuda/std/",
    "#include <cstdint>",
    "#include <stdint.h>",
    "using cuda::std::",
)


def package(name: str, part: str) -> Path:
    """A folder of one of NVIDIA's packages.

    Raises:
        MissingDependency: it is not installed.
    """
    spec = util.find_spec("nvidia")
    for root in [] if spec is None else list(spec.submodule_search_locations or []):
        if (Path(root) / name / part).is_dir():
            return Path(root) / name / part
    raise MissingDependency(
        f"compiling for CUDA needs NVIDIA's {name.replace('_', ' ')} of version 12, which is not installed: {INSTALL}"
    )


def cubin(source: str, arch: str) -> bytes:
    """The machine code of CUDA C++ `source` for one architecture, such as sm_87."""
    return compiled(source, arch, "CUBIN")


def compiled(source: str, arch: str, what: str) -> bytes:
    """What the compiler makes of CUDA C++: a "CUBIN" for sm_87, or "PTX" for compute_87.

    Raises:
        MissingDependency: the compiler or its headers are not installed.
        CompileError: the compiler refuses the source, or does not know the architecture.
    """
    place = package("cuda_nvrtc", "lib") / LIBRARY
    try:
        library = ctypes.CDLL(str(place))
    except OSError as error:
        raise MissingDependency(f"{place} cannot be loaded ({error}); reinstall it: {INSTALL}") from error
    headers = package("cuda_runtime", "include")
    lines = [line for line in source.splitlines() if not line.strip().startswith(LEFT_OUT)]
    text = (PREAMBLE + "\n".join(lines)).encode()
    options = [f"--gpu-architecture={arch}", f"--include-path={headers}", "--std=c++17", "-default-device"]
    handle = ctypes.c_void_p()
    created = library.nvrtcCreateProgram(ctypes.byref(handle), text, b"kernels.cu", 0, None, None)
    if created != 0:
        raise CompileError(f"NVRTC cannot start (code {created}); reinstall it: {INSTALL}")
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(handle, len(options), flags) != 0:
            log = fetched(library, handle, "ProgramLog").decode(errors="replace").strip("\0\n ")
            raise CompileError(
                f"NVRTC refuses the kernels for {arch}: {log.splitlines()[0] if log else 'no reason given'}"
            )
        return fetched(library, handle, what)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(handle))


def fetched(library: Any, handle: ctypes.c_void_p, what: str) -> bytes:
    """A result of the compiler, by the name of the function that gives it.

    Raises:
        CompileError: the compiler has none.
    """
    size = ctypes.c_size_t()
    code = library[f"nvrtcGet{what}Size"](handle, ctypes.byref(size))
    room = ctypes.create_string_buffer(size.value)
    code = code or library[f"nvrtcGet{what}"](handle, room)
    if code != 0 or not size.value:
        raise CompileError(f"NVRTC gives no {what} (code {code}); reinstall it: {INSTALL}")
    return room.raw


@contextmanager
def compiled_before(source: str, code: bytes) -> Iterator[None]:
    """Let TVM have `code` where it would compile `source`.

    TVM stores a module of CUDA as source and compiles it where it is loaded. On any other source TVM's own compiler is
    asked.
    """
    import tvm_ffi

    name = "tvm_callback_cuda_compile"
    before: Callable[..., Any] | None = tvm_ffi.get_global_func(name, allow_missing=True)

    def given(wanted: str, *rest: Any) -> Any:
        if str(wanted) == source:
            return bytearray(code)
        if before is None:
            raise CompileError("the program holds other kernels than its folder; compile the model again")
        return before(wanted, *rest)

    tvm_ffi.register_global_func(name, given, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.remove_global_func(name)
        else:
            tvm_ffi.register_global_func(name, before, override=True)
