"""A session of onnxruntime, as the runtime, the stages before it and foreign files all open one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemem.errors import MissingDependency, ModelFileError
from edgemem.text import first_line

# onnxruntime 1.32's fusion of y * (1 / x) into y / x leaves a graph that it then refuses, where y comes first
BROKEN = ["DivMulFusion"]
QUIET = 4  # what goes wrong is raised; a log would put names of the file on the screen as they are


def session(model: Path | bytes, threads: int = 1) -> Any:
    """A CPU session of one file, or of its bytes: sequential, no spinning, quiet.

    Raises:
        MissingDependency: onnxruntime is not installed.
        ModelFileError: onnxruntime refuses the file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(
            "the ort runtime needs onnxruntime; install it with: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    # int4 weights times float32 activations, as the file says: by default the activations become int8 too
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    # weights lie beside the file, not beside a link to it
    whole = model if isinstance(model, bytes) else str(model.resolve())
    try:
        return onnxruntime.InferenceSession(
            whole,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=BROKEN,
        )
    except Exception as error:  # onnxruntime's errors have no common base outside its private module
        name = "the graph" if isinstance(model, bytes) else model
        raise ModelFileError(
            f"onnxruntime {onnxruntime.__version__} refuses {name}: {first_line(error)}; export the model again"
        ) from error
