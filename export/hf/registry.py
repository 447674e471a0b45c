"""Which Hugging Face model types stream, and how: known to optimum's `TasksManager` as the exporter `edgemem`.

An architecture joins by its file in `FILES`, in which `@streams("model_type")` stands before its `CausalStream`; one of
your own by the same line, wherever it is.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from optimum.exporters.onnx import OnnxConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

from edgemem.errors import ConfigError
from edgemem.export.hf.folder import TASK
from edgemem.export.hf.stream import CausalStream
from edgemem.text import nearest

FILES = (
    "rwkv",
    "mamba",
    "mamba2",
    "xlstm",
    "decoder",
    "gpt2",
    "lfm2",
    "qwen3_next",
    "recurrent_gemma",
)  # each declares one or more architectures
EXPORTER = "edgemem"
UNFIT = (ArithmeticError, AttributeError, KeyError, IndexError, TypeError, ValueError)
Stream = TypeVar("Stream", bound=CausalStream)
register = TasksManager.create_register(EXPORTER, overwrite_existing=True)
known: dict[str, type[CausalStream]] = {}


class StreamingConfig(OnnxConfig):  # type: ignore[misc]
    """What optimum knows of an architecture: one token and the states in, logits and the states out, all of fixed size.

    `stream` makes the step module that has these inputs and outputs of a model.
    """

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig
    DUMMY_INPUT_GENERATOR_CLASSES = (DummyTextInputGenerator,)
    STREAM: ClassVar[type[CausalStream]]

    def settings(self) -> Any:
        """The settings of a stream that was told nothing."""
        return self.STREAM.settings_type()

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return {"tokens": {}, **{f"{state.name}_in": {} for state in self.STREAM.states(self._config, self.settings())}}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        states = self.STREAM.states(self._config, self.settings())
        return {"logits": {}, **{f"{state.name}_out": {} for state in states}}

    def stream(self, model: Any, settings: Any = None, encoding: str | None = None) -> CausalStream:
        """`model` as a streaming module.

        Raises:
            ConfigError: its configuration, or a setting, cannot stream.
        """
        try:
            return self.STREAM(model, settings or self.settings(), encoding)
        except UNFIT as error:  # fields that transformers does not look at, of other types than they should have
            raise ConfigError(f"{self._config.model_type} cannot stream by this configuration: {error}") from error


def streams(*model_types: str) -> Callable[[type[Stream]], type[Stream]]:
    """Make a `CausalStream` known as the one of these Hugging Face model types."""

    def joined(stream: type[Stream]) -> type[Stream]:
        config = type(f"{stream.__name__}Config", (StreamingConfig,), {"STREAM": stream})
        for model_type in model_types:
            register(model_type, TASK)(config)
            known[model_type] = stream
        return stream

    return joined


def model_types() -> list[str]:
    """All model types that stream, by name."""
    for name in FILES:
        importlib.import_module(f"edgemem.export.hf.{name}")
    return sorted(known)


def config_of(config: Any, task: str = TASK) -> StreamingConfig:
    """The exporter configuration of a Hugging Face configuration, from optimum's `TasksManager`.

    Raises:
        ConfigError: its type, or the task, is none that streams.
    """
    names = model_types()
    if config.model_type not in names:
        raise ConfigError(
            f"model type {config.model_type!r}{nearest(config.model_type, names)} has no streaming form here; "
            f"there are {', '.join(names)}"
        )
    known_as = TasksManager.map_from_synonym(task)
    if known_as != TASK:
        raise ConfigError(f"task {task!r} cannot stream; {TASK} is the one that does")
    constructor = TasksManager.get_exporter_config_constructor(
        EXPORTER, model_type=config.model_type, task=known_as, library_name="transformers"
    )
    found: StreamingConfig = constructor(config)
    return found
