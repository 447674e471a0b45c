"""OpenCL: kernels that TVM writes as OpenCL C, launched in a fixed order on buffers that stay on the device.

    step       the launches and places of a step, as data        generate   model file -> step, kernels, weights
    folder     all of that on disk, beside a host program in C   host       the text of that program
    program    a folder on a device, through pyopencl            device     which device
    profiling  its time, kernel by kernel

Loading a folder needs pyopencl and an OpenCL driver; compiling a model file needs TVM too.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.errors import UsageError

if TYPE_CHECKING:
    from edgemem.program import Program


def prepare(path: Path, threads: int = 1, board: str = "pocl") -> Program:
    """Load a compiled folder, or compile a model file for `board`, onto the OpenCL device that the board names.

    Raises:
        ModelFileError, ContractError: neither a compiled folder nor a model file.
        MissingDependency: pyopencl, a driver or, for a model file, TVM is not installed.
        DeviceError: no such device, or it has too little memory.
        UsageError: threads, which a GPU has enough of.
    """
    if threads != 1:
        raise UsageError(
            f"the opencl runtime shares a step among the threads of its device; leave --threads {threads} out"
        )
    from edgemem.runtimes.opencl.folder import load_folder, write_folder

    if path.is_dir():
        return load_folder(path)
    from edgemem.boards import board as described

    with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
        write_folder(path, described(board), Path(folder))
        return load_folder(Path(folder))
