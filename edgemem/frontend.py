"""Log-mel and MFCC features of audio, streamed or whole. Plain NumPy; every equation fits a microcontroller.

    frame i    x[n] = s[i hop + n]                        n = 0 .. window-1, no padding: i = 0 starts at sample 0
    window     w[n] = 1/2 - 1/2 cos(2 pi n / window)      periodic Hann
    spectrum   X[k] = sum_n w[n] x[n] exp(-2 pi i k n / fft)          k = 0 .. fft/2
    power      P[k] = |X[k]|^2
    mel        m(f) = 1127 ln(1 + f / 700)                HTK
    edges      e[j] = m^-1(m(low) + j (m(high) - m(low)) / (mels + 1))   j = 0 .. mels+1
    filter     H[j, k] = max(0, min((f - e[j]) / (e[j+1] - e[j]), (e[j+2] - f) / (e[j+2] - e[j+1])))
                                                          f = k sample_rate / fft; peak 1, j = 0 .. mels-1
    log mel    L[j] = ln(sum_k H[j, k] P[k] + floor)
    MFCC       C[c] = sqrt((1 if c = 0 else 2) / mels) sum_j L[j] cos(pi c (j + 1/2) / mels)     DCT-II
    feature    (L - center) scale, or (C - center) scale
    row r      the features of frames r stack .. r stack + stack-1, one after the other

Samples are float32 in [-1, 1], the arithmetic is float64, features are float32. The sums of one frame never depend on
which frames are computed with it, so a stream gives the same bits as the whole sound, however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np

from edgemem.errors import ContractError, InputError, SnapshotError

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("log_mel", "mfcc")
MFCC_COEFFICIENTS = 13
BLOCK_FRAMES = 512  # frames computed together: 2 MB of float64 at 512 points
EXACT_IN_FLOAT = 1 << 53
# What a contract may ask for: a front end is built from a file that anyone may have written.
LARGEST = {"sample_rate": 384_000, "fft": 1 << 15, "mels": 512, "stack": 1024}


@dataclass(frozen=True)
class FrontEnd:
    """The parameters of the features; they travel in a model's contract as `inputs[0].frontend`.

    The equations head this module. Each row of features covers `stack` frames and has `width` values.

    Raises:
        ContractError: a parameter of the wrong type, or out of its range; it is named.
    """

    kind: str = "log_mel"  # or "mfcc"
    sample_rate: int = 16_000
    window_samples: int = 400
    hop_samples: int = 160
    fft: int = 512  # points, a power of two
    mels: int = 40
    low_hz: float = 60.0
    high_hz: float = 7600.0
    stack: int = 1  # frames per row
    coefficients: int | None = None  # of an MFCC; None for log-mel
    floor: float = 1e-5  # added to each mel energy; about the energy of -73 dBFS noise in a narrow band
    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.kind == "mfcc" and self.coefficients is None:
            object.__setattr__(self, "coefficients", MFCC_COEFFICIENTS)
        check_types(self)
        check_ranges(self)
        tables(self)

    def to_dict(self) -> dict[str, object]:
        """The parameters as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> FrontEnd:
        """The front end that `to_dict` described.

        Raises:
            ContractError: not a mapping, or a key unknown, missing, of the wrong type or out of range.
        """
        if not isinstance(values, Mapping):
            raise ContractError(f"frontend: an object was wanted, {type(values).__name__} came; export the model again")
        known = {field.name for field in fields(cls)}
        for name in sorted(set(values) ^ known, key=str):
            what = "is not a parameter of a front end" if name in values else "is missing"
            raise ContractError(
                f"frontend.{name} {what}; wanted are {', '.join(sorted(known))}; export the model again"
            )
        return cls(**values)  # type: ignore[arg-type]  # __post_init__ checks every type

    @property
    def frame_width(self) -> int:
        """Features of one frame."""
        return self.mels if self.coefficients is None else self.coefficients

    @property
    def width(self) -> int:
        """Features of one row."""
        return self.stack * self.frame_width

    @property
    def hop_per_row(self) -> int:
        """Samples from the start of one row to the start of the next."""
        return self.stack * self.hop_samples

    @property
    def samples_per_row(self) -> int:
        """Samples that one row covers."""
        return (self.stack - 1) * self.hop_samples + self.window_samples

    @property
    def seconds_per_frame(self) -> float:
        """From one row to the next, which is one frame of the model."""
        return self.hop_per_row / self.sample_rate

    @overload
    def frame_start_seconds(self, row: int) -> float: ...
    @overload
    def frame_start_seconds(self, row: Array) -> Array: ...
    def frame_start_seconds(self, row: int | Array) -> float | Array:
        """When the first sample of a row begins; an index, or an array of them."""
        return row * self.hop_per_row / self.sample_rate

    @overload
    def frame_end_seconds(self, row: int) -> float: ...
    @overload
    def frame_end_seconds(self, row: Array) -> Array: ...
    def frame_end_seconds(self, row: int | Array) -> float | Array:
        """When the last sample of a row ends, from which on the row can be known."""
        return (row * self.hop_per_row + self.samples_per_row) / self.sample_rate

    def rows(self, samples: int) -> int:
        """Whole rows in that many samples."""
        return max(0, (samples - self.window_samples) // self.hop_samples + 1) // self.stack

    def features(self, samples: Array) -> Array:
        """Features of a whole sound: samples [time] to rows [rows, width], float32.

        Samples after the last whole row are not used.

        Raises:
            InputError: samples that are not float mono.
        """
        return self.stream().push(samples)

    def stream(self) -> FrontEndStream:
        """Features of a sound that comes in pieces."""
        return FrontEndStream(self)


class FrontEndStream:
    """The samples and frames that wait for those after them. `push` gives each row as soon as it is whole."""

    def __init__(self, frontend: FrontEnd) -> None:
        self.frontend = frontend
        self.reset()

    def reset(self) -> None:
        """Back to the first sample."""
        self._tail = np.empty(0, np.float32)  # [< window], from the start of the next frame on
        self._pending = np.empty((0, self.frontend.frame_width), np.float32)  # [< stack, frame_width]
        self._rows = 0  # given so far

    def push(self, samples: Array) -> Array:
        """Take any number of samples [time]; give the rows [rows, width] that are whole with them, float32.

        Raises:
            InputError: samples that are not float mono.
        """
        frontend = self.frontend
        sound = np.concatenate([self._tail, checked_samples(samples)])
        frames = frame_features(frontend, sound)
        self._tail = sound[len(frames) * frontend.hop_samples :].copy()
        frames = np.concatenate([self._pending, frames])
        rows = len(frames) // frontend.stack
        self._pending = frames[rows * frontend.stack :].copy()
        self._rows += rows
        return frames[: rows * frontend.stack].reshape(rows, frontend.width)

    @property
    def state(self) -> dict[str, Array]:
        """What the stream remembers, by name; copies.

        tail     [< window_samples] float32       samples from the start of the next frame on
        pending  [< stack, frame_width] float32   features of frames that wait for a whole row
        rows     [1] int64                        given since the start
        """
        return {
            "tail": self._tail.copy(),
            "pending": self._pending.copy(),
            "rows": np.array([self._rows], np.int64),
        }

    def snapshot(self) -> dict[str, Array]:
        """The state, to be saved and restored."""
        return self.state

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on where a snapshot was taken.

        Raises:
            SnapshotError: a tensor missing, unknown, or of another dtype or shape; the stream is as it was.
        """
        wanted = self.state
        for name in sorted(set(state) ^ set(wanted)):
            raise SnapshotError(
                f"snapshot: frontend.{name} is {'unknown' if name in state else 'missing'}; wanted are {sorted(wanted)}"
            )
        longest = {"tail": self.frontend.window_samples - 1, "pending": self.frontend.stack - 1, "rows": 1}
        for name, like in wanted.items():
            came = state[name]
            fits = came.dtype == like.dtype and came.ndim == like.ndim and came.shape[1:] == like.shape[1:]
            if not fits or len(came) > longest[name]:
                raise SnapshotError(
                    f"snapshot: frontend.{name}: at most {longest[name]} x {like.dtype}{list(like.shape[1:])} "
                    f"was wanted, {came.dtype}{list(came.shape)} came; it is of another front end"
                )
        if state["rows"].shape != (1,) or state["rows"][0] < 0:
            raise SnapshotError(f"snapshot: frontend.rows: one count was wanted, {state['rows'].tolist()} came")
        self._tail, self._pending = state["tail"].copy(), state["pending"].copy()
        self._rows = int(state["rows"][0])


class Tables(NamedTuple):
    """What the equations need besides the samples, float64.

    The filters are kept as the runs of bins where they are not 0, joined: filter j is
    `bins[starts[j]:starts[j + 1]]` with those `weights`.
    """

    hann: Array  # [window_samples]
    bins: Array  # [joined], of the spectrum
    weights: Array  # [joined]
    starts: Array  # [mels]
    dct: Array | None  # [coefficients, mels]


def hann(window: int) -> Array:
    """Periodic Hann window [window], float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)


