"""What a scheme is, and what it is given. A scheme is one file of `quant/` with a `SCHEME`, named in `FILES`.

    SCHEME = Scheme("w8", "int8 weights, one scale per output", apply)

`apply(job)` rewrites `job.model` in place and reports every tensor it changed by `job.record`. What it looks for and
what it leaves stand side by side at the head of its file: compilers recognise these patterns.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgemem.errors import UsageError
from edgemem.program import Array
from edgemem.text import nearest

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgemem.contract import Contract
    from edgemem.quant.calibration import Calibration
    from edgemem.quant.graph import Weight

FILES = ("f16", "w8", "w8a8_dynamic", "w4g32", "vq", "w8a8", "w8a8_outlier", "memory_vq")


StageTick = Callable[[str, float], None]  # hears of the stage that runs, and of the share of it that is done


def silent(stage: str, share: float) -> None:
    """The tick that tells no one."""


@dataclass(frozen=True)
class Scheme:
    """`settings` are those that `NAME:key=value,…` may change; `needs_data` wants calibration, `uses_data` takes it."""

    name: str
    summary: str
    apply: Callable[[Job], None]
    settings: Mapping[str, int | str] = field(default_factory=dict)
    needs_data: bool = False
    uses_data: bool = False
    check: Callable[[Mapping[str, int | str]], None] = lambda settings: None  # raises UsageError, before any work
    weights: bool = True  # whether it makes weights smaller: then vectors become float16 too


@dataclass(frozen=True)
class TensorChoice:
    """What became of one constant. Errors are of its elements: the largest, and the RMS relative to the RMS value."""

    name: str
    shape: tuple[int, ...]
    choice: str  # such as `int8, scale per output`
    bytes_before: int
    bytes_after: int
    max_abs_error: float
    relative_error: float


@dataclass
class Job:
    """One run of a scheme: the graph it rewrites, what it may not touch, where its data comes from."""

    model: ir.Model
    contract: Contract
    parent: Path
    settings: Mapping[str, int | str]
    exclude: Sequence[str] = ()
    smallest: int = 0
    calibration: Calibration | None = None
    choices: list[TensorChoice] = field(default_factory=list)
    skipped: list[TensorChoice] = field(default_factory=list)  # matrices of fewer than `smallest` elements
    warnings: list[str] = field(default_factory=list)
    tick: StageTick = silent

    def weights(self) -> list[Weight]:
        """The matrices that are large enough and not excluded, by name."""
        from edgemem.quant import graph

        return [weight for weight in graph.weights(self.model, self.smallest) if not self.excluded(weight.name)]

    def excluded(self, name: str) -> bool:
        """Whether a glob of `exclude` names this tensor; `NAME.T` goes by `NAME` too."""
        return any(fnmatchcase(n, glob) for glob in self.exclude for n in (name, name.removesuffix(".T")))

    def second_moments(self, weight: Weight) -> Array | None:
        """The mean square of every input of a matrix [inputs] over the calibration data, where there is any."""
        gram = self.gram(weight)
        return None if gram is None else np.diag(gram)

    def gram(self, weight: Weight) -> Array | None:
        """The second moment of a matrix's inputs [inputs, inputs] over the calibration data, where there is any."""
        if self.calibration is None or not weight.is_plain:
            return None
        return self.calibration.gram(
            [str(node.inputs[0].name) for node, _ in weight.others if node.inputs[0] is not None]
        )

    def record(self, name: str, before: Array, after: Array, choice: str, bytes_after: int) -> None:
        """Note a constant that was rewritten: its values before and after, and the bytes it takes now."""
        error = after.astype(np.float64) - before.astype(np.float64)
        scale = float(np.sqrt(np.mean(before.astype(np.float64) ** 2))) or 1.0
        relative = float(np.sqrt(np.mean(error**2))) / scale
        largest = float(np.abs(error).max(initial=0.0))
        self.choices.append(
            TensorChoice(name, tuple(before.shape), choice, before.nbytes, bytes_after, largest, relative)
        )


def names() -> tuple[str, ...]:
    """Every scheme by the name that users write."""
    return tuple(file.replace("_", "-") for file in FILES)


def parsed(text: str) -> tuple[Scheme, dict[str, int | str]]:
    """`vq:dim=4,codes=256` -> the scheme and its settings, defaults filled in.

    Raises:
        UsageError: no such scheme or setting (the nearest is suggested), or a value of the wrong kind.
    """
    name, _, rest = text.partition(":")
    if name not in names():
        raise UsageError(f"unknown scheme {name!r}{nearest(name, names(), 0.5)}; there are {', '.join(names())}")
    scheme: Scheme = importlib.import_module(f"edgemem.quant.{name.replace('-', '_')}").SCHEME
    settings = dict(scheme.settings)
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if key not in settings or not equals:
            if not settings:
                raise UsageError(f"scheme {name} takes no settings, {pair!r} came; write {name} alone")
            known = ", ".join(f"{k}={v}" for k, v in settings.items())
            raise UsageError(f"scheme {name} has no setting {pair!r}{nearest(key, settings)}; it has {known}")
        settings[key] = setting(name, key, value, type(settings[key]))
    scheme.check(settings)
    return scheme, settings


def setting(scheme: str, key: str, text: str, kind: type) -> int | str:
    """One value as the type of its default.

    Raises:
        UsageError: no whole number where the default is one.
    """
    if kind is str:
        return text
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"scheme {scheme}: {key} must be a whole number, got {text!r}; write {scheme}:{key}=NUMBER")
    return int(text)
