"""Why no CUDA GPU can be used here: asked of NVIDIA's driver through its library, for TVM says only that there is none.

NVIDIA, "CUDA Driver API": cuDriverGetVersion, cuInit, cuDeviceGetCount; codes of cuInit: 100 no device, 803 libraries
and kernel module of different versions.
"""

from __future__ import annotations

import ctypes
from importlib import util
from pathlib import Path
from typing import Any

from edgemem.errors import DeviceError, MissingDependency

DRIVER = "libcuda.so.1"
RUNTIME = "libcudart.so.13"  # of CUDA that TVM's own library is linked with
CUDA = (13, 0)  # the least version that this runtime wants of the driver
INSTALL = "install NVIDIA's driver, 580 or newer"
NO_DEVICE, MISMATCH = 100, 803
INSTEAD = "without a GPU, run the ONNX file itself (--runtime ort), or compile it for this processor (--board host)"


def check_driver() -> None:
    """Refuse a machine whose driver cannot run programs of TVM's.

    Raises:
        DeviceError: no driver, one that is too old or broken, or no GPU.
    """
    try:
        library: Any = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise DeviceError(
            f"a CUDA GPU was wanted, and this machine has no driver of NVIDIA's ({error}): {INSTALL}; {INSTEAD}"
        ) from error
    version = asked(library, "cuDriverGetVersion")
    there = version // 1000, version % 1000 // 10
    if there < CUDA:
        raise DeviceError(
            f"NVIDIA's driver here is too old: it runs CUDA {there[0]}.{there[1]}, TVM's programs want "
            f"{CUDA[0]}.{CUDA[1]}: {INSTALL}; {INSTEAD}"
        )
    code = int(library.cuInit(0))
    if code not in (0, NO_DEVICE):
        reason = "its library and its kernel module differ: reboot" if code == MISMATCH else "see nvidia-smi"
        raise DeviceError(f"NVIDIA's driver does not start (code {code}): {reason}; {INSTEAD}")
    if code == NO_DEVICE or asked(library, "cuDeviceGetCount") == 0:
        raise DeviceError(
            "a CUDA GPU was wanted, and NVIDIA's driver finds none: is one built in, and is it given to this container "
            f"or hidden by CUDA_VISIBLE_DEVICES? {INSTEAD}"
        )


def asked(library: Any, function: str) -> int:
    """What a function of the driver answers.

    Raises:
        DeviceError: an error.
    """
    answer = ctypes.c_int()
    code = int(getattr(library, function)(ctypes.byref(answer)))
    if code:
        raise DeviceError(f"NVIDIA's driver fails in {function} (code {code}): see nvidia-smi; {INSTEAD}")
    return answer.value


def load_runtime() -> None:
    """Load TVM's library for CUDA where TVM could not: pip puts the CUDA runtime where no loader looks.

    Raises:
        MissingDependency: the CUDA runtime is not installed.
    """
    import tvm_ffi
    from tvm.libinfo import package_lib_paths

    if tvm_ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    try:
        ctypes.CDLL(str(runtime_library()), mode=ctypes.RTLD_GLOBAL)
        own = next(f for folder in package_lib_paths() if (f := Path(folder) / "libtvm_runtime_cuda.so").is_file())
        ctypes.CDLL(str(own))
    except (OSError, StopIteration) as error:
        raise MissingDependency(
            f"TVM's library for CUDA cannot be loaded ({str(error) or 'it is not in this apache-tvm'}): "
            "pip install 'edgemem[cuda]'"
        ) from error


def runtime_library() -> Path:
    """The CUDA runtime: of NVIDIA's package, else wherever the system has it."""
    spec = util.find_spec("nvidia")
    for root in [] if spec is None else list(spec.submodule_search_locations or []):
        if (found := Path(root) / "cu13" / "lib" / RUNTIME).is_file():
            return found
    return Path(RUNTIME)
