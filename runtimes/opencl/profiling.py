"""Where a step on an OpenCL device spends its time: the device's own clock around every launch.

OpenCL 1.2, section 5.12: CL_PROFILING_COMMAND_START and _END, in nanoseconds of the device. Of each launch the shortest
of many times counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgemem.runtimes.gpu.folder import read_program_folder
from edgemem.runtimes.kernel_times import by_kernel
from edgemem.runtimes.opencl.folder import RUNTIME, load_folder
from edgemem.trial import random_inputs


def profile(folder: Path, steps: int, seed: int = 0) -> dict[str, Any]:
    """Time, bytes and bandwidth of every kernel of a compiled folder.

    Raises:
        ModelFileError, ContractError: no program for OpenCL.
        MissingDependency, DeviceError: there is no such device here.
    """
    import pyopencl as cl

    program = load_folder(folder)
    manifest, contract = read_program_folder(folder, RUNTIME)
    rng, state = np.random.default_rng(seed), program.new_state()
    state.queue = cl.CommandQueue(program.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
    launches = program.step_plan.launches
    best = [float("inf")] * len(launches)
    for _ in range(steps):
        program.step(random_inputs(contract, rng), state)
        spent = [(event.profile.end - event.profile.start) / 1e3 for event in state.events]
        best = [min(pair) for pair in zip(best, spent, strict=True)]
    touched = [sum(place.nbytes for place in launch.places) for launch in launches]
    return by_kernel(manifest, [launch.kernel for launch in launches], best, touched) | {"steps": steps}
