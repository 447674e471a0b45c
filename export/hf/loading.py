"""A local folder, or a configuration alone, as a Hugging Face model: what `from_pretrained` makes of it, and no more.

    folder     what is in it, held against its bounds
    loading    a configuration of a type that transformers knows, never code from the folder; its shapes; its weights

Nothing is fetched, nothing is unpickled, and no file names one outside the folder: only links in it lead there, as
those of the Hugging Face cache do. A configuration without weights beside it gives random ones.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from optimum.exporters.tasks import TasksManager
from transformers.modeling_utils import no_init_weights

from edgemem.errors import CheckpointError, ConfigError
from edgemem.export.hf import folder as folders
from edgemem.export.hf import registry
from edgemem.text import first_line

# How a model is run is decided here, and code that a configuration points to is never looked at.
IGNORED = frozenset({"auto_map", "attn_implementation", "_attn_implementation", "dtype", "torch_dtype", "device_map"})
COUNTS = r"(\w+_)?(num|n)_(\w+_)?(layers?|blocks?|heads?|experts?|labels)"  # what models are made of, one by one
MOST_PARTS = 4096
MOST_RANDOM = 1 << 31  # parameters that are made up, where there are no weights
MOST_TABLES = 1 << 31  # bytes of what a model computes of its configuration alone
SIZES = r"(\w+_)?(hidden|vocab|intermediate|state|head|lru)_(size|dim|width)|lru_width|n_embd"  # of every one of these
SHOWN = 80  # characters of what came
INFINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}  # as JSON text, for contracts that hold finite numbers only


@dataclass(frozen=True)
class Loaded:
    """A model in float32, where its weights came from, and its tokenizer.json."""

    model: Any
    source: dict[str, object]
    tokenizer: str | None
    end_tokens: tuple[int, ...]  # after which a text is over


def load(origin: Path, task: str = folders.TASK, seed: int | None = None) -> Loaded:
    """The model in the folder `origin`, or of the configuration `origin` with random weights of `seed`.

    Raises:
        ConfigError: no such folder or configuration, or one that cannot stream.
        CheckpointError: weights that are pickled, outside the folder, or not those of the configuration; an adapter.
    """
    found = folders.opened(origin, seed)
    config = configuration(found.fields, str(found.origin))
    registry.config_of(config, task)  # refuses what cannot stream, before any weights are read
    with quiet():
        if found.files:
            check_shapes(found.path, config, task, folders.shapes(found.files))
            model = pretrained(found.path, config, task)
            source: dict[str, object] = {"kind": "checkpoint", "sha256": digest_of(found.files)}
        else:
            check_room(config, task)
            model = random_model(config, task, seed or 0)
            source = {"kind": "seed", "seed": seed or 0}
    return Loaded(model.eval(), source, found.tokenizer, end_tokens(model))


def configuration(fields: Mapping[str, Any], origin: str) -> Any:
    """The transformers configuration of the fields of a config.json.

    Raises:
        ConfigError: no such model type, or values that it refuses.
    """
    model_type = fields.get("model_type")
    names = registry.model_types()
    if model_type not in names:
        raise ConfigError(
            f"{origin}: model_type {model_type!r} has no streaming form here; there are {', '.join(names)}"
        )
    if fields.get("quantization_config") is not None:
        raise ConfigError(
            f"{origin}: its weights are quantized by another tool; take the float weights, and quantize the exported "
            "file by `edgemem quantize`"
        )
    check_sizes(fields, origin)
    kind = transformers.CONFIG_MAPPING[model_type]
    kept = {key: finite(value, back=True) for key, value in fields.items() if not ignored(kind, key)}
    check_counts(kept, origin)
    try:
        config = kind.from_dict(kept)
    except Exception as error:  # every architecture checks its fields in its own way
        raise ConfigError(f"{origin} is no configuration of {model_type}: {first_line(error)}") from error
    config._attn_implementation = "eager"
    return config


def check_sizes(fields: Mapping[str, Any], origin: str) -> None:
    """Refuse sizes that are no whole numbers above 0, before a model computes with them.

    Raises:
        ConfigError: the first of them.
    """
    for key, value in fields.items():
        if re.fullmatch(SIZES, key) and value is not None and (type(value) is not int or value < 1):
            raise ConfigError(
                f"{origin}: {key} is {str(value)[:SHOWN]!r}, a whole number above 0 was wanted; correct it in the "
                "file, or take the model's own config.json"
            )


def ignored(kind: type, key: str) -> bool:
    """Whether a field says how a model is run, or would take the place of something of the class itself."""
    own = inspect.getattr_static(kind, key, None)
    return key in IGNORED or (own is not None and not isinstance(own, property) and key != "model_type")


def check_counts(fields: Mapping[str, Any], origin: str) -> None:
    """Refuse numbers of layers, heads and the like that no model has, before one is made part by part.

    Raises:
        ConfigError: the first of them.
    """
    for key, value in fields.items():
        if re.fullmatch(COUNTS, key) and isinstance(value, int | float) and not value <= MOST_PARTS:
            raise ConfigError(
                f"{origin}: {key} is {value}, {MOST_PARTS} are the limit; take the model's own config.json"
            )


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a configuration that differ from its defaults, as JSON with finite numbers: for the contract."""
    fields = json.loads(json.dumps(config.to_diff_dict()))
    kept = {key: finite(value) for key, value in fields.items() if key not in IGNORED}
    return {**kept, "model_type": config.model_type}


