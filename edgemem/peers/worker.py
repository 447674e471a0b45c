"""One engine that edgemem is measured against, in a process and an environment of its own; imports nothing of edgemem.

    python worker.py convert FOLDER          litert only: step.pt2 -> model.tflite
    python worker.py narrow NAME FOLDER      the engine's own quantization of a float32 model, as in `NARROW`
    python worker.py ENGINE FOLDER THREADS   writes outputs.npz, says `ready`, then for each line with a number of
                                             seconds steps that long and answers the microseconds of each step as JSON

FOLDER holds job.json (model, the names of inputs, outputs and states in the graph's order, and `checked`: how many
first steps' outputs to write) and data.npz (chunks [count, *shape] of every input, the start of every state). Each
engine gets the loop that a careful user writes: inputs copied to where the engine reads them, states never copied where
it can be avoided, outputs read where they lie.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WARM = 20
GROUP = 32  # inputs that share a scale, in 4-bit weights


class Onnxruntime:
    """I/O binding, two sets of state buffers that take turns."""

    def __init__(self, job: dict[str, Any], data: dict[str, Any], threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        self.session = ort.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        self.inputs = {name: np.array(data[name][0]) for name in job["inputs"]}
        shapes = {port.name: port.shape for port in self.session.get_outputs()}
        self.outputs = {name: np.zeros(shapes[name], job["outputs"][name]) for name in job["outputs"]}
        sets = [{name: np.array(data[f"start.{name}"]) for name in job["states"]} for _ in "AB"]
        self.bindings = [self.bound(ort, job, sets[i], sets[1 - i]) for i in (0, 1)]
        self.turn = 0

    def bound(self, ort: Any, job: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> Any:
        binding = self.session.io_binding()
        for name, array in self.inputs.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in self.outputs.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name in job["states"]:
            binding.bind_ortvalue_input(f"{name}_in", ort.OrtValue.ortvalue_from_numpy(before[name]))
            binding.bind_ortvalue_output(f"{name}_out", ort.OrtValue.ortvalue_from_numpy(after[name]))
        return binding

    def step(self) -> None:
        self.session.run_with_iobinding(self.bindings[self.turn])
        self.turn ^= 1


class Openvino:
    """Two infer requests over two sets of state buffers that take turns; float32, as the other engines compute."""

    def __init__(self, job: dict[str, Any], data: dict[str, Any], threads: int) -> None:
        import openvino as ov

        core = ov.Core()
        config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if job["narrow"]:
            config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = GROUP  # activations in bytes, by groups, as in its best setting
        model = core.compile_model(core.read_model(job["model"]), "CPU", config)
        self.inputs = {name: np.array(data[name][0]) for name in job["inputs"]}
        sets = [{name: np.array(data[f"start.{name}"]) for name in job["states"]} for _ in "AB"]
        outputs = {name: np.zeros(tuple(model.output(name).shape), kind) for name, kind in job["outputs"].items()}
        self.outputs, self.requests, self.kept = outputs, [], sets  # requests keep addresses only
        for before, after in ((sets[0], sets[1]), (sets[1], sets[0])):
            request = model.create_infer_request()
            for name, array in [*self.inputs.items(), *((f"{n}_in", a) for n, a in before.items())]:
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            for name, array in [*outputs.items(), *((f"{n}_out", a) for n, a in after.items())]:
                request.set_tensor(name, ov.Tensor(array, shared_memory=True))
            self.requests.append(request)
        self.turn = 0

    def step(self) -> None:
        request = self.requests[self.turn]
        request.start_async()  # `infer` would make a dictionary of all results each time
        request.wait()
        self.turn ^= 1


class Litert:
    """The interpreter with its default XNNPACK kernels; states are moved inside its own memory, by address."""

    def __init__(self, job: dict[str, Any], data: dict[str, Any], threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.engine = engine = Interpreter(job["model"], num_threads=threads)
        engine.allocate_tensors()
        (signature,) = engine.get_signature_list().values()
        runner = engine.get_signature_runner()
        inputs, outputs = runner.get_input_details(), runner.get_output_details()
        del runner  # the interpreter refuses to run while another object refers to it
        taken = [inputs[name] for name in sorted(signature["inputs"], key=position)]
        given = [outputs[name] for name in sorted(signature["outputs"], key=position)]
        names, results = [*job["inputs"]], [*job["outputs"]]
        for name, detail in zip(names + job["states"], taken, strict=False):
            start = data[f"start.{name}"] if name in job["states"] else data[name][0]
            engine.set_tensor(detail["index"], start.astype(detail["dtype"]))
        engine.invoke()
        self.inputs = {name: view(engine, detail) for name, detail in zip(names, taken, strict=False)}
        self.outputs = {name: view(engine, detail) for name, detail in zip(results, given, strict=False)}
        self.moves = []
        for name, before, after in zip(job["states"], taken[len(names) :], given[len(results) :], strict=False):
            target, source = view(engine, before), view(engine, after)
            target[...] = data[f"start.{name}"]
            self.moves.append((target.ctypes.data, source.ctypes.data, target.nbytes))

    def step(self) -> None:
        self.engine.invoke()
        for target, source, nbytes in self.moves:
            ctypes.memmove(target, source, nbytes)


def position(name: str) -> int:
    """The place of `args_3` or `output_3`."""
    return int(name.rpartition("_")[2])


def view(engine: Any, detail: dict[str, Any]) -> Any:
    """A tensor of the interpreter as an array over its memory, which stays where it is."""
    array = engine.tensor(detail["index"])()
    address, shape, kind = array.ctypes.data, array.shape, array.dtype
    del array
    count = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer((ctypes.c_char * count).from_address(address), kind).reshape(shape)


def convert(folder: Path) -> None:
    """step.pt2 -> model.tflite"""
    import litert_torch
    import torch

    program = torch.export.load(str(folder / "step.pt2"))
    arguments, _ = program.example_inputs
    litert_torch.convert(program.module(), tuple(arguments)).export(str(folder / "model.tflite"))
    job = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps(job | {"model": str(folder / "model.tflite")}))


def narrow_onnxruntime(form: str, source: Path, folder: Path) -> Path:
    """int8: MatMulInteger on activations that are quantized in every step. blocks8, int4: MatMulNBits, which may round
    activations to int8 inside the kernel (accuracy level 4, its fastest).
    """
    target = folder / "narrow.onnx"
    if form == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(source, target, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
        return target
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    bits = {"blocks8": 8, "int4": 4}[form]
    quantizer = MatMulNBitsQuantizer(str(source), bits, GROUP, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))
    return target


def narrow_openvino(form: str, source: Path, folder: Path) -> Path:
    """Weights by NNCF, all of them."""
    import nncf
    import openvino as ov

    modes = nncf.CompressWeightsMode
    four = {"mode": modes.INT4_SYM, "group_size": GROUP, "ratio": 1.0, "all_layers": True}
    model = ov.Core().read_model(source)
    model = nncf.compress_weights(model, **(four if form == "int4" else {"mode": modes.INT8_SYM}))
    ov.save_model(model, folder / "narrow.xml", compress_to_fp16=False)
    return folder / "narrow.xml"


def narrow_litert(form: str, source: Path, folder: Path) -> Path:
    """Products whose activations are quantized in every step, weights per output channel."""
    from ai_edge_quantizer import quantizer, recipe

    recipes = {"int8": recipe.dynamic_wi8_afp32, "int4": recipe.dynamic_wi4_afp32}
    maker = quantizer.Quantizer(str(source), recipes[form]())
    target = folder / "narrow.tflite"
    maker.quantize().export_model(str(target), overwrite=True)
    return target


NARROW = {"onnxruntime": narrow_onnxruntime, "openvino": narrow_openvino, "litert": narrow_litert}


def narrow(name: str, folder: Path) -> None:
    """The model of a job in the engine's own narrow form; the job then names that file."""
    engine, _, form = name.partition("-")
    job = json.loads((folder / "job.json").read_text())
    made = NARROW[engine](form, Path(job["model"]), folder)
    (folder / "job.json").write_text(json.dumps(job | {"model": str(made)}))


