"""Operators that compilers lack, written out in primitive ones: a file for each group, found by this table."""

from __future__ import annotations

from edgemem.export.adopt.freeze import Rewrite
from edgemem.export.adopt.rewrite import gru, lstm, rnn

UNROLLED: dict[tuple[str, str], Rewrite] = {}  # operators with a body, which have to go before all else

# (domain, operator): what puts other nodes in its place and freezes them
REWRITES: dict[tuple[str, str], Rewrite] = {
    ("", "LSTM"): lstm.rewrite,
    ("", "GRU"): gru.rewrite,
    ("", "RNN"): rnn.rewrite,
}
