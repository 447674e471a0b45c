"""The command group: commands load when they are called, errors become one paragraph and an exit code.

0 done    1 a check failed    2 wrong usage or bad input    130 stopped by Ctrl-C    143 by SIGTERM
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, NoReturn

import click

from edgemem import __version__
from edgemem.errors import EdgememError

COMMANDS = {
    "models": "List the models that edgemem builds by name.",
    "export": "Export a model to ONNX with its state under a contract.",
    "adopt": "Give an ONNX file from elsewhere a contract, and a static step.",
    "inspect": "Show a model file: contract, sizes, cost per step.",
    "quantize": "Make a model file smaller, and say what that costs.",
    "compile": "Compile a model file to a C library for a board.",
    "boards": "List the boards that programs are compiled for.",
    "run": "Stream audio, arrays or text through a model file.",
    "eval": "Judge a model by a task, on a held-out excerpt.",
    "verify": "Prove that a model file computes what its torch module computes.",
    "bench": "Time a step in one runtime or several, side by side.",
    "profile": "Show where a compiled step spends its time, kernel by kernel.",
    "demo": "Run the whole way, on real audio, in about a minute.",
    "doctor": "Show what is installed, what is missing, and the command that installs it.",
}
INTERRUPTED = 130
MESSAGE = 4000  # characters of an error on the screen


class LazyGroup(click.Group):
    """Commands by name from `COMMANDS`; the module of one is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"edgemem.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader of our output went away: not an error of ours, as click has it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from edgemem.text import nearest

            ctx.fail(f"no command {args[0]!r}{nearest(args[0], COMMANDS)}; there are {', '.join(COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgemem")
def cli() -> None:
    """Take a model that remembers from PyTorch to the device that runs it, and prove that nothing changed.

    \b
    edgemem export kws-lmuformer -o k.onnx
    edgemem run k.onnx --input speech.wav
    """


def main() -> NoReturn:
    """Entry point of the `edgemem` command."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.exceptions.Abort:
        stop("stopped", INTERRUPTED)
    except KeyboardInterrupt:
        stop("stopped", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EdgememError as error:
        stop(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        from edgemem.cli.doctor import command_for

        stop(f"{error.name} is not installed; install it with: {command_for(error)}", EdgememError.exit_code)
    except MemoryError:
        stop("out of memory; use a smaller model or chunk", EdgememError.exit_code)
    except OSError as error:
        stop(f"{error.filename or 'file'}: {error.strerror}", EdgememError.exit_code)


def stop(message: str, code: Any) -> NoReturn:
    """Say why, on stderr, and leave."""
    from edgemem.text import printable

    cut = message if len(message) <= MESSAGE else f"{message[:MESSAGE]}…"  # names of a file may be of any length
    click.echo(f"edgemem: {printable(cut)}", err=True)
    sys.exit(code)
