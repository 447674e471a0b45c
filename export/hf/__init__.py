"""Hugging Face language models as step graphs with explicit state.

export_hf("folder", "m.onnx")     a folder with config.json and safetensors; config.json alone gives random weights
@streams("my_type")               makes a `CausalStream` known for a model type, here and to optimum's `TasksManager`

    folder     what a folder holds, before anything slow is imported
    loading    the folder or the configuration -> the model, as `from_pretrained` makes it
    registry   which architecture streams in which file
    stream     what all of them share; beside it one file for each architecture
    rebuild    the model again, from an exported file: the reference of `edgemem verify`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.export.hf.exporter import export_hf
    from edgemem.export.hf.registry import streams
    from edgemem.export.hf.stream import CausalStream

__all__ = ["CausalStream", "export_hf", "streams"]
HOMES = {"export_hf": "exporter", "streams": "registry", "CausalStream": "stream"}


def __getattr__(name: str) -> Any:
    """Import transformers only when something is exported."""
    if name not in __all__:
        raise AttributeError(f"module 'edgemem.export.hf' has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(f"edgemem.export.hf.{HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        from edgemem.errors import MissingDependency

        raise MissingDependency(
            f"Hugging Face models need {error.name}; install it with: pip install 'edgemem[export,hf]'"
        ) from error
