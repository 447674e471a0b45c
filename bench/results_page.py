"""The results page, made of the result files beside it: python -m bench.results_page

writes bench/results/README.md: a table of the papers' headlines, then each task's section. A task takes part once it
has a result file bench/results/NAME.json and a `section` in bench/tasks/NAME/page.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

from bench import boards, compiled, gpu, quant_table
from bench.claims import Claim, Section, markdown
from bench.timing import RESULTS
from edgemem.files import atomic_write
from edgemem.tasks import TASKS

HEADS = ("model", "paper", "claim", "set-up here", "measured here", "how they compare")
OPENING = """# Results

Made by `python -m bench.results_page` from the result files in this folder; do not edit. Papers were measured on other
data, with larger models and on other machines, so the set-up stands beside each number.
"""


def sections() -> dict[str, Section]:
    """The sections of all tasks that have a result, by task."""
    found = {}
    for name in TASKS:
        path, module = RESULTS / f"{name}.json", f"bench.tasks.{name}.page"
        if path.is_file() and importlib.util.find_spec(module):
            found[name] = importlib.import_module(module).section(json.loads(path.read_text()))
    if (RESULTS / "quant.json").is_file():
        found["quant"] = quant_table.section(json.loads((RESULTS / "quant.json").read_text()))
    if (RESULTS / "compiled.json").is_file():
        found["compiled"] = compiled.section(json.loads((RESULTS / "compiled.json").read_text()))
    if (RESULTS / "boards.json").is_file():
        found["boards"] = boards.section(json.loads((RESULTS / "boards.json").read_text()))
    if (RESULTS / "gpu.json").is_file():
        found["gpu"] = gpu.section(json.loads((RESULTS / "gpu.json").read_text()))
    return found


def row(claim: Claim) -> list[str]:
    """A claim as a row under `HEADS`."""
    return [claim.model, claim.paper, claim.claim, claim.setup, claim.measured, claim.verdict]


def rendered(name: str, section: Section) -> str:
    """One section in Markdown."""
    parts = [f"## {section.title}", section.text.strip()]
    if section.claims:
        parts.append(markdown(HEADS, [row(claim) for claim in section.claims]))
    for table in section.tables:
        parts += [f"**{table.title}**", markdown(table.heads, table.rows)]
    parts += [f"![{Path(picture).stem}]({picture})" for picture in section.pictures]
    recipe = section.recipe or f"bench.tasks.{name}"
    parts.append(f"Recipe: `python -m {recipe}`; numbers: [{name}.json]({name}.json).")
    return "\n\n".join(parts)


def page() -> str:
    """The whole page in Markdown."""
    found = sections()
    headlines = [claim for section in found.values() for claim in section.claims if claim.headline]
    head = f"\n## Headlines\n\n{markdown(HEADS, [row(claim) for claim in headlines])}\n" if headlines else ""
    return OPENING + head + "".join(f"\n{rendered(name, section)}\n" for name, section in found.items())


def main() -> None:
    """Write the page."""
    path = RESULTS / "README.md"
    with atomic_write(path) as file:
        file.write(page().encode())
    print(path)


if __name__ == "__main__":
    main()