def finite(value: Any, back: bool = False) -> Any:
    """A JSON value with infinities as text, or (`back`) as numbers again."""
    if isinstance(value, dict):
        return {key: finite(entry, back) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry, back) for entry in value]
    if back:
        return (
            {text: number for number, text in INFINITE.items()}.get(value, value) if isinstance(value, str) else value
        )
    return INFINITE.get(value, value) if isinstance(value, float) else value


def random_model(config: Any, task: str, seed: int) -> Any:
    """A model with the random weights that transformers gives it.

    Raises:
        ConfigError: the configuration cannot be built.
    """
    kind = TasksManager.get_model_class_for_task(task, model_type=config.model_type)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return kind.from_config(config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False)
        except Exception as error:  # whatever the model's constructor raises
            raise ConfigError(
                f"{config.model_type} cannot be made of this configuration: {first_line(error)}"
            ) from error


def without_memory(config: Any, task: str) -> Any:
    """The model of a configuration, its tensors without any memory.

    Raises:
        ConfigError: the configuration cannot be built, or wants tables that no machine should hold.
    """
    with torch.device("meta"), no_init_weights():
        empty = random_model(copy.deepcopy(config), task, seed=0)
        empty.tie_weights()  # which is otherwise left out with the initial values
    tables = sum(tensor.numel() * tensor.element_size() for tensor in empty.buffers())
    if tables > MOST_TABLES:
        raise ConfigError(
            f"{config.model_type} would compute {tables:,} bytes of tables of this configuration, {MOST_TABLES:,} are "
            "the limit; lower its number of positions"
        )
    return empty


def check_room(config: Any, task: str) -> None:
    """Refuse random weights that nobody can want.

    Raises:
        ConfigError: more than the limit.
    """
    count = sum(tensor.numel() for tensor in without_memory(config, task).parameters())
    if count > MOST_RANDOM:
        raise ConfigError(
            f"{config.model_type} has {count:,} parameters by this configuration, of which random ones are made up to "
            f"{MOST_RANDOM:,}; give a folder with weights, or a smaller configuration"
        )


@dataclass(frozen=True)
class Misfit:
    """A tensor that weights and a configuration do not agree on; `came` is None where the weights lack it."""

    name: str
    wanted: tuple[int, ...]
    came: tuple[int, ...] | None


def misfit(config: Any, task: str, found: Mapping[str, tuple[int, ...]]) -> Misfit | None:
    """What of the shapes `found` is none of the configuration's model, which is made here without any memory.

    Names that only one side has may be older ones: something is lacking where there are fewer weights, too.

    Raises:
        ConfigError: the configuration cannot be built.
    """
    empty = without_memory(config, task)
    for name, tensor in empty.state_dict().items():
        if name in found and found[name] != tuple(tensor.shape):
            return Misfit(name, tuple(tensor.shape), found[name])
    wanted = dict(empty.named_parameters())  # what two names share is there once
    if sum(tensor.numel() for tensor in wanted.values()) > sum(map(math.prod, found.values())):
        missing = (name for name in wanted if name not in found)
        return next((Misfit(name, tuple(wanted[name].shape), None) for name in missing), None)
    return None


def check_shapes(folder: Path, config: Any, task: str, found: Mapping[str, tuple[int, ...]]) -> None:
    """Hold the weights of a folder against its configuration before memory is taken for a model.

    Raises:
        CheckpointError: the first tensor that is missing or of another shape.
    """
    try:
        odd = misfit(config, task, found)
    except ConfigError as error:
        raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
    if odd is None:
        return
    if odd.came is None:
        raise CheckpointError(f"{folder} lacks {odd.name} {list(odd.wanted)}; its config.json is of other weights")
    raise CheckpointError(
        f"{folder} has a wrong shape for {odd.name}: {list(odd.wanted)} was wanted, {list(odd.came)} came; its "
        "config.json is of other weights"
    )


def pretrained(folder: Path, config: Any, task: str) -> Any:
    """The model with the weights of the folder, all of them there and none left over.

    Raises:
        CheckpointError: weights that are missing, left over, of other shapes, or damaged.
    """
    kind = TasksManager.get_model_class_for_task(task, model_type=config.model_type)
    try:
        model, found = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises OSError, ValueError, RuntimeError and errors of safetensors
        raise CheckpointError(f"{folder} cannot be loaded: {first_line(error)}") from error
    for problem, names in (("lacks", found["missing_keys"]), ("has a wrong shape for", found["mismatched_keys"])):
        if names:
            raise CheckpointError(
                f"{folder} {problem} {sorted(map(str, names))[0]}; its config.json is of other weights"
            )
    if found["unexpected_keys"]:
        name = sorted(found["unexpected_keys"])[0]
        raise CheckpointError(f"{folder} holds {name}, which the model has not; its config.json is of other weights")
    broken = next((name for name, tensor in model.named_parameters() if bool(torch.isnan(tensor).any())), None)
    if broken is not None:
        raise CheckpointError(
            f"{folder}: {broken} holds NaN; its training has failed, or the file is damaged: take other weights"
        )
    return model


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of one file, or of the digests of several."""
    digests = []
    for path in files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def end_tokens(model: Any) -> tuple[int, ...]:
    """The tokens after which the model's text is over, as its generation settings or its configuration say."""
    settings = getattr(model, "generation_config", None) or model.config
    ends = settings.eos_token_id if settings.eos_token_id is not None else ()
    ends = ends if isinstance(ends, list | tuple) else (ends,)
    return tuple(end for end in ends if isinstance(end, int) and 0 <= end < model.config.vocab_size)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' remarks and bars off the screen."""
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
