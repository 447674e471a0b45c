"""The torch module as a program: the reference that every runtime is compared with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from edgemem import module as streaming
from edgemem.errors import ConfigError, ContractError, MissingDependency
from edgemem.program import Array, Program, StateBlock

if TYPE_CHECKING:
    from torch import nn

    from edgemem.contract import Contract
    from edgemem.modelfile import ModelFile


HUGGING_FACE = "huggingface"  # the family of models that `edgemem export --hf` wrote


class TorchState(StateBlock):
    """The states of one stream as torch tensors."""

    def __init__(self, module: nn.Module, batch: int) -> None:
        self._module, self._batch = module, batch
        self.tensors = streaming.start_state(module, batch)

    def get(self) -> dict[str, Array]:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.tensors.items()}

    def set(self, values: Mapping[str, Array]) -> None:
        self.tensors = {name: torch.tensor(values[name], dtype=old.dtype) for name, old in self.tensors.items()}

    def reset(self) -> None:
        self.tensors = streaming.start_state(self._module, self._batch)


class TorchProgram(Program):
    """A streaming module run by torch in its chunk form, on one thread's worth of work per step.

    Inputs of floats become the module's floating-point type, so that a float64 module takes what a float32 one does.
    """

    runtime = "torch"

    def __init__(self, module: nn.Module, contract: Contract) -> None:
        self.module, self.contract = module.eval(), contract
        self.weight_bytes = sum(tensor.nbytes for tensor in module.state_dict().values())
        self._floating = streaming.floating_dtype(module)
        self._ports = [port.name for port in contract.inputs if port.role != "valid"]
        self._valid = next((port.name for port in contract.inputs if port.role == "valid"), None)

    def new_state(self) -> TorchState:
        return TorchState(self.module, self.contract.batch)

    def step(self, inputs: Mapping[str, Array], state: StateBlock) -> dict[str, Array]:
        assert isinstance(state, TorchState)
        tensors = {name: torch.tensor(array) for name, array in inputs.items()}
        tensors = {name: u.to(self._floating) if u.is_floating_point() else u for name, u in tensors.items()}
        x: Any = {name: tensors[name] for name in self._ports} if len(self._ports) > 1 else tensors[self._ports[0]]
        valid = tensors[self._valid] if self._valid is not None else None
        with torch.no_grad():
            y, state.tensors = streaming.chunk(self.module, x, state.tensors, valid)
        rows = y if isinstance(y, dict) else {self.contract.outputs[0].name: y}
        return {name: tensor.numpy() for name, tensor in rows.items()}


def rebuilt(model: ModelFile, tensors: Mapping[str, Array]) -> TorchProgram:
    """The torch program of a model file: the zoo's module at the contract's configuration, with `tensors` as weights.

    A Hugging Face model is built by transformers.

    Raises:
        ConfigError: the contract's model is not one of these, so there is no torch form to rebuild.
        ContractError: the contract's configuration or weights do not fit the zoo's model.
    """
    from edgemem.errors import CheckpointError
    from edgemem.models import configured, load_tensors, spec, specs

    facts = model.contract.model
    if facts.family == HUGGING_FACE:
        return TorchProgram(hugging_face(model, tensors), model.contract)
    if facts.name not in specs():
        raise ConfigError(
            f"{model.path} holds {facts.name!r}, which is not a model of the zoo and cannot be rebuilt from the file; "
            "give its parent file by --reference, or call edgemem.verify.verify(path, module=...)"
        )
    try:
        module = spec(facts.name).build(configured(spec(facts.name), facts.config))
        starts = {state.start for state in model.contract.states if isinstance(state.start, str)}
        weights = {name: torch.tensor(array) for name, array in tensors.items() if name not in starts}
        load_tensors(module, weights, str(model.path))
    except (ConfigError, CheckpointError) as error:
        raise ContractError(f"contract field model: {error}") from error
    return TorchProgram(module, model.contract)


def hugging_face(model: ModelFile, tensors: Mapping[str, Array]) -> nn.Module:
    """The streaming module of an exported Hugging Face model.

    Raises:
        ContractError: configuration and weights do not go together.
        MissingDependency: transformers is not installed.
    """
    try:
        rebuild = importlib.import_module("edgemem.export.hf.rebuild")
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"the torch form of {model.path} needs {error.name}; install it with: pip install 'edgemem[export,hf]'"
        ) from error
    module: nn.Module = rebuild.module_of(model.contract, tensors, str(model.path))
    return module
