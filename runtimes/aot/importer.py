"""From a model file to a Relax module: constants bound, inputs in the contract's order."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgemem.errors import MissingDependency, ModelFileError

if TYPE_CHECKING:
    from edgemem.modelfile import ModelFile

TOOL = "pip install 'edgemem[tvm]'"


def require_tvm() -> None:
    """Refuse to go on without the compiler.

    Raises:
        MissingDependency: TVM or the ONNX library that its importer reads files with is not installed.
    """
    try:
        import onnx  # noqa: F401
        import tvm  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"compiling needs apache-tvm and onnx, and {error.name} is not installed: {TOOL}"
        ) from error


def imported(model: ModelFile) -> tuple[Any, list[str], list[str]]:
    """The Relax module of a model file, and the names of its parameters and results in order.

    Raises:
        ModelFileError: the graph has an operator that TVM's importer does not know.
    """
    import onnx
    from tvm.relax.frontend.onnx import from_onnx

    proto = onnx.load(str(model.path))
    used = {name for node in proto.graph.node for name in node.input}
    kept = [value for value in proto.graph.initializer if value.name in used]  # start values are not the step's
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    try:
        with quiet():
            module = from_onnx(proto, keep_params_in_input=False)
    except Exception as error:  # the importer raises whatever its converters raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelFileError(f"{model.path}: TVM cannot import this graph ({reason})") from error
    initializers = {value.name for value in kept}
    inputs = [value.name for value in proto.graph.input if value.name not in initializers]
    return module, inputs, [value.name for value in proto.graph.output]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the importer's remarks off the user's screen."""
    loggers = [logging.getLogger(name) for name in ("onnx_import", "tvm")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
