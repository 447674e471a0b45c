"""What a GPU would be asked, asked of the played one: run by `tests.test_tvm_played` in a process of its own.

LD_LIBRARY_PATH=FOLDER python -m tests.played_cuda.checks MODELS    prints {check: what went wrong, or ""}
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import edgemem
from edgemem.errors import DeviceError
from edgemem.quant import quantize
from edgemem.runtimes.vm import generate
from edgemem.streams import Streams
from edgemem.trial import poisoned, random_inputs, trial
from tests import played_cuda

COUNTED = ("launches", "graphs", "captures", "allocations", "to_device", "from_device")


def counts() -> dict[str, int]:
    """How often the played driver has been asked for each thing."""
    found = (ctypes.c_long * len(COUNTED))()
    ctypes.CDLL("libcudart.so.13").played_cuda_counts(found)
    return dict(zip(COUNTED, found, strict=True))


def on_gpu(path: Path) -> Any:
    return edgemem.load(path, runtime="tvm")


def holds(path: Path, steps: int = 12) -> Any:
    """The program on the GPU, which computes what onnxruntime does."""
    program = on_gpu(path)
    assert str(program.device) == "cuda:0"
    found = trial(edgemem.load(path), program, steps)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 3):
        assert fresh.tobytes() == reset.tobytes(), tensor
    return program


def a_step_is_one_launch_of_a_graph(models: Path) -> None:
    """Nothing is allocated in it, and only the input and the output cross over. A program gives its memory back."""
    gc.collect()
    free = free_bytes()
    program = holds(models / "rwkv4.onnx")
    state, rng = program.new_state(), np.random.default_rng(0)
    for index in range(6):
        before = counts()
        program.step(random_inputs(program.contract, rng), state)
        after = {name: count - before[name] for name, count in counts().items()}
        wanted = {"launches": 0, "graphs": 1, "captures": 0, "allocations": 0, "to_device": 1, "from_device": 1}
        assert after == wanted, (index, after)
    streams_in_turn(program)
    assert free_bytes() < free
    del program, state
    gc.collect()
    assert free_bytes() == free


def streams_in_turn(program: Any) -> None:
    """States change places on the device, and do not mix."""
    rng = np.random.default_rng(0)
    chunks = [random_inputs(program.contract, rng) for _ in range(5)]
    alone, first, second = (program.new_state() for _ in range(3))
    wanted = [program.step(chunk, alone) for chunk in chunks]
    given = [[program.step(chunk, state) for state in (first, second)] for chunk in chunks]
    for outputs, pair in zip(wanted, given, strict=True):
        assert all(np.array_equal(one[name], outputs[name]) for one in pair for name in outputs)


def a_graph_outlives_its_thread(models: Path) -> None:
    """Also where a kernel has work space, which TVM keeps for a thread. Silero's head has one output."""
    program, reference = on_gpu(models / "silero.onnx"), edgemem.load(models / "silero.onnx")
    here, there = program.new_state(), reference.new_state()
    rng = np.random.default_rng(0)

    def steps() -> None:
        for _ in range(3):
            inputs = random_inputs(program.contract, rng)
            given, wanted = program.step(inputs, here), reference.step(inputs, there)
            for name, array in wanted.items():
                np.testing.assert_allclose(given[name], array, rtol=1e-3, atol=1e-5)

    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(steps).result()


def products_of_bytes(models: Path) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "q.onnx"
        quantize(models / "rwkv4.onnx", path, "w8a8-dynamic", smallest=32)
        holds(path)


def rows_that_wait(models: Path) -> None:
    """A stream of a batch that has no chunk stays as it is; masks are truth values, of one byte in memory."""
    program = holds(models / "memformer.onnx", 6)
    here, there = Streams(edgemem.load(models / "memformer.onnx")), Streams(program)
    places = [(here.open(), there.open()) for _ in range(3)]
    for step in range(6):
        stepping = [pair for index, pair in enumerate(places) if step % (index + 1) == 0]
        chunk = random_inputs(program.contract, np.random.default_rng(step))[program.contract.inputs[0].name][0]
        wanted = here.step({a: chunk for a, _ in stepping})
        given = there.step({b: chunk for _, b in stepping})
        for a, b in stepping:
            np.testing.assert_allclose(given[b], wanted[a], rtol=1e-4, atol=1e-5)


def free_bytes() -> int:
    import tvm

    return int(tvm.cuda(0).available_global_memory)


def too_little_memory_is_named(models: Path) -> None:
    """Before anything is loaded; and where the device has less than it said, or another program takes it."""
    from edgemem.runtimes.vm import program

    check = program.check_room
    taken = int(os.environ.get("PLAYED_CUDA_BYTES", 1 << 30)) - free_bytes()
    os.environ["PLAYED_CUDA_BYTES"] = str(taken + (8 << 10))
    try:
        said = refusal(lambda: on_gpu(models / "rwkv4.onnx"))
        assert "rwkv4 does not fit cuda:0: " in said and "8.0 KiB free" in said, said
        program.check_room = lambda *_: None
        said = refusal(lambda: on_gpu(models / "rwkv4.onnx"))
        assert "rwkv4 failed on cuda:0: " in said and "out of memory; a program and a stream take " in said, said
    finally:
        program.check_room = check
        del os.environ["PLAYED_CUDA_BYTES"]


def refusal(action: Callable[[], Any]) -> str:
    """What a DeviceError says."""
    try:
        action()
    except DeviceError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def kernels_are_timed(models: Path) -> None:
    from edgemem.runtimes.gpu import profile

    found = profile(models / "rwkv4.onnx", "tvm", None, 3)
    assert {"take_kernel", "layer_norm_kernel", "product_float_kernel"} <= {row["kernel"] for row in found["kernels"]}
    assert all(row["us"] > 0 and row["calls"] > 0 and row["bytes"] > 0 for row in found["kernels"])


def the_benchmark_runs(models: Path) -> None:
    """torch and onnxruntime have no CUDA here; that is said, and edgemem is measured."""
    from bench import gpu

    gpu.COPY_BYTES = {"cuda": 1 << 16}
    with TemporaryDirectory() as folder:
        assert gpu.main(["--models", "tiny", "--batches", "2", "--rounds", "1", "--out", folder]) == 0
        result = json.loads((Path(folder) / "gpu.json").read_text())
    assert result["device"]["arch"] == "sm_90" and [row["engine"] for row in result["rows"]] == ["edgemem"]
    assert {row["engine"] for row in result["skipped"]} == set(gpu.ENGINES) - {"edgemem"}


CHECKS: tuple[Callable[[Path], None], ...] = (
    a_step_is_one_launch_of_a_graph,
    rows_that_wait,
    a_graph_outlives_its_thread,
    products_of_bytes,
    too_little_memory_is_named,
    kernels_are_timed,
    the_benchmark_runs,
)


def main(models: Path) -> None:
    generate.cubin = played_cuda.machine_code
    said = {}
    for check in CHECKS:
        try:
            check(models)
            said[check.__name__] = ""
        except Exception:
            said[check.__name__] = traceback.format_exc()
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
