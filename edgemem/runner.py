"""Streaming a file through a program: what to read, and what to say about the outputs.

.wav .flac .ogg      audio models, through the front end in their contract
.npy                 an array [time, *features] of what the model's input takes
.txt or any other    text, for models whose tokens are bytes or have a tokenizer
-                    standard input: raw 16-bit PCM at the front end's rate, or text
mic                  the microphone, until Ctrl-C
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from edgemem.errors import InputError, UsageError
from edgemem.generate import Decoder
from edgemem.inputs import Inputs
from edgemem.tasks.bytes import costs
from edgemem.tasks.kws import QUIET, Detector
from edgemem.tasks.words import BLANK
from edgemem.text import first_line
from edgemem.tokenizer import TokenDecoder, text_of, tokenizer_of

if TYPE_CHECKING:
    from edgemem.stream import Rows, Stream

Array = np.ndarray[Any, np.dtype[Any]]
AUDIO = (".wav", ".flac", ".ogg")
BLOCK_SAMPLES = 1600  # 0.1 s at 16 kHz: results appear while a long file or a microphone still runs
BLOCK_FRAMES = 256


def rows_of(stream: Stream, source: str, stdin: BinaryIO, end: bool = True) -> Iterator[tuple[Rows, Array | None]]:
    """Stream `source` (a path, or `-` for `stdin`) block by block: output rows, and the tokens they belong to.

    `end` flushes the stream after the last block.

    Raises:
        InputError: the file is missing, malformed, or not what the model's input takes. Damage that is found after
            some blocks is raised by `described`, when it has given what came before.
    """
    if stream.has_frontend:
        for block in samples(stream, source, stdin):
            yield stream.push_samples(block), None
    else:
        pieces = frames(stream, source, stdin)
        for piece in pieces:
            yield stream.push(piece), piece if piece.dtype.kind in "iu" else None
    if end:
        yield stream.flush(), None


def samples(stream: Stream, source: str, stdin: BinaryIO) -> Iterator[Array]:
    """Audio of `source` at the front end's rate, in blocks of 0.1 s.

    Raises:
        InputError: no sample came, the array is not one of samples, or the file is no sound.
    """
    from edgemem import audio

    rate = stream.sample_rate
    if source == "-":
        blocks = audio.read_pcm16(stdin, BLOCK_SAMPLES)
        first = next(blocks, None)
        if first is None:
            raise InputError("standard input: at least one sample was wanted, none came; send 16-bit PCM to it")
        yield first
        yield from blocks
        return
    if source == "mic":
        yield from audio.microphone(rate, BLOCK_SAMPLES)
        return
    is_array = Path(source).suffix.lower() == ".npy"
    sound = sound_array(Path(source)) if is_array else audio.read_audio(Path(source), rate)
    for at in range(0, len(sound), BLOCK_SAMPLES):
        yield sound[at : at + BLOCK_SAMPLES]


def sound_array(path: Path) -> Array:
    """Samples [time] of a .npy file.

    Raises:
        InputError: not float mono, empty, or with NaN or infinity in it.
    """
    from edgemem.frontend import checked_samples

    try:
        sound = checked_samples(array_file(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not len(sound):
        raise InputError(f"{path}: at least one sample was wanted, the file has none; record it again")
    if not np.isfinite(sound).all():
        first = int((~np.isfinite(sound)).argmax())
        raise InputError(f"{path}: finite samples were wanted, NaN or infinity came at sample {first}; clean the file")
    return sound


def frames(stream: Stream, source: str, stdin: BinaryIO) -> Iterator[Array]:
    """Frames or tokens of `source`, in blocks.

    Raises:
        InputError: the file is of another kind than the model's input, or holds no frame of its shape.
    """
    port = stream.contract.inputs[0]
    path = Path(source)
    if source != "-" and path.suffix.lower() == ".npy":
        whole = array_file(path)
    elif port.role == "tokens" and path.suffix.lower() not in AUDIO:
        whole = tokens(stream, read_text(path, stdin) if source == "-" else read_text(path, None))
    else:
        raise InputError(
            f"{source}: {stream.contract.model.name} takes {port.dtype}{list(port.shape[2:])} per frame; "
            "give a .npy array [time, *features]"
        )
    name = "standard input" if source == "-" else source
    if whole.ndim == 0 or len(whole) == 0:
        raise InputError(f"{name}: at least one frame was wanted, shape {list(whole.shape)} came; give a longer one")
    if (
        sum(port.role != "valid" for port in stream.contract.inputs) == 1
    ):  # all of it before the first step, so that no frame number is of a block
        try:
            Inputs(stream.contract, finite_only=True).frames(whole)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    for at in range(0, len(whole), BLOCK_FRAMES):
        yield whole[at : at + BLOCK_FRAMES]


def array_file(path: Path) -> Array:
    """A .npy file, never unpickled, and mapped: a header may claim more than there is.

    Raises:
        InputError: missing, malformed, or of Python objects.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; an array was wanted that numpy.save has written")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python, and raises what that does
        raise InputError(
            f"{path} is not a readable .npy array of numbers ({first_line(error)}); save it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays; save the one that is meant with numpy.save")
    return array


