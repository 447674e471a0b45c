"""What a quantized file may differ from its parent by, so that a proof of it can still fail.

    relative_tolerance   of the largest value of every tensor, output or state: the largest error, doubled
    rms_tolerance        of the RMS of every output over the run: that error, doubled, at most `MOST`; where the former
                         is 1 or more and would let an output of zeros pass, it is all that the contract claims

Outputs of zeros are off by 1, those of another stream by about 1.4. No file may be further off than `MOST`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgemem.compare import FLOOR, Comparison, Tensor
from edgemem.errors import ContractError

HEADROOM = 2.0  # a longer run on other inputs meets larger errors than the certificate's
MOST = 0.9


def tolerances(found: Comparison, outputs: Iterable[str]) -> dict[str, float]:
    """What the contract claims after a comparison, as a part of its `quant` field: one of the two."""
    largest = max((t.max_abs_error / t.max_reference for t in found.tensors.values() if t.max_reference), default=0.0)
    if HEADROOM * largest < 1.0:
        return {"relative_tolerance": rounded(HEADROOM * largest)}
    _, worst = worst_output(found, outputs)
    return {"rms_tolerance": min(MOST, rounded(HEADROOM * worst.rms_ratio))}


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


def claims(quant: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The relative and the RMS tolerance of a contract's `quant` field; None for the one that it does not claim.

    Raises:
        ContractError: it claims neither, or not by numbers.
    """
    relative, rms = quant.get("relative_tolerance"), quant.get("rms_tolerance")
    for name, value in (("relative_tolerance", relative), ("rms_tolerance", rms)):
        if value is not None and (not isinstance(value, float) or not value >= 0):
            raise ContractError(f"contract field quant.{name}: a number of at least 0 was wanted, {value!r} came")
    if relative is None and rms is None:
        raise ContractError("contract field quant: relative_tolerance or rms_tolerance was wanted, neither came")
    return relative, rms


def claimed(quant: Mapping[str, Any]) -> tuple[float | None, float]:
    """The relative tolerance, where it is claimed, and an output's most RMS error, which no claim takes beyond `MOST`.

    Raises:
        ContractError: as `claims`.
    """
    relative, rms = claims(quant)
    return relative, MOST if rms is None else min(MOST, rms)


def worst_output(found: Comparison, outputs: Iterable[str]) -> tuple[str, Tensor]:
    """The output with the largest RMS error beside its own RMS."""
    there = [(name, found.tensors[name]) for name in outputs if name in found.tensors]
    return max(there, key=lambda item: item[1].rms_ratio, default=("nothing", Tensor()))


def rms_allowed(tensor: Tensor, share: float) -> float:
    """The RMS error that an output may have."""
    return max(FLOOR, share * tensor.rms_reference)
