"""What `quantize` may be asked, looked at before any work."""

from __future__ import annotations

import math
from typing import Any

from edgemem.errors import UsageError


def check_arguments(scheme: Any, exclude: Any, state: Any, state_budget: Any, smallest: Any, steps: Any) -> None:
    """Refuse arguments of `quantize` that cannot mean anything.

    Raises:
        UsageError: naming the argument, what was wanted and what came.
    """
    for name, value, example in (("scheme", scheme, "w8"), ("state", state, "f32")):
        if not isinstance(value, str):
            raise UsageError(f"{name} must be a text such as {example!r}, got {value!r}")
    if isinstance(exclude, (str, bytes)):
        raise UsageError(f"exclude must be a list of globs, got the text {exclude!r}; write exclude=[{exclude!r}]")
    wrong = [glob for glob in exclude if not isinstance(glob, str)]
    if wrong:
        raise UsageError(f"exclude must be a list of globs, such as 'head.*', got {wrong[0]!r} in it")
    check_whole("smallest", smallest, 0)
    check_whole("steps", steps, 1)
    if isinstance(state_budget, bool) or not isinstance(state_budget, (int, float)) or not 0 < state_budget < math.inf:
        raise UsageError(f"state_budget must be a share above 0, such as 0.005, got {state_budget!r}")


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number of at least {least}, got {value!r}")
