"""A local folder, or a configuration alone, as a Hugging Face model: what `from_pretrained` makes of it, and no more.

    config.json                     the architecture; a type that transformers knows, never code from the folder
    model.safetensors               the weights, or model.safetensors.index.json and the parts that it names
    tokenizer.json                  how text becomes tokens, if it is there

Nothing is fetched, nothing is unpickled, and no file names one outside the folder: only links in it lead there, as
those of the Hugging Face cache do. A configuration without weights beside it gives random ones.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from optimum.exporters.tasks import TasksManager

from edgemem.errors import CheckpointError, ConfigError
from edgemem.export.hf import registry
from edgemem.text import first_line
from edgemem.tokenizer import MAX_TOKENIZER_BYTES

ADAPTER = "adapter_config.json"  # transformers would load the base model that it names, from wherever
CONFIG, INDEX, WEIGHTS, TOKENIZER = "config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
MAX_CONFIG_BYTES, MAX_INDEX_BYTES = 1 << 22, 1 << 26
# How a model is run is decided here, and code that a configuration points to is never looked at.
IGNORED = frozenset({"auto_map", "attn_implementation", "_attn_implementation", "dtype", "torch_dtype", "device_map"})
INFINITE = {math.inf: "Infinity", -math.inf: "-Infinity"}  # as JSON text, for contracts that hold finite numbers only


@dataclass(frozen=True)
class Loaded:
    """A model in float32, where its weights came from, and its tokenizer.json."""

    model: Any
    source: dict[str, object]
    tokenizer: str | None
    end_tokens: tuple[int, ...]  # after which a text is over


def load(origin: Path, task: str = registry.TASK, seed: int | None = None) -> Loaded:
    """The model in the folder `origin`, or of the configuration `origin` with random weights of `seed`.

    Raises:
        ConfigError: no such folder or configuration, or one that cannot stream.
        CheckpointError: weights that are pickled, outside the folder, or not those of the configuration; an adapter.
    """
    folder = origin if origin.is_dir() else origin.parent
    if origin.is_dir() and (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} has {ADAPTER}: it adapts another model, which is not in the folder; merge the two and save the "
            "result: model.merge_and_unload().save_pretrained(folder)"
        )
    path = folder / CONFIG if origin.is_dir() else origin
    if not path.is_file():
        raise ConfigError(
            f"{origin} is no folder with a {CONFIG} and no configuration file; give one that is on this machine: "
            "models are never fetched"
        )
    config = configuration(read_json(path, MAX_CONFIG_BYTES), str(path))
    registry.config_of(config, task)  # refuses what cannot stream, before any weights are read
    files = weight_files(folder) if origin.is_dir() and seed is None else []
    with quiet():
        if files:
            model = pretrained(folder, config, task)
            source: dict[str, object] = {"kind": "checkpoint", "sha256": digest_of(files)}
        else:
            model = random_model(config, task, seed or 0)
            source = {"kind": "seed", "seed": seed or 0}
    tokenizer = read_text(folder / TOKENIZER, MAX_TOKENIZER_BYTES) if (folder / TOKENIZER).is_file() else None
    return Loaded(model.eval(), source, tokenizer, end_tokens(model))


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
    kept = {key: finite(value, back=True) for key, value in fields.items() if key not in IGNORED}
    try:
        config = transformers.CONFIG_MAPPING[model_type].from_dict(kept)
    except Exception as error:  # every architecture checks its fields in its own way
        raise ConfigError(f"{origin} is no configuration of {model_type}: {first_line(error)}") from error
    config._attn_implementation = "eager"
    return config


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
    return model


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, none where the folder has no weights.

    Raises:
        CheckpointError: weights in a pickled form only, or an index that names something else than files of the folder.
    """
    if (folder / INDEX).is_file():
        parts = read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
        names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
        odd = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if odd or not names:
            raise CheckpointError(
                f"{folder / INDEX}: names of .safetensors files beside it were wanted, {odd[:1] or 'none'} came"
            )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {missing[0]}, which {INDEX} names; copy the whole folder")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if pickled:
        raise CheckpointError(
            f"{folder} has its weights in {pickled[0]}, a format that can run code when it is read; save them as "
            "safetensors on a machine that trusts them: model.save_pretrained(folder, safe_serialization=True)"
        )
    return []


def digest_of(files: list[Path]) -> str:
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


def read_json(path: Path, limit: int) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        ConfigError: too large, not JSON, or not an object.
    """
    try:
        fields = json.loads(read_text(path, limit))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({first_line(error)}); copy it again") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{path} must hold a JSON object, it holds {type(fields).__name__}; copy it again")
    return fields


def read_text(path: Path, limit: int) -> str:
    """A text file of at most `limit` bytes.

    Raises:
        ConfigError: larger, unreadable, or not UTF-8.
    """
    try:
        if path.stat().st_size > limit:
            raise ConfigError(f"{path} has {path.stat().st_size:,} bytes, {limit:,} are allowed; it is something else")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)}); copy it again") from error


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
