"""The command line as a user runs it, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

EDGEMEM = [sys.executable, "-m", "edgemem"]
ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def run(*arguments: object, stdin: bytes = b"", code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """stdout and stderr of a command that must leave with `code` and without a traceback."""
    done = subprocess.run(
        [*EDGEMEM, *map(str, arguments)], input=stdin, capture_output=True, cwd=cwd, env=ENVIRONMENT, timeout=120
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, err or out
    assert "Traceback" not in err + out
    return out, err


def lines(out: str) -> list[dict[str, Any]]:
    """What `--json` printed, a line each."""
    return [json.loads(line) for line in out.splitlines()]
