"""Front ends of every kind there is."""

from __future__ import annotations

from edgemem.audio import FrontEnd

LOG_MEL = FrontEnd()
MFCC = FrontEnd(kind="mfcc", coefficients=13)
PAIRS = FrontEnd(stack=2)
FRONT_ENDS = {
    "log_mel": LOG_MEL,
    "mfcc": MFCC,
    "pairs": PAIRS,
    "no overlap": FrontEnd(window_samples=256, hop_samples=256, fft=256, mels=20, stack=3),
    "scaled": FrontEnd(kind="mfcc", coefficients=1, mels=12, center=-6.0, scale=0.25, stack=2),
}
