"""The `edgemem` command, also as `python -m edgemem`."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command; Ctrl-C ends it without a traceback from the first moment on, while packages still load.

    So does SIGTERM, on whose way out half-written files go too.
    """
    signal.signal(signal.SIGTERM, terminated)
    try:
        from edgemem.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("edgemem: stopped\n")
        sys.exit(130)


def terminated(number: int, _: object) -> NoReturn:
    """Leave as for an error, by the exit code of the signal."""
    sys.stderr.write("edgemem: stopped\n")
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