def mel(hz: float) -> float:
    """Hertz to HTK mel."""
    return 1127.0 * math.log1p(hz / 700.0)


def mel_filters(frontend: FrontEnd) -> Array:
    """The triangular filters H [mels, fft // 2 + 1], float64, peak 1."""
    points = np.linspace(mel(frontend.low_hz), mel(frontend.high_hz), frontend.mels + 2)
    edges = 700.0 * np.expm1(points / 1127.0)
    bins = np.arange(frontend.fft // 2 + 1) * (frontend.sample_rate / frontend.fft)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    filters: Array = np.maximum(0.0, np.minimum(rising, falling))
    return filters


def dct_matrix(coefficients: int, mels: int) -> Array:
    """The first rows of the orthonormal DCT-II [coefficients, mels], float64."""
    order, band = np.arange(coefficients)[:, None], np.arange(mels)
    matrix: Array = np.sqrt(2 / mels) * np.cos(np.pi * order * (band + 0.5) / mels)
    matrix[0] = np.sqrt(1 / mels)
    return matrix


@lru_cache(maxsize=32)
def tables(frontend: FrontEnd) -> Tables:
    """The tables of a front end.

    Raises:
        ContractError: filters so narrow that one of them holds no bin of the spectrum.
    """
    filters = mel_filters(frontend)
    empty = np.flatnonzero(~filters.any(axis=1))
    if len(empty):
        raise ContractError(
            f"frontend.mels: filter {empty[0]} of {frontend.mels} holds no bin of a spectrum of {frontend.fft} points; "
            "use fewer mels or a larger fft"
        )
    rows, bins = np.nonzero(filters)
    dct = None if frontend.coefficients is None else dct_matrix(frontend.coefficients, frontend.mels)
    starts = np.searchsorted(rows, np.arange(frontend.mels))
    return Tables(hann(frontend.window_samples), bins, filters[rows, bins], starts, dct)


def frame_features(frontend: FrontEnd, sound: Array) -> Array:
    """Features of every whole frame in `sound` [time] float32: [frames, frame_width] float32."""
    count = max(0, (len(sound) - frontend.window_samples) // frontend.hop_samples + 1)
    features = np.empty((count, frontend.frame_width), np.float32)
    if count:
        frames = np.lib.stride_tricks.sliding_window_view(sound, frontend.window_samples)[:: frontend.hop_samples]
        for at in range(0, count, BLOCK_FRAMES):
            features[at : at + BLOCK_FRAMES] = block_features(frontend, frames[at : at + BLOCK_FRAMES])
    return features


def block_features(frontend: FrontEnd, frames: Array) -> Array:
    """The equations, for frames [frames, window]: [frames, frame_width] float64.

    Sums run along the last, contiguous axis; a matrix product would sum in an order that depends on how many frames
    it is given.
    """
    table = tables(frontend)
    spectrum = np.fft.rfft(frames * table.hann, frontend.fft)
    power = spectrum.real**2 + spectrum.imag**2
    energy = np.add.reduceat(power[:, table.bins] * table.weights, table.starts, axis=1)
    values: Array = np.log(energy + frontend.floor)
    if table.dct is not None:
        values = (values[:, None, :] * table.dct).sum(axis=-1)
    values -= frontend.center
    values *= frontend.scale
    return values


def checked_samples(samples: Array) -> Array:
    """Float mono [time] as float32.

    Raises:
        InputError: integers, or several channels.
    """
    sound = np.asarray(samples)
    if sound.ndim != 1 or sound.dtype.kind != "f":
        raise InputError(
            f"samples: float mono [time] was wanted, {sound.dtype}{list(sound.shape)} came; "
            "average the channels and divide 16-bit samples by 32768"
        )
    return sound.astype(np.float32, copy=False)


def check_types(frontend: FrontEnd) -> None:
    """Refuse a parameter of another type; a whole number where a float was wanted becomes one.

    Raises:
        ContractError: naming the parameter.
    """
    for field in fields(frontend):
        value, wanted = getattr(frontend, field.name), str(field.type)
        if wanted == "float" and type(value) is int and abs(value) < EXACT_IN_FLOAT:
            value = float(value)
            object.__setattr__(frontend, field.name, value)
        names = [type(value).__name__, "None" if value is None else ""]
        if not set(names) & set(wanted.split(" | ")):
            raise ContractError(f"frontend.{field.name}: {wanted} was wanted, {value!r} came; export the model again")


def check_ranges(frontend: FrontEnd) -> None:
    """Refuse a parameter that no features can be computed with.

    Raises:
        ContractError: naming the parameter and its range.
    """
    f = frontend
    nyquist = f.sample_rate / 2
    mfcc = f.kind == "mfcc"
    rules = (
        ("kind", f.kind in KINDS, f"one of {', '.join(KINDS)}"),
        ("sample_rate", 1 <= f.sample_rate <= LARGEST["sample_rate"], f"1 to {LARGEST['sample_rate']}"),
        ("fft", 2 <= f.fft <= LARGEST["fft"] and f.fft & (f.fft - 1) == 0, f"a power of two up to {LARGEST['fft']}"),
        ("window_samples", 1 <= f.window_samples <= f.fft, f"1 to fft = {f.fft}"),
        ("hop_samples", 1 <= f.hop_samples <= f.window_samples, f"1 to window_samples = {f.window_samples}"),
        ("mels", 1 <= f.mels <= LARGEST["mels"], f"1 to {LARGEST['mels']}"),
        ("high_hz", 0.0 < f.high_hz <= nyquist, f"more than 0, up to {nyquist:g} (half the sample rate)"),
        ("low_hz", 0.0 <= f.low_hz < f.high_hz, f"0 to less than high_hz = {f.high_hz:g}"),
        ("stack", 1 <= f.stack <= LARGEST["stack"], f"1 to {LARGEST['stack']}"),
        (
            "coefficients",
            (f.coefficients is not None and 1 <= f.coefficients <= f.mels) if mfcc else f.coefficients is None,
            f"1 to mels = {f.mels}" if mfcc else "None for log_mel",
        ),
        ("floor", 0.0 < f.floor < math.inf, "more than 0"),
        ("center", math.isfinite(f.center), "a finite number"),
        ("scale", math.isfinite(f.scale) and f.scale != 0.0, "a finite number other than 0"),
    )
    for name, holds, wanted in rules:
        if not holds:
            raise ContractError(f"frontend.{name}: {wanted} was wanted, {getattr(f, name)!r} came")
