"""Foreign ONNX files with state: a contract for them, and a static step graph of primitive operators.

adopt("foreign.onnx", "m.onnx", Request(states={"h": "hn"}))

    source     the file from outside, held against its bounds
    fixed      a size for every axis, a value for what never changes
    freeze     shapes, conditions and loops that are known by then -> a straight line
    detect     which outputs are the next step's inputs
    axes       which axis is the batch, and which is time
    boundary   the contract's shapes around the graph
    rewrite    operators that compilers lack, in primitive ones
    streaming  a model of whole sequences as a step
    adopter    all of it in order, and the proof against the foreign file
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.export.adopt.adopter import Adopted, adopt
    from edgemem.export.adopt.draft import Decision
    from edgemem.export.adopt.request import Request

PLACES = {"adopt": "adopter", "Adopted": "adopter", "Decision": "draft", "Request": "request"}
__all__ = ["Adopted", "Decision", "Request", "adopt"]


def __getattr__(name: str) -> Any:
    """Import the ONNX libraries only when something is adopted."""
    if name not in PLACES:
        raise AttributeError(f"module 'edgemem.export.adopt' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"edgemem.export.adopt.{PLACES[name]}"), name)
