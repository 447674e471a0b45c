"""Text for models whose tokens are pieces of words: their tokenizer.json, which travels with the file.

    metadata_props["edgemem.tokenizer"]          in a model file: the text of tokenizer.json
    tokenizer.json                               in a compiled folder
    contract.inputs[0].encoding                  "tokenizer:" and its SHA-256

It is read by the package `tokenizers`, and by nothing that runs code of the file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import ConfigError, ContractError, InputError, MissingDependency
from edgemem.text import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgemem.contract import Contract

Array = np.ndarray[Any, np.dtype[Any]]
KEY = "edgemem.tokenizer"
FILE = "tokenizer.json"
ENCODING = "tokenizer:"
UNFINISHED = "\ufffd"  # at the end of a text: a character of which bytes are missing
MAX_TOKENIZER_BYTES = 1 << 26
MOST_PENDING = 16  # tokens that may wait for the end of a character; no character has more bytes than 4


class Tokenizer:
    """Text to token ids and back."""

    def __init__(self, text: str) -> None:
        """`text` is that of a tokenizer.json.

        Raises:
            ConfigError: it is not one.
            MissingDependency: the package that reads it is not installed.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependency(
                "text for this model needs tokenizers; install it with: pip install tokenizers"
            ) from error
        try:
            self._tokens = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:  # the parser panics on some files, which is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise ConfigError(
                f"{FILE} is not one that tokenizers reads ({first_line(error)}); copy it again"
            ) from error
        self._tokens.no_padding()
        self._tokens.no_truncation()

    @property
    def size(self) -> int:
        """Token ids that it can give, without those that were added to its vocabulary."""
        return int(self._tokens.get_vocab_size(with_added_tokens=False))

    def encode(self, text: str, first: bool) -> Array:
        """Token ids [time] int64; with the marks of a beginning where the text is the `first` of a stream."""
        return np.array(self._tokens.encode(text, add_special_tokens=first).ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; those with a special meaning have none."""
        return str(self._tokens.decode(list(tokens), skip_special_tokens=True))


class TokenDecoder:
    """Text of tokens, one by one; a piece appears when its last character is whole.

    A token's text depends on the one before it (spaces, joined bytes), so each is decoded together with the last piece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._said: list[int] = []  # tokens of the last piece that was given
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """The text that is complete with this token, often none."""
        self._pending.append(token)
        piece = self._piece()
        if piece.endswith(UNFINISHED) and len(self._pending) < MOST_PENDING:
            return ""
        if piece:
            self._said, self._pending = self._pending, []
        return piece

    def flush(self) -> str:
        """What is left of a character whose end never came."""
        piece = self._piece()
        self._said, self._pending = self._pending, []
        return piece

    def _piece(self) -> str:
        before = self._tokenizer.decode(self._said)
        return self._tokenizer.decode([*self._said, *self._pending])[len(before) :]


def attachment(text: str | None, vocab: int) -> tuple[dict[str, str], str | None]:
    """What a model file holds of a tokenizer.json, and the encoding of its input; nothing where there is none.

    Raises:
        ConfigError: not a tokenizer, or one with more tokens than the model's `vocab`.
    """
    if text is None:
        return {}, None
    size = Tokenizer(text).size
    if size > vocab:
        raise ConfigError(f"{FILE} has {size} tokens, the model {vocab}; it belongs to another model")
    return {KEY: text}, ENCODING + hashlib.sha256(text.encode()).hexdigest()


def attached(contract: Contract, origin: Path | None) -> str | None:
    """The tokenizer.json of a model file or compiled folder; None where its input has no such encoding.

    Raises:
        ContractError: it is missing, too large, or not the one of the contract.
    """
    encoding = contract.inputs[0].encoding or ""
    if not encoding.startswith(ENCODING):
        return None
    text = None if origin is None else stored(origin)
    if text is None:
        raise ContractError(f"{origin} has lost its {FILE}; export (and compile) the model again")
    if hashlib.sha256(text.encode()).hexdigest() != encoding.removeprefix(ENCODING):
        raise ContractError(f"{origin}: its {FILE} is not the one that was exported; export the model again")
    return text


def stored(origin: Path) -> str | None:
    """The text of the tokenizer.json at a model file or in a compiled folder, if there is one.

    Raises:
        ContractError: that of a folder is larger than any tokenizer.
    """
    if origin.is_dir():
        path = origin / FILE
        if not path.is_file():
            return None
        with path.open("rb") as file:
            data = file.read(MAX_TOKENIZER_BYTES + 1)
        if len(data) > MAX_TOKENIZER_BYTES:
            raise ContractError(
                f"{path} has more than the {MAX_TOKENIZER_BYTES:,} bytes that are allowed; compile the model again"
            )
        return data.decode("utf-8", errors="replace")
    from edgemem import onnxfile

    return onnxfile.read(origin).metadata.get(KEY)


def tokenizer_of(contract: Contract, origin: Path | None) -> Tokenizer | None:
    """The tokenizer of a model file or compiled folder, None where its input has no such encoding.

    Raises:
        ContractError: it is missing, altered or damaged.
    """
    text = attached(contract, origin)
    if text is None:
        return None
    try:
        return Tokenizer(text)
    except ConfigError as error:
        raise ContractError(f"{origin}: {error}") from error


def text_of(data: bytes) -> str:
    """UTF-8 as text.

    Raises:
        InputError: it is something else.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"text in UTF-8 was wanted, byte {error.start} is not; convert it first") from error
