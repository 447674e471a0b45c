"""Streaming-memory models from PyTorch to the edge, with state under a contract.

program = edgemem.load("m.onnx")     weights, shared
stream = program.stream()            state, one per stream
y = stream.step(x)

Where things are:

    declare   state, module, cells/, models/, checkpoints          what is remembered, and by which equations
    describe  contract, consistency, modelfile, onnxfile, weights  what a file promises, and whether it holds
    stream    program, inputs, stream, snapshot, frontend, audio   steps, pushes, time, state as a file
    prove     trial, compare, reference, narrow, verify            two programs of one model, step by step
    judge     tasks/, evaluation, measure, peers/, inspect         how good, how fast, how large
    show      cli/, runner, generate, demo, boards, text           what people see
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgemem.module import Composite, StreamingModule
    from edgemem.program import Program, load
    from edgemem.state import Port, StateTensor
    from edgemem.stream import Rows, Stream

__version__ = "0.1.0"
__all__ = ["Composite", "Port", "Program", "Rows", "StateTensor", "Stream", "StreamingModule", "load"]

HOMES = {
    "Composite": "edgemem.module",
    "Port": "edgemem.state",
    "Program": "edgemem.program",
    "Rows": "edgemem.stream",
    "StateTensor": "edgemem.state",
    "Stream": "edgemem.stream",
    "StreamingModule": "edgemem.module",
    "load": "edgemem.program",
}


def __getattr__(name: str) -> Any:
    """Import on first use: a program that streams never loads torch, one that exports never loads an engine."""
    if name not in HOMES:
        raise AttributeError(f"module 'edgemem' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
