"""The streaming audio-spectrogram Transformer: the encoder of `folding` with whole frames, its logits averaged."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.oracles import folding
from tests.oracles.common import Parameters
from tests.oracles.kws_lmuformer import average


def run(parameters: Parameters, config: Any, x: np.ndarray) -> np.ndarray:
    """Averaged logits [batch, time, labels] of x [batch, time, features]."""
    plain = SimpleNamespace(**vars(config), fold=1, look_ahead=0, vocab=True)
    streams = [folding.one_stream(parameters, plain, frames) for frames in x]
    return np.stack(
        [np.stack([average(list(scores[: t + 1]), config.forget) for t in range(len(scores))]) for scores in streams]
    )
