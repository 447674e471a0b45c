"""rich's console for names that files bring along: nothing in them is markup, and no control character gets through."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.status import Status
from rich.text import Text

from edgemem.text import printable


class Doing(Status):
    """What goes on at the moment."""

    def __init__(self, status: str, **options: Any) -> None:
        super().__init__(Text(printable(status)), **options)

    def update(self, status: Any = None, **options: Any) -> None:
        super().update(None if status is None else Text(printable(status)), **options)


class Screen(Console):
    """A console that shows text as it stands; `markup=True` where a line has marks of its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:  # rich would leave with exit code 1
        raise BrokenPipeError

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)

    def status(self, status: Any, **options: Any) -> Status:
        return Doing(status, console=self, **options)