def read_text(path: Path, stdin: BinaryIO | None) -> bytes:
    """All bytes of a text file, or of `stdin`.

    Raises:
        InputError: the file cannot be read.
    """
    if stdin is not None:
        return stdin.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a text, audio or .npy file") from error


def tokens(stream: Stream, text: bytes) -> Array:
    """Token ids of a text, by the encoding in the contract; without one, ids written as numbers.

    Raises:
        InputError: the model has no text encoding and the text is not whole numbers.
        ContractError: the model's tokenizer is missing or altered.
    """
    port = stream.contract.inputs[0]
    if port.encoding == "bytes":
        return np.frombuffer(text, np.uint8)
    tokenizer = tokenizer_of(stream.contract, stream.program.origin)
    if tokenizer is not None:
        return tokenizer.encode(text_of(text), first=stream.position == 0)
    try:
        return np.array([int(word) for word in text.split()], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{stream.contract.model.name} has no text encoding, so its tokens are read as whole numbers "
            f"separated by spaces; {text[:20].decode(errors='replace')!r} came"
        ) from error


def decoder(stream: Stream) -> Decoder | TokenDecoder:
    """What turns the model's tokens into text."""
    tokenizer = tokenizer_of(stream.contract, stream.program.origin)
    return Decoder(stream.contract.inputs[0].encoding) if tokenizer is None else TokenDecoder(tokenizer)


def end_tokens(stream: Stream) -> frozenset[int]:
    """Tokens after which a text is over, where the model knows such."""
    found = stream.contract.model.config.get("end_tokens")
    return frozenset(token for token in found if isinstance(token, int)) if isinstance(found, list) else frozenset()


def described(stream: Stream, pairs: Iterable[tuple[Rows, Array | None]], every_row: bool) -> Iterator[dict[str, Any]]:
    """What the outputs say, one JSON-able dict at a time, as early as it is known.

    Models with labels give spans in which one label leads (`label`, `score` = its mean probability), byte models
    the `bits` that each token cost, others the `values` of every row; all with `t_start` and `t_end`.

    Raises:
        InputError: what `pairs` raised, after all that came before it.
    """
    damage: list[InputError] = []
    pairs = until_damage(pairs, damage)
    output = stream.contract.outputs[0]
    if len(stream.contract.outputs) > 1:
        yield from each_row(rows for rows, _ in pairs)
    elif output.labels is not None and not every_row:
        yield from spans((rows for rows, _ in pairs), output.labels)
    elif output.labels is not None:
        yield from labelled((rows for rows, _ in pairs), output.labels)
    elif stream.contract.inputs[0].role == "tokens" and output.role == "logits" and not every_row:
        yield from token_costs(pairs)
    else:
        yield from each_row(rows for rows, _ in pairs)
    if damage:
        raise damage[0]


def until_damage(
    pairs: Iterable[tuple[Rows, Array | None]], damage: list[InputError]
) -> Iterator[tuple[Rows, Array | None]]:
    """`pairs` up to an input error, which is put into `damage`: whoever sums rows up can give the last sum first."""
    try:
        yield from pairs
    except InputError as error:
        damage.append(error)


