"""A Hugging Face folder before transformers is imported: what is in it, held against its bounds.

    config.json                     the architecture
    model.safetensors               the weights, or model.safetensors.index.json and the parts that it names
    tokenizer.json                  how text becomes tokens, if it is there

Imports nothing that is slow, so that a folder that cannot be exported is refused at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem.errors import CheckpointError, ConfigError
from edgemem.text import first_line
from edgemem.tokenizer import MAX_TOKENIZER_BYTES

TASK = "text-generation"
ADAPTER = "adapter_config.json"  # transformers would load the base model that it names, from wherever
CONFIG, INDEX, WEIGHTS, TOKENIZER = "config.json", "model.safetensors.index.json", "model.safetensors", "tokenizer.json"
NO_CONFIG = (".onnx", ".safetensors", ".bin", ".gguf")  # files that people give in its place
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
MAX_CONFIG_BYTES, MAX_INDEX_BYTES, MAX_HEADER_BYTES = 1 << 22, 1 << 26, 1 << 26
MAX_NAME, SHOWN = 255, 80  # bytes of a file's name; characters of what came in a message
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Folder:
    """What there is to load: the fields of the configuration, the files of the weights (none: random ones)."""

    path: Path
    origin: Path  # of the configuration
    fields: dict[str, Any]
    files: tuple[Path, ...]
    tokenizer: str | None


def opened(origin: Path, seed: int | None = None) -> Folder:
    """The folder `origin`, or that of the configuration `origin`; with a `seed` its weights are left alone.

    Raises:
        ConfigError: no such folder or configuration, or one that is no JSON object with a model_type.
        CheckpointError: weights that are pickled, outside the folder, or damaged; an adapter.
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
    if path.suffix in NO_CONFIG:
        raise ConfigError(
            f"{path} is no {CONFIG}: --hf takes a folder that transformers has saved, or its {CONFIG}; "
            + ("`edgemem adopt` takes ONNX files" if path.suffix == ".onnx" else f"give {path.parent}")
        )
    fields = read_json(path, MAX_CONFIG_BYTES)
    if not isinstance(fields.get("model_type"), str):
        raise ConfigError(
            f"{path}: model_type {fields.get('model_type')!r} has no streaming form here; the config.json of a model "
            "of transformers was wanted"
        )
    files = weight_files(folder) if origin.is_dir() and seed is None else []
    shapes(files)
    tokenizer = read_text(folder / TOKENIZER, MAX_TOKENIZER_BYTES) if (folder / TOKENIZER).is_file() else None
    return Folder(folder, path, fields, tuple(files), tokenizer)


def is_part(name: str) -> bool:
    """Whether a name in an index can be that of a file beside it."""
    plain = name.isprintable() and len(name.encode(errors="replace")) <= MAX_NAME
    return plain and Path(name).name == name and name.endswith(".safetensors")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, none where the folder has no weights.

    Raises:
        CheckpointError: weights in a pickled form only, or an index that names something else than files of the folder.
    """
    if (folder / INDEX).is_file():
        parts = read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
        names = sorted({str(part) for part in parts.values()}) if isinstance(parts, dict) else []
        odd = [name for name in names if not is_part(name)]
        if odd or not names:
            came = odd[0][:SHOWN] if odd else "none"
            raise CheckpointError(f"{folder / INDEX}: names of .safetensors files beside it were wanted, {came} came")
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


def shapes(files: Iterable[Path]) -> Shapes:
    """The shape of every tensor of some safetensors files, by name, from their headers alone.

    Raises:
        CheckpointError: a header that is damaged.
    """
    found: Shapes = {}
    for path in files:
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                if not 0 < size <= min(MAX_HEADER_BYTES, path.stat().st_size):
                    raise ValueError(f"a header of {size:,} bytes")
                header = json.loads(file.read(size))
            tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
            found |= {name: shape_of(facts["shape"]) for name, facts in tensors.items()}
            end = 8 + size + max((int(facts["data_offsets"][1]) for facts in tensors.values()), default=0)
            if path.stat().st_size < end:
                raise ValueError(f"{end:,} bytes were announced, {path.stat().st_size:,} are there")
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"{path} is no whole safetensors file ({first_line(error)}); copy it again"
            ) from error
    return found


def shape_of(sizes: Any) -> tuple[int, ...]:
    """A shape as a header has it."""
    if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size < 1 << 48 for size in sizes):
        raise ValueError(f"the shape {str(sizes)[:SHOWN]}")
    return tuple(sizes)


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
