"""rich's bar on a screen: what it is of is text as it stands, as everything there."""

from __future__ import annotations

from rich.progress import Progress, Task, TextColumn
from rich.text import Text

from edgemem.cli.screen import Screen
from edgemem.text import printable


class Description(TextColumn):
    """What a bar is of."""

    def render(self, task: Task) -> Text:
        return Text(printable(task.description), style="progress.description")


class Bar(Progress):
    """A bar that is gone when its block ends; nothing at all where the screen is no terminal."""

    def __init__(self, screen: Screen) -> None:
        others = Progress.get_default_columns()[1:]
        super().__init__(Description(""), *others, console=screen, transient=True, disable=not screen.is_terminal)
