"""The Hugging Face model again, from the contract's configuration and the weights in an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from edgemem.errors import ConfigError, ContractError
from edgemem.export.hf import loading, registry
from edgemem.export.hf.stream import CausalStream
from edgemem.models import configuration

if TYPE_CHECKING:
    import numpy as np

    from edgemem.contract import Contract


def module_of(contract: Contract, tensors: Mapping[str, np.ndarray[Any, Any]], origin: str) -> CausalStream:
    """The streaming module that `contract` describes, with `tensors` as its weights.

    Raises:
        ContractError: configuration and weights do not go together.
    """
    facts = contract.model.config
    try:
        fields, given, task = facts["huggingface"], facts["settings"], facts["task"]
        if not (isinstance(fields, dict) and isinstance(given, dict) and isinstance(task, str)):
            raise ContractError(f"contract field model.config: {origin} has no configuration of transformers in it")
        config = loading.configuration(fields, origin)
        exporter = registry.config_of(config, task)
        settings = configuration(config.model_type, exporter.STREAM.settings_type, given)
        shapes = {name.removeprefix("model."): array.shape for name, array in tensors.items()}
        with loading.quiet():
            check_shapes(loading.misfit(config, task, shapes), origin)
            module = exporter.stream(loading.random_model(config, task, seed=0), settings)
    except (KeyError, ConfigError) as error:
        raise ContractError(f"contract field model.config: {error}; export the model again") from error
    fill(module, {name: torch.tensor(array) for name, array in tensors.items()}, origin)
    return module.eval()


def check_shapes(odd: loading.Misfit | None, origin: str) -> None:
    """Refuse weights that are none of the configuration's, before memory is taken for its model.

    Raises:
        ContractError: a tensor of another shape, or one that the file has not.
    """
    if odd is None:
        return
    if odd.came is None:
        raise ContractError(f"contract field model.tensors: {origin} lacks model.{odd.name}; export the model again")
    raise ContractError(
        f"contract field model.tensors.model.{odd.name}: {origin} has {list(odd.came)}, torch {list(odd.wanted)}"
    )


def fill(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], origin: str) -> None:
    """Copy `tensors` into the module: all of its parameters, where one that two names share is there once.

    Raises:
        ContractError: a tensor that the module has not, of another shape, or one that it has and the file has not.
    """
    wanted = module.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        if name not in wanted or wanted[name].shape != tensor.shape:
            came = list(wanted[name].shape) if name in wanted else "no such tensor"
            raise ContractError(f"contract field model.tensors.{name}: {origin} has {list(tensor.shape)}, torch {came}")
    filled = {wanted[name].data_ptr() for name in tensors}
    for name, target in wanted.items():
        if target.data_ptr() not in filled:
            raise ContractError(f"contract field model.tensors: {origin} lacks {name}; export the model again")
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
