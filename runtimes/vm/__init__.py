"""The `tvm` runtime: a step in TVM's Relax virtual machine, for CUDA (and for the processor, to try it without).

    generate   model file -> VM executable        nvrtc      CUDA C++ -> a cubin, without a GPU
    in_place   a step without allocations         driver     what is wrong with the GPU or its driver
    folder     all of that on disk                program    a folder on a device
                                                  profiling  its time, kernel by kernel

Loading a folder needs apache-tvm, and for CUDA a driver; compiling for CUDA needs the extra `cuda` too, but no GPU.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edgemem.errors import UsageError

if TYPE_CHECKING:
    from edgemem.program import Program


def prepare(path: Path, threads: int = 1, board: str = "cuda_host") -> Program:
    """Load a compiled folder, or compile a model file for `board`, onto the board's GPU (or `host`: its processor).

    Raises:
        ModelFileError, ContractError: neither a compiled folder nor a model file.
        MissingDependency: TVM or, for CUDA, its compiler is not installed.
        DeviceError: no such GPU, or its driver is too old.
        UsageError: more than one thread.
    """
    if threads != 1:
        raise UsageError(f"the tvm runtime has no threads to set, --threads {threads} came; leave it out")
    from edgemem.runtimes.vm.folder import load_folder, write_folder

    if path.is_dir():
        return load_folder(path)
    from edgemem.boards import board as described
    from edgemem.runtimes.vm.program import require_device

    require_device(described(board))
    with tempfile.TemporaryDirectory(prefix="edgemem-") as folder:
        write_folder(path, described(board), Path(folder))
        return load_folder(Path(folder))
