"""From a Hugging Face folder or configuration to an ONNX file with a contract."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from edgemem.contract import Contract
from edgemem.export.hf import folder
from edgemem.files import check_output


def export_hf(
    origin: str | Path,
    path: str | Path,
    settings: Mapping[str, object] | None = None,
    *,
    task: str = folder.TASK,
    seed: int | None = None,
    chunk: int = 1,
    batch: int = 1,
) -> Contract:
    """Export the model in the folder `origin`, or of a configuration file with random weights of `seed`.

    Its tokenizer.json, if there is one, travels in the file.

    Raises:
        ConfigError: an architecture, task or setting that cannot stream.
        CheckpointError: weights that are pickled, or not those of the configuration.
        UsageError: `path` cannot be written to.
        ExportError: the model cannot be exported; nothing is written.
    """
    check_output(Path(path), Path(origin))
    folder.opened(Path(origin), seed)  # before anything slow is imported
    from edgemem import tokenizer as tokenizers
    from edgemem.export.exporter import to_onnx
    from edgemem.export.hf import loading, registry
    from edgemem.models import configuration
    from edgemem.reference import HUGGING_FACE

    loaded = loading.load(Path(origin), task, seed)
    config = registry.config_of(loaded.model.config, task)
    fields = loading.fields_of(loaded.model.config)
    chosen = configuration(loaded.model.config.model_type, config.STREAM.settings_type, settings or {})
    attached, encoding = tokenizers.attachment(loaded.tokenizer, loaded.model.config.vocab_size)
    module = config.stream(loaded.model, chosen, encoding)
    facts: dict[str, object] = {
        "family": HUGGING_FACE,
        "name": loaded.model.config.model_type,
        "config": {
            "huggingface": fields,
            "task": folder.TASK,
            "settings": dataclasses.asdict(chosen),
            "end_tokens": list(loaded.end_tokens),
        },
        "source": loaded.source,
    }
    return to_onnx(module, None, path, chunk=chunk, batch=batch, facts=facts, attached=attached)
