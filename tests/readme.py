"""The examples of the README and of docs/, as text: `python tests/readme.py > examples.py` writes those in Python."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def examples(language: str, page: Path = README) -> list[str]:
    """Every block of a language in a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


if __name__ == "__main__":
    print("\n\n".join(examples("python")))
