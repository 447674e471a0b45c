"""From a model file to a Relax module: constants bound, inputs in the contract's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgemem.errors import MissingDependency, ModelFileError
from edgemem.muted import muted

if TYPE_CHECKING:
    from edgemem.modelfile import ModelFile
    from edgemem.runtimes.aot.machine import Machine
    from edgemem.runtimes.aot.quantized.recogniser import Row

REMARKS = ("onnx_import", "tvm")  # loggers of the importer
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


@dataclass(frozen=True)
class Imported:
    """The Relax module of a model file, the names of its parameters and results in order, and its products."""

    module: Any
    inputs: list[str]
    outputs: list[str]
    products: list[Row]


Converter = Callable[[Any, str, Sequence[Any], Mapping[str, Any], Any, "Machine"], Any]


def imported(model: ModelFile, machine: Machine, converter: Converter | None = None) -> Imported:
    """The Relax module of a model file for a core, quantized patterns as operators of edgemem's own.

    `converter` makes expressions of those operators: for a core's vectors, if left out.

    Raises:
        ModelFileError: the graph has an operator that TVM's importer does not know.
    """
    import onnx

    from edgemem.runtimes.aot.quantized.recogniser import recognised

    proto = onnx.load(str(model.path))
    found = recognised(proto, machine)
    used = {name for node in proto.graph.node for name in node.input}
    kept = [value for value in proto.graph.initializer if value.name in used]  # start values are not the step's
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    try:
        with muted(*REMARKS):
            module = with_own_operators(proto, found, machine, converter)
    except Exception as error:  # the importer raises whatever its converters raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelFileError(f"{model.path}: TVM cannot import this graph ({reason})") from error
    initializers = {value.name for value in kept}
    inputs = [value.name for value in proto.graph.input if value.name not in initializers]
    return Imported(module, inputs, [value.name for value in proto.graph.output], found.products)


def with_own_operators(proto: Any, found: Any, machine: Machine, converter: Converter | None) -> Any:
    """TVM's importer, and beside its operators those that the recogniser has put in."""
    from tvm.relax.frontend.onnx import onnx_frontend

    from edgemem.runtimes.aot.quantized.products import converted

    convert = converter or converted

    class Importer(onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
        def _check_for_unsupported_ops(self, graph: Any) -> None:
            standard = type(graph)()
            standard.node.extend(node for node in graph.node if not node.op_type.startswith("Edgemem"))
            super()._check_for_unsupported_ops(standard)

        def _convert_operator(self, op_name: str, inputs: Any, attrs: Any, opset: int) -> Any:
            if not op_name.startswith("Edgemem"):
                return super()._convert_operator(op_name, inputs, attrs, opset)
            return convert(self.bb, op_name, list(inputs), attrs, found.matrices, machine)

    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    return Importer({}, "float32", keep_params_in_input=False).from_onnx(proto.graph, opset)
