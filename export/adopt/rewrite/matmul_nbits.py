"""MatMulNBits (com.microsoft) -> a product with a matrix that is stored in few bits where compilers can read it so.

B uint8 [N, groups, group * bits / 8]     codes of `bits` bits, the low ones first      K inputs, N outputs
W[k, n] = (code - zero) * scale           zero 2^(bits - 1), or one for each group

before                         after
4 bits, every code - zero      MatMul(x, DequantizeLinear(q int4 [K, N], scale [K / 32, N], block_size=32))
in -8..7, groups of 32 n
others                         MatMul(x, W), in float32
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from edgemem.errors import ExportError
from edgemem.export.adopt.build import Array, Builder, known, replace
from edgemem.export.adopt.freeze import Freezer, where

GROUP = 32  # inputs that share a scale in what compilers read as it is stored
INT4_VERSION = 21  # the first with int4, and with blocks in DequantizeLinear


def rewrite(freezer: Freezer, node: ir.Node) -> None:
    """Put a product in the operator's place.

    Raises:
        ExportError: weights that are no constants, or in an order of their own.
    """
    build = Builder(freezer.graph, node, node.name or "MatMulNBits")
    x = node.inputs[0]
    steps, scale = unpacked(node)  # [N, K], [N, K / GROUP or 0]
    if len(scale) and steps.min() >= -8 and steps.max() <= 7:
        freezer.raise_version(INT4_VERSION)
        q = build.constant("q", steps.T.astype(ml_dtypes.int4))
        matrix = build.op("DequantizeLinear", q, build.floats("scale", scale.T), dtype=ir.DataType.FLOAT,
                          axis=0, block_size=GROUP)  # fmt: skip
    else:
        matrix = build.floats("W", dequantized(node).T)
    y = build.op("MatMul", x, matrix)
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    if bias is not None:
        y = build.op("Add", y, bias)
    replace(node.outputs[0], y)
    freezer.graph.remove(node, safe=True)
    freezer.visit(build.nodes)


def parts(node: ir.Node) -> tuple[Array, Array, Array, int, int]:
    """Codes [N, groups, group], scales and zeros [N, groups, 1], group and K."""
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise ExportError(f"{where(node)}: weights in an order of their own (g_idx) are not supported; export without")
    packed, scale = known(node.inputs[1]), known(node.inputs[2])
    zeros = known(node.inputs[3]) if len(node.inputs) > 3 else None
    if packed is None or scale is None or (len(node.inputs) > 3 and node.inputs[3] is not None and zeros is None):
        raise ExportError(f"{where(node)}: its weights are computed; constants were wanted")
    bits = node.attributes["bits"].as_int() if "bits" in node.attributes else 4
    size, k, n = (node.attributes[name].as_int() for name in ("block_size", "K", "N"))
    groups = -(-k // size)
    if packed.size * 8 != n * groups * size * bits or scale.size != n * groups:
        raise ExportError(
            f"{where(node)}: {n} x {groups} groups of {size} codes of {bits} bits were wanted, each with a scale; "
            f"{packed.size} bytes and {scale.size} scales came; the file is malformed, export it again"
        )
    codes = fields(packed.reshape(n, groups, -1), bits)
    if zeros is None:
        zero = np.full((n, groups), 2.0 ** (bits - 1))
    elif zeros.dtype == np.uint8:
        zero = fields(zeros.reshape(n, -1), bits)[:, :groups]
    else:
        zero = zeros.reshape(n, groups)
    return codes, scale.reshape(n, groups, 1).astype(np.float32), zero[..., None].astype(np.float32), size, k


def fields(packed: Array, bits: int) -> Array:
    """Bytes [..., n] as codes [..., n * 8 / bits], the low bits first."""
    if bits not in (2, 4, 8):
        raise ExportError(f"MatMulNBits of {bits} bits is not known; 2, 4 and 8 are")
    shifts = np.arange(0, 8, bits)
    found: Array = (packed[..., None] >> shifts.astype(np.uint8)) & np.uint8((1 << bits) - 1)
    return found.reshape(*packed.shape[:-1], -1)


def unpacked(node: ir.Node) -> tuple[Array, Array]:
    """Whole steps [N, K] and a scale for every 32 of them; no scales where they are none of these."""
    codes, scale, zero, size, k = parts(node)
    steps = (codes - zero).reshape(len(codes), -1)[:, :k]
    whole = size % GROUP == 0 and k % GROUP == 0 and bool((steps == np.rint(steps)).all())
    return steps, np.repeat(scale[..., 0], size // GROUP, axis=1)[:, : k // GROUP] if whole else np.empty(0)


def dequantized(node: ir.Node) -> Array:
    """The matrix [N, K] in float32."""
    codes, scale, zero, _, k = parts(node)
    return ((codes - zero) * scale).reshape(len(codes), -1)[:, :k].astype(np.float32)
