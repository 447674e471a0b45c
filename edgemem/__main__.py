"""The `edgemem` command, also as `python -m edgemem`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command; Ctrl-C ends it without a traceback from the first moment on, while packages still load."""
    try:
        from edgemem.cli.main import main as command

        command()
    except KeyboardInterrupt:
        sys.stderr.write("edgemem: stopped\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
