"""Torch modules to ONNX step graphs with explicit state.

to_onnx(module, example, "m.onnx")      any module that declares its states
export_model("rwkv4", "r.onnx")         a model of the zoo
torch_program("rwkv4")                  the same as a program, no file written
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.export.exporter import export_model, to_onnx, torch_program

__all__ = ["export_model", "to_onnx", "torch_program"]


def __getattr__(name: str) -> Any:
    """Import torch only when something is exported."""
    if name not in __all__:
        raise AttributeError(f"module 'edgemem.export' has no attribute {name!r}")
    try:
        from edgemem.export import exporter
    except ImportError as error:
        from edgemem.errors import MissingDependency

        raise MissingDependency(
            f"exporting needs {error.name or 'torch'}; install it with: pip install 'edgemem[export]'"
        ) from error
    return getattr(exporter, name)
