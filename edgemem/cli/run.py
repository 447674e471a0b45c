"""`edgemem run`: stream something through a model file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgemem.cli.options import json_option, print_json, stdout
from edgemem.errors import UsageError
from edgemem.files import atomic_write, check_output

if TYPE_CHECKING:
    from edgemem.stream import Stream

Piece = TypeVar("Piece")


@click.command("run")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--input", "source", metavar="FILE", help="Audio, .npy or text file; - for stdin; mic.")
@click.option("--text", help="Text to stream through a language model.")
@click.option("--generate", type=click.IntRange(0), help="Tokens to generate after --text.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0 takes the likeliest.")
@click.option("--top-k", type=click.IntRange(1), help="Choose among the K likeliest tokens.")
@click.option("--stop", help="Stop generating after this text.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the choices.")
@click.option("--runtime", help="What runs the model: ort for a file and aot for a compiled folder, if left out.")
@click.option("--board", help="Compile for this board and run under its emulator.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Cores that one step may use.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    help="Go on from this snapshot if it exists; save it at the end, at Ctrl-C too.",
)
@click.option("--rows", is_flag=True, help="Every output row instead of a summary of them.")
@json_option
def command(
    file: Path,
    source: str | None,
    text: str | None,
    generate: int | None,
    temperature: float,
    top_k: int | None,
    stop: str | None,
    seed: int,
    runtime: str | None,
    board: str | None,
    threads: int,
    state: Path | None,
    rows: bool,
    as_json: bool,
) -> None:
    """Stream audio, arrays or text through FILE (or a compiled folder) and print what comes out, as it comes.

    Sound of any rate and number of channels is brought to what the model takes; raw PCM on stdin is 16-bit mono at the
    model's rate.

    \b
    edgemem run k.onnx --input speech.wav
    arecord -f S16_LE -r 16000 -t raw | edgemem run k.onnx --input - --json
    edgemem run asr.onnx --input digits.wav
    edgemem run lm.onnx --text "def " --generate 100 --temperature 0.8 --seed 7
    """
    from edgemem.boards import board as described
    from edgemem.program import load

    if (source is None) == (text is None):
        raise UsageError("say what to stream: either --input FILE (or -), or --text TEXT")
    if generate is not None and text is None:
        raise UsageError("--generate goes on after a text; give one by --text")
    chosen: dict[str, Any] = {"runtime": runtime}
    if board is not None:
        own = described(board).runtime
        if runtime not in (None, own):
            raise UsageError(
                f"--board {board} runs programs of the {own} runtime, --runtime {runtime} came; leave it out"
            )
        chosen = {"runtime": own, "board": board}
    stream = load(file, threads=threads, **chosen).stream()
    model, takes = stream.contract.model.name, stream.contract.inputs[0].role
    if text is not None and takes != "tokens":
        raise UsageError(f"{model} takes {takes}, not text; give it audio or an array by --input")
    if state is not None:
        check_output(state)
        if state.exists():
            stream.restore(state)
    saved = Saved(stream, state)
    try:
        if generate is not None and text is not None:
            write_text(stream, text, generate, temperature, top_k, stop, seed, as_json, saved)
        else:
            results = described_rows(stream, source, text, rows, state is None, saved)
            if as_json:
                show_json(results)
            else:
                said = show_table(results)
                show_transcript(said, stream.contract.outputs[0].labels, rows)
        saved.note()
    except (KeyboardInterrupt, BrokenPipeError):  # a microphone ends in no other way
        saved.write()
        raise
    saved.write()


class Saved:
    """The snapshot that `--state` wants: of whole blocks, wherever between two of them Ctrl-C comes."""

    def __init__(self, stream: Stream, path: Path | None) -> None:
        self.stream, self.path = stream, path
        self.data: bytes | None = None  # nothing was streamed

    def note(self) -> None:
        """Remember the stream as it is now."""
        if self.path is not None:
            self.data = self.stream.snapshot()

    def after_each(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """`pieces` as they come, the stream noted after each."""
        for piece in pieces:
            self.note()
            yield piece

    def write(self) -> None:
        """Write what was noted last."""
        if self.path is not None and self.data is not None:
            with atomic_write(self.path) as file:
                file.write(self.data)


def described_rows(
    stream: Stream, source: str | None, text: str | None, rows: bool, end: bool, saved: Saved
) -> Iterator[dict[str, Any]]:
    """The outputs of a file, of stdin or of a text."""
    import io

    from edgemem import runner

    stdin = sys.stdin.buffer if text is None else io.BytesIO(text.encode("utf-8", "surrogateescape"))
    return runner.described(stream, saved.after_each(runner.rows_of(stream, source or "-", stdin, end)), rows)


def show_json(results: Iterator[dict[str, Any]]) -> None:
    """One JSON object per line, flushed as it comes."""
    for row in results:
        print_json(row)
        sys.stdout.flush()


def show_table(results: Iterator[dict[str, Any]]) -> list[str]:
    """A table that grows while the stream runs; costs of tokens are summed up at its end. Gives the labels in it."""
    from edgemem.text import row_text

    console, bits, count = stdout(), 0.0, 0
    said: list[str] = []
    for row in results:
        said += [row["label"]] if "label" in row else []
        if "bits" in row:
            bits, count = bits + row["bits"], count + 1
        else:
            console.print(row_text(row), markup=False, highlight=False)
    if count:
        console.print(f"{count} tokens predicted at {bits / count:.3f} bits per token", highlight=False)
    return said


def show_transcript(said: list[str], labels: tuple[str, ...] | None, every_row: bool) -> None:
    """One line of what a recogniser by CTC understood; other models have none."""
    from edgemem.tasks.words import BLANK

    if labels is not None and BLANK in labels and not every_row:
        between = " " if " " not in labels else ""  # words, or characters with their own space
        stdout().print(between.join(said) or "nothing recognised", markup=False, highlight=False)


def write_text(
    stream: Stream,
    text: str,
    count: int,
    temperature: float,
    top_k: int | None,
    stop: str | None,
    seed: int,
    as_json: bool,
    saved: Saved,
) -> None:
    """Generate text after a prompt, character by character."""
    import numpy as np

    from edgemem import generate, runner

    rng = np.random.default_rng(seed)
    decoder, ends = runner.decoder(stream), runner.end_tokens(stream)
    said = ""
    prompt = runner.tokens(stream, text.encode("utf-8", "surrogateescape"))
    tokens = runner.generated(stream, prompt, count, lambda z: generate.sample(z, rng, temperature, top_k))
    if not as_json:  # what is wrong with the prompt has been said by now
        numbers = "".join(f"{token} " for token in prompt)
        click.echo(text if stream.contract.inputs[0].encoding else numbers, nl=False)
    for token in saved.after_each(tokens):
        piece = decoder.push(token)
        said += piece
        if as_json:
            print_json({"token": token, "text": piece})
        else:
            click.echo(piece, nl=False)
        sys.stdout.flush()
        if token in ends or (stop and stop in said):
            break
    if not as_json:
        click.echo(decoder.flush())
