"""A Hugging Face causal language model as a streaming module: what all architectures share.

    step       y_t, state = step(token_t, state)        written out in plain tensor operations on the model's own layers
    forward    the model's own forward over all tokens at once: what the step is compared with
    remembered the model's own cache object after some tokens, as the states that a stream goes on from

A subclass declares the states of a configuration in `states`, and writes `step`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from edgemem.module import State, StreamingModule
from edgemem.state import Port, StateTensor

REACH = 4.0  # random states that verification starts from lie within this: about what normalised layers give


@dataclass(frozen=True)
class Settings:
    """What `--set` may choose for an architecture beyond its configuration; most have nothing to choose."""


class CausalStream(StreamingModule):
    """Tokens [batch, time] to logits [batch, time, vocab] by `model`, a Hugging Face model with a language head."""

    unit = "token"
    settings_type: ClassVar[type] = Settings

    def __init__(self, model: Any, settings: Any, encoding: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        vocab = int(model.config.vocab_size)
        self.inputs = (Port("tokens", (), "int64", "tokens", low=0, high=vocab - 1, encoding=encoding),)
        self.outputs = (Port("logits", (vocab,), role="logits"),)
        self.state = self.states(model.config, settings)

    @classmethod
    def states(cls, config: Any, settings: Any) -> tuple[StateTensor, ...]:
        """What a stream of this configuration remembers.

        Raises:
            ConfigError: the configuration or a setting asks for what cannot stream.
        """
        raise NotImplementedError(f"{cls.__name__} declares no states")

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens x [batch] to logits [batch, vocab]."""
        raise NotImplementedError(f"{type(self).__name__} declares no step")

    def forward(self, x: Tensor) -> Tensor:
        """Tokens x [batch, time] to logits [batch, time, vocab], by the model's own forward."""
        logits: Tensor = self.model(input_ids=x, use_cache=False).logits
        return logits

    def remembered(self, cache: Any) -> State:
        """The states that the model's own cache object stands for."""
        raise NotImplementedError(f"{type(self).__name__} reads no cache")
