"""The models that edgemem builds by name: each file named in `FILES` lists its `MODELS`.

A model joins by a line in that list, and its file by one in `FILES`. Its configuration is a frozen dataclass of
numbers, booleans and strings whose `__post_init__` refuses what cannot work; `build` makes the module with random
weights.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.errors import CheckpointError, ConfigError
from edgemem.text import first_line, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from edgemem.module import StreamingModule

FILES = (
    "rwkv4",
    "lmu",
    "kws_lmuformer",
    "kws_spiking",
    "kws_gru",
    "kws_transformer",
    "memformer",
    "folding",
    "transformer",
    "transformer_xl",
    "probes",
)  # each lists one or more MODELS


@dataclass(frozen=True)
class ModelSpec:
    """One model of the zoo. `config` is a frozen dataclass type, `build` makes a module of one of its values.

    `checkpoint` is a packaged safetensors file (under `edgemem/tasks/data`), loaded when no seed is asked
    for and the configuration is the default one, but for the settings in `unweighted`, which no weight depends on;
    `forms` are further ones by file name, each with the settings that it was trained at. `convert` turns a public
    checkpoint's tensors into the module's names, and `settings_of` reads the configuration off its shapes.
    """

    name: str
    family: str
    paper: str
    summary: str
    config: type
    build: Callable[[Any], StreamingModule]
    checkpoint: str | None = None
    unweighted: tuple[str, ...] = ()
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None
    settings_of: Callable[[Mapping[str, Tensor]], dict[str, object]] | None = None
    forms: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def trained(self) -> dict[str, Mapping[str, object]]:
        """The packaged checkpoints by file name, and the settings of each."""
        return {**({self.checkpoint: {}} if self.checkpoint else {}), **self.forms}


def specs() -> dict[str, ModelSpec]:
    """All models by name, in the order of `FILES`."""
    found: dict[str, ModelSpec] = {}
    for name in FILES:
        for spec in importlib.import_module(f"edgemem.models.{name}").MODELS:
            found[spec.name] = spec
    return found


def spec(name: str) -> ModelSpec:
    """The model called `name`.

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    known = specs()
    if name not in known:
        raise ConfigError(f"unknown model {name!r}{nearest(name, known)}; `edgemem models` lists {', '.join(known)}")
    return known[name]


def configured(model: ModelSpec, settings: Mapping[str, object]) -> Any:
    """The model's configuration with `settings` in place of defaults; see `configuration`."""
    return configuration(model.name, model.config, settings)


def configuration(name: str, kind: type, settings: Mapping[str, object]) -> Any:
    """A frozen dataclass `kind` with `settings` in place of defaults; strings are parsed by the field's type.

    Raises:
        ConfigError: an unknown key (the nearest is suggested), a value of the wrong type or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values: dict[str, object] = {}
    for key, value in settings.items():
        if key not in fields:
            has = f"it has {', '.join(sorted(fields))}" if fields else "it has none"
            raise ConfigError(f"{name} has no setting {key!r}{nearest(key, fields)}; {has}")
        values[key] = parsed(name, key, value, type(fields[key].default))
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def parsed(model: str, key: str, value: object, kind: type) -> object:
    """One setting as the type of its default.

    Raises:
        ConfigError: not a value of that type.
    """
    text = str(value).strip()
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        if kind is float and math.isfinite(float(text)):
            return float(text)
        if kind in (int, str):
            return kind(text)
    except (ValueError, KeyError):
        pass
    wanted = {bool: "true or false", int: "a whole number", float: "a finite number"}[kind]
    raise ConfigError(f"{model}: {key} must be {wanted}, got {text!r}; write --set {key}=VALUE")


def at_least(config: object, **bounds: float) -> None:
    """Refuse a configuration in which a field is below its bound.

    Raises:
        ConfigError: naming the field, the bound and the value.
    """
    for key, bound in bounds.items():
        if getattr(config, key) < bound:
            raise ConfigError(f"{key} must be at least {bound}, got {getattr(config, key)}")


def divides(config: object, part: str, whole: str) -> None:
    """Refuse a configuration in which `part` does not divide `whole`.

    Raises:
        ConfigError: naming both fields and their values.
    """
    if getattr(config, whole) % getattr(config, part):
        raise ConfigError(
            f"{whole} must be a multiple of {part}, "
            f"got {whole}={getattr(config, whole)} and {part}={getattr(config, part)}"
        )


def build_model(
    name: str,
    settings: Mapping[str, object] | None = None,
    seed: int | None = None,
    checkpoint: str | Path | None = None,
) -> tuple[StreamingModule, dict[str, object]]:
    """A module of the zoo in evaluation mode, and what it was made of: `config` and `source`, as plain data.

    Weights come from `checkpoint` (safetensors, or .pth with tensors only), else from the packaged checkpoint of this
    configuration if there is one and no seed is given, else from `seed` (0 if none).

    Raises:
        ConfigError: unknown model or setting, or a value that cannot work.
        CheckpointError: a checkpoint that does not fit; the first tensor that differs is named.
    """
    import torch

    from edgemem import checkpoints

    model = spec(name)
    settings = dict(settings or {})
    tensors: Mapping[str, Tensor] | None = None
    source: dict[str, object] = {"kind": "seed", "seed": seed or 0}
    if checkpoint is None and seed is None:
        wanted = configured(model, settings)
        fitting = [file for file, form in model.trained().items() if fits_packaged(model, wanted, form)]
        checkpoint = checkpoints.packaged(fitting[0]) if fitting else None
    if checkpoint is not None:
        tensors, digest = checkpoints.read(Path(checkpoint))
        source = {"kind": "checkpoint", "sha256": digest}
        if model.settings_of is not None:
            settings = {**model.settings_of(tensors), **settings}
        if model.convert is not None:
            tensors = model.convert(tensors)
    config = configured(model, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        module = built(model, config)
    if tensors is not None:
        load_tensors(module, tensors, str(checkpoint))
    facts: dict[str, object] = {
        "name": model.name,
        "family": model.family,
        "config": dataclasses.asdict(config),
        "source": source,
    }
    return module.eval(), facts


def built(model: ModelSpec, config: object) -> StreamingModule:
    """A module of a configuration, with random weights.

    Raises:
        ConfigError: its tensors are larger than the memory, or than any number of elements.
    """
    try:
        return model.build(config)
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise ConfigError(
            f"{model.name} cannot be made with {config}: {first_line(error)}; lower its settings"
        ) from error


def fits_packaged(model: ModelSpec, config: Any, form: Mapping[str, object] | None = None) -> bool:
    """Whether the packaged checkpoint that was trained at the settings `form` has the weights of this configuration."""
    trained = configured(model, form or {})
    free = {key: getattr(trained, key) for key in model.unweighted}
    return bool(dataclasses.replace(config, **free) == trained)


def load_tensors(module: StreamingModule, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Copy `tensors` into the module's parameters and buffers, all of them, shapes equal.

    Raises:
        CheckpointError: a missing, unknown or differently shaped tensor.
    """
    wanted = module.state_dict()
    for name, target in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"{origin} lacks {name} {list(target.shape)}; it is for another model or setting")
        if tensors[name].shape != target.shape:
            raise CheckpointError(
                f"{origin}: {name} must have shape {list(target.shape)}, got {list(tensors[name].shape)}; "
                "give the settings it was trained with by --set"
            )
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        raise CheckpointError(f"{origin} holds {unknown[0]}, which the model has not; it is for another model")
    module.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
