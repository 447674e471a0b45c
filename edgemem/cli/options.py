"""What the commands share: settings, JSON, consoles, tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgemem.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from edgemem.cli.screen import Screen

PIPE_COLUMNS = 200
Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """`--json`: results on stdout for scripts, everything else on stderr."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, logs on stderr.")(command)


def settings_option(command: Command) -> Command:
    """`--set key=value`, as often as wanted."""
    return click.option(
        "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the model, such as layers=2."
    )(command)


def parsed_settings(pairs: Iterable[str]) -> dict[str, object]:
    """`key=value` texts as a dict.

    Raises:
        UsageError: a text without `=`, or a key given twice.
    """
    settings: dict[str, object] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set needs KEY=VALUE, got {pair!r}; for example --set layers=2")
        if key.strip() in settings:
            raise UsageError(f"--set {key.strip()} was given twice; give each key once")
        settings[key.strip()] = value
    return settings


def print_json(value: object) -> None:
    """One JSON value on one line of stdout."""
    click.echo(json.dumps(value, allow_nan=False))


def stdout() -> Screen:
    """Where results for people go; wide where that is no terminal, so that nothing is cut."""
    return screen(stderr=False)


def stderr() -> Screen:
    """Where progress and logs go; as wide as `stdout`."""
    return screen(stderr=True)


def screen(stderr: bool) -> Screen:
    from edgemem.cli.screen import Screen

    console = Screen(stderr=stderr)
    return console if console.is_terminal or "COLUMNS" in os.environ else Screen(stderr=stderr, width=PIPE_COLUMNS)


def progress_bar() -> Progress:
    """A bar on stderr that is gone when its block ends; nothing at all where stderr is no terminal."""
    from edgemem.cli.bar import Bar

    return Bar(stderr())


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], wrap: str | None = None, title: str = "") -> Table:
    """A table without lines; only the column `wrap` (the last if left out) breaks its text, names stay whole."""
    from rich.table import Column, Table

    wrapped = headers[-1] if wrap is None else wrap
    columns = [Column(name, no_wrap=name != wrapped, overflow="fold") for name in headers]
    shown = Table(*columns, box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    for row in rows:
        shown.add_row(*row)
    return shown
