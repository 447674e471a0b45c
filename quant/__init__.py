"""Quantization of step graphs that knows about their state.

from edgemem.quant import quantize
report = quantize("m.onnx", "q.onnx", "w8")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.quant.quantizer import Report, quantize

__all__ = ["Report", "quantize"]


def __dir__() -> list[str]:
    """What is imported on its first use, too."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    """Import the ONNX library only when something is quantized."""
    if name not in __all__:
        raise AttributeError(f"module 'edgemem.quant' has no attribute {name!r}")
    try:
        from edgemem.quant import quantizer
    except ImportError as error:
        from edgemem.errors import MissingDependency

        raise MissingDependency(
            f"quantizing needs {error.name or 'onnx-ir'}; install it with: pip install 'edgemem[export]'"
        ) from error
    return getattr(quantizer, name)
