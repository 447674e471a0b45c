"""Canonical JSON and its SHA-256: equal values, equal bytes."""

from __future__ import annotations

import hashlib
import json


def canonical(value: object) -> str:
    """JSON text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """SHA-256 of a value's canonical JSON, as hexadecimal text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
