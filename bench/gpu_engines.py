"""The engines that `bench.gpu` compares: each steps the same model, states carried on the device.

edgemem        the `tvm` runtime: on CUDA a step is one graph
torch          eager
torch-graph    the eager step captured as one CUDA graph, states written back inside it
torch-compile  the step compiled by torch, then captured in the same way
onnxruntime    its CUDA provider, everything bound to device memory, two sets of states in turn
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.modelfile import ModelFile, open_model, start_values

Array = np.ndarray[Any, np.dtype[Any]]
WARM_UP = 3  # steps before a graph is captured, in which torch plans and allocates


class Absent(Exception):
    """An engine that this machine does not have, with the reason."""


class Engine(ABC):
    """A model on a device, in the middle of a stream."""

    @abstractmethod
    def launch(self) -> None:
        """One step on the input that is there, without waiting."""

    @abstractmethod
    def wait(self) -> None:
        """Until the device has done all."""

    @abstractmethod
    def step(self, x: Array) -> Array:
        """One step from an input of this machine to the output on this machine."""


class Edgemem(Engine):
    """The `tvm` runtime; on the processor without graphs."""

    def __init__(self, path: Path, device: str) -> None:
        import edgemem

        self.program: Any = edgemem.load(path, runtime="tvm", board="cuda_host" if device == "cuda" else "host")
        self.state = self.program.new_state()
        self.input, self.output = self.program.contract.inputs[0].name, self.program.contract.outputs[0].name

    def launch(self) -> None:
        self.program.launch(self.state)

    def wait(self) -> None:
        self.program.device.sync()

    def step(self, x: Array) -> Array:
        output: Array = self.program.step({self.input: x}, self.state)[self.output]
        return output


class Torch(Engine):
    """Eager torch: every operator is launched by Python."""

    def __init__(self, path: Path, device: str) -> None:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise Absent(f"torch {torch.__version__} has no CUDA")
        from edgemem.module import start_state
        from edgemem.reference import rebuilt
        from edgemem.weights import stored_tensors

        torch.backends.cuda.matmul.allow_tf32 = False  # float32, as everywhere here
        model = open_model(path)
        self.torch, self.device = torch, device
        self.module = rebuilt(model, stored_tensors(model)).module.to(device).eval()
        self.state = {k: v.to(device) for k, v in start_state(self.module, model.contract.batch).items()}
        port = model.contract.inputs[0]
        self.x = torch.zeros(port.shape, dtype=getattr(torch, port.dtype), device=device)
        self.y: Any = None

    def forward(self) -> tuple[Any, dict[str, Any]]:
        from edgemem.module import chunk

        return chunk(self.module, self.x, self.state)

    def launch(self) -> None:
        with self.torch.no_grad():
            self.y, self.state = self.forward()

    def wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def step(self, x: Array) -> Array:
        self.x.copy_(self.torch.from_numpy(x))
        self.launch()
        output: Array = self.y.cpu().numpy()
        return output


class TorchGraph(Torch):
    """The step as a CUDA graph; on a processor, which has none, the same step is run in its place."""

    def __init__(self, path: Path, device: str) -> None:
        super().__init__(path, device)
        self.forward_once = self.prepared()
        start = {name: tensor.clone() for name, tensor in self.state.items()}
        self.replay: Callable[[], None] = self.in_place
        if device == "cuda":
            self.replay = self.captured()
        for name, tensor in start.items():
            self.state[name].copy_(tensor)

    def prepared(self) -> Callable[[], tuple[Any, dict[str, Any]]]:
        return self.forward

    def in_place(self) -> None:
        """One step, the new states written over the old ones, for a graph reads where it has read before."""
        with self.torch.no_grad():
            self.y, after = self.forward_once()
            for name, tensor in after.items():
                self.state[name].copy_(tensor)

    def captured(self) -> Callable[[], None]:
        cuda = self.torch.cuda
        beside = cuda.Stream()
        beside.wait_stream(cuda.current_stream())
        with cuda.stream(beside):
            for _ in range(WARM_UP):
                self.in_place()
        cuda.current_stream().wait_stream(beside)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            self.in_place()
        replay: Callable[[], None] = graph.replay
        return replay

    def launch(self) -> None:
        self.replay()


class TorchCompile(TorchGraph):
    """The step compiled by torch; without a GPU only traced, for the code that would be made is another one."""

    def prepared(self) -> Callable[[], tuple[Any, dict[str, Any]]]:
        from edgemem.module import chunk

        module = self.module
        compiled = self.torch.compile(
            lambda x, state: chunk(module, x, state), backend="inductor" if self.device == "cuda" else "eager"
        )
        return lambda: compiled(self.x, self.state)


class Onnxruntime(Engine):
    """onnxruntime bound to memory of the device."""

    def __init__(self, path: Path, device: str) -> None:
        import onnxruntime

        provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise Absent(f"onnxruntime {onnxruntime.__version__} has no {provider}: pip install onnxruntime-gpu")
        model = open_model(path)
        options: list[Any] = [(provider, {"use_tf32": 0})] if device == "cuda" else [provider]
        self.session = onnxruntime.InferenceSession(str(path), providers=options)
        if self.session.get_providers()[0] != provider:
            raise Absent(f"onnxruntime {onnxruntime.__version__} cannot start {provider}")
        self.value: Callable[[Array], Any] = lambda array: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        self.held: list[Any] = []  # on a processor an OrtValue is the array's own memory
        self.output = self.value(self.kept(model.contract.outputs[0]))
        self.x = self.kept(model.contract.inputs[0])
        self.input = self.value(self.x)
        self.bindings, self.turn = self.bound(model), 0

    def kept(self, fact: Any) -> Array:
        array = np.zeros(fact.shape, fact.dtype)
        self.held.append(array)
        return array

    def bound(self, model: ModelFile) -> list[Any]:
        """Two bindings: the states of one set to the other, and back."""
        states = model.contract.states
        starts: Mapping[str, Array] = start_values(model)
        first = {state.name: np.array(starts[state.name]) for state in states}
        self.held.append(first)
        second = {state.name: self.kept(state) for state in states}
        sets = [{name: self.value(array) for name, array in arrays.items()} for arrays in (first, second)]
        bindings = []
        for before, after in (sets, sets[::-1]):
            binding = self.session.io_binding()
            binding.bind_ortvalue_input(model.contract.inputs[0].name, self.input)
            binding.bind_ortvalue_output(model.contract.outputs[0].name, self.output)
            for state in states:
                binding.bind_ortvalue_input(state.input, before[state.name])
                binding.bind_ortvalue_output(state.output, after[state.name])
            bindings.append(binding)
        return bindings

    def launch(self) -> None:
        self.session.run_with_iobinding(self.bindings[self.turn])
        self.turn ^= 1

    def wait(self) -> None:
        self.bindings[self.turn].synchronize_outputs()

    def step(self, x: Array) -> Array:
        self.input.update_inplace(x)
        self.launch()
        output: Array = self.output.numpy()
        return output


ENGINES: Mapping[str, Callable[[Path, str], Engine]] = {
    "edgemem": Edgemem,
    "torch": Torch,
    "torch-graph": TorchGraph,
    "torch-compile": TorchCompile,
    "onnxruntime": Onnxruntime,
}