def serve(engine: str, folder: Path, threads: int) -> None:
    """Run the job that lies in `folder` in one engine, and time a round of it for each line on standard input."""
    job = json.loads((folder / "job.json").read_text())
    data = dict(np.load(folder / "data.npz"))
    peer: Any = {"onnxruntime": Onnxruntime, "openvino": Openvino, "litert": Litert}[engine](job, data, threads)
    chunks = [[data[name][i] for name in job["inputs"]] for i in range(len(data[next(iter(job["inputs"]))]))]
    held, turn = list(peer.inputs.values()), 0

    def step() -> None:
        nonlocal turn
        for place, chunk in zip(held, chunks[turn], strict=False):
            place[...] = chunk
        turn = (turn + 1) % len(chunks)
        peer.step()

    first: dict[str, list[Any]] = {name: [] for name in peer.outputs}
    for _ in range(job["checked"]):
        step()
        for name, array in peer.outputs.items():
            first[name].append(np.array(array))
    np.savez(folder / "outputs.npz", **first)  # type: ignore[arg-type]
    for _ in range(WARM):
        step()
    print("ready", flush=True)
    for line in sys.stdin:
        times: list[float] = []
        end = time.perf_counter() + float(line)
        while not times or time.perf_counter() < end:
            begin = time.perf_counter()
            step()
            times.append((time.perf_counter() - begin) * 1e6)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]))
    elif sys.argv[1] == "narrow":
        narrow(sys.argv[2], Path(sys.argv[3]))
    else:
        serve(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
