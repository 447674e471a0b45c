"""The Python example of the README, as text: `python tests/readme.py > example.py`."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def python_examples() -> list[str]:
    """Every Python block of the README, in order."""
    return re.findall(r"^```python\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


def shell_examples() -> list[str]:
    """Every shell block of the README, in order."""
    return re.findall(r"^```sh\n(.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)


if __name__ == "__main__":
    print(python_examples()[0])
