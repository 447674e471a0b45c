"""What the commands share: settings, JSON, consoles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgemem.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

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


def stdout() -> Console:
    """Where results for people go."""
    from rich.console import Console

    return Console()


def stderr() -> Console:
    """Where progress and logs go."""
    from rich.console import Console

    return Console(stderr=True)


def progress_bar() -> Progress:
    """A bar on stderr that is gone when its block ends; nothing at all where stderr is no terminal."""
    from rich.progress import Progress

    console = stderr()
    return Progress(console=console, transient=True, disable=not console.is_terminal)