def each_row(groups: Iterable[Rows]) -> Iterator[dict[str, Any]]:
    """Every row with its values."""
    for rows in groups:
        for index, (start, end) in enumerate(zip(rows.t_start, rows.t_end, strict=True)):
            values = rows.values
            picked = (
                {k: v[index].tolist() for k, v in values.items()}
                if isinstance(values, dict)
                else values[index].tolist()
            )
            yield {"t_start": round(float(start), 6), "t_end": round(float(end), 6), "values": picked}


def labelled(groups: Iterable[Rows], labels: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every row with its leading label and that label's probability."""
    for rows in groups:
        probabilities = softmax(rows.values)
        for start, end, row in zip(rows.t_start, rows.t_end, probabilities, strict=True):
            best = int(row.argmax())
            score = round(float(row[best]), 4)
            yield {
                "t_start": round(float(start), 6),
                "t_end": round(float(end), 6),
                "label": labels[best],
                "score": score,
            }


def spotted(groups: Iterable[Rows], labels: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Every row of a keyword spotter: a keyword from its detection until its posterior has fallen, else what leads.

    `score` is the row's own probability of that label: a keyword that leads without being detected shows with a low
    one.
    """
    detector = Detector(labels)
    active: str | None = None
    for rows in groups:
        for start, end, row in zip(rows.t_start, rows.t_end, softmax(rows.values), strict=True):
            found = detector.push(row[None], np.array([end]))
            if found:
                active = found[0].label
            elif active is not None and row[labels.index(active)] < detector.threshold / 2:
                active = None
            label = active or labels[int(row.argmax())]
            score = round(float(row[labels.index(label)]), 4)
            yield {"t_start": round(float(start), 6), "t_end": round(float(end), 6), "label": label, "score": score}


def spans(groups: Iterable[Rows], labels: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Runs of rows with the same leading label, each given when it ends; `score` is the mean over its rows.

    Runs of CTC's blank separate the others and are not given, so that the labels read as the greedy transcript.
    """
    named = spotted(groups, labels) if set(QUIET) <= set(labels) else labelled(groups, labels)
    for label, run in itertools.groupby(named, key=lambda row: row["label"]):
        rows = list(run)
        if label != BLANK:
            score = round(sum(row["score"] for row in rows) / len(rows), 4)
            yield {"t_start": rows[0]["t_start"], "t_end": rows[-1]["t_end"], "label": label, "score": score}


def token_costs(pairs: Iterable[tuple[Rows, Array | None]]) -> Iterator[dict[str, Any]]:
    """What every token after the first cost a language model, in bits, given the tokens before it."""
    waiting: list[tuple[float, float, Array]] = []  # predictions whose token has not come
    seen: list[int] = []
    given = 0
    for rows, ids in pairs:
        seen.extend(int(i) for i in (ids if ids is not None else ()))
        waiting.extend(zip(rows.t_start, rows.t_end, rows.values, strict=True))
        while waiting and given + 1 < len(seen):
            start, end, logits = waiting.pop(0)
            given += 1
            token = seen[given]
            bits = float(costs(logits[None], np.array([token]))[0])
            yield {"t_start": int(start), "t_end": int(end), "token": token, "bits": round(bits, 4)}


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True)) if logits.size else logits
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def generated(stream: Stream, prompt: Array, count: int, pick: Any) -> Iterator[int]:
    """`count` tokens that follow `prompt`, each chosen by `pick(logits)` and fed back; the prompt is read at once.

    Raises:
        InputError: a token that the model does not have.
        UsageError: an empty prompt, or a model that does not predict tokens.
    """
    output = stream.contract.outputs[0]
    if stream.contract.inputs[0].role != "tokens" or output.role != "logits":
        raise UsageError(f"{stream.contract.model.name} does not predict tokens; --generate needs a language model")
    if len(prompt) == 0:
        raise UsageError("the prompt is empty; give at least one character by --text")
    return continued(stream, stream.push(prompt), count, pick)


def continued(stream: Stream, rows: Rows, count: int, pick: Any) -> Iterator[int]:
    """`count` tokens that follow the input whose last outputs are `rows`."""
    for _ in range(count):
        waiting = stream.peek()
        logits = (waiting if len(waiting) else rows).values[-1]
        token = int(pick(logits))
        rows = stream.push(np.array([token]))  # before it is given: whoever stops here has a stream that has seen it
        yield token
