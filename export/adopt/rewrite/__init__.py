"""Operators that compilers lack, written out in primitive ones: a file for each group, found by this table."""

from __future__ import annotations

from edgemem.export.adopt.freeze import Rewrite
from edgemem.export.adopt.rewrite import (
    causal_conv,
    conv,
    gru,
    linear_attention,
    loop,
    lstm,
    matmul_nbits,
    qlinear_matmul,
    rnn,
    scan,
)

# (domain, operator): what puts other nodes in its place and freezes them. Those with a body go before all else.
UNROLLED: dict[tuple[str, str], Rewrite] = {
    ("", "Loop"): loop.rewrite,
    ("", "Scan"): scan.rewrite,
}
REWRITES: dict[tuple[str, str], Rewrite] = {
    **UNROLLED,
    ("", "LSTM"): lstm.rewrite,
    ("", "GRU"): gru.rewrite,
    ("", "RNN"): rnn.rewrite,
    ("", "LinearAttention"): linear_attention.rewrite,
    ("", "Conv"): conv.rewrite,
    ("", "CausalConvWithState"): causal_conv.rewrite,
    ("", "QLinearMatMul"): qlinear_matmul.rewrite,
    ("com.microsoft", "MatMulNBits"): matmul_nbits.rewrite,
}
