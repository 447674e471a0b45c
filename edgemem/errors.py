"""Every error that edgemem raises on purpose; `EdgememError` catches them all.

A message says which thing, what was wanted, what came, and what to do. `exit_code` is what the command
line returns: 1 when a check failed, 2 when the usage or an input was wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EdgememError(Exception):
    """Base of all errors of edgemem."""

    exit_code = 2


class UsageError(EdgememError):
    """An argument, option or call order that cannot work."""


class ConfigError(EdgememError):
    """An unknown model, configuration key or value."""


class ModelFileError(EdgememError):
    """A model file that is missing, truncated, too large or not ONNX."""


class ContractError(EdgememError):
    """A contract that is missing, malformed, altered or at odds with its graph."""


class ExportError(EdgememError):
    """A module that cannot become a static step graph."""


class CompileError(EdgememError):
    """A model that cannot be compiled for a board, or a compiler that failed."""


class BudgetError(CompileError):
    """A program that needs more memory than its board has; `needs` says how much of which, where that was counted."""

    def __init__(self, message: str, needs: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.needs = dict(needs or {})


class InputError(EdgememError):
    """An input of the wrong shape, type or range, or holding NaN."""


class CheckpointError(EdgememError):
    """A checkpoint that is missing, malformed or for another model."""


class SnapshotError(EdgememError):
    """A state snapshot that is truncated, altered or of another model."""


class StreamError(EdgememError):
    """A stream used after its end, or in an order that loses data."""


class PeerError(EdgememError):
    """An engine that edgemem is measured against, or its converter, that failed."""


class DeviceError(EdgememError):
    """A GPU that is missing, too old, too small, or that failed."""


class MissingDependency(EdgememError):
    """An optional package or tool that is not installed."""


class CheckFailed(EdgememError):
    """A verification that ran and did not hold."""

    exit_code = 1
