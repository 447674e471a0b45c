"""The front end against its equations, streamed against whole, and sound files of every kind."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.audio import FrontEnd, FrontEndStream, microphone, read_audio, read_pcm16
from edgemem.errors import ContractError, InputError, MissingDependency, SnapshotError
from tests.front_ends import FRONT_ENDS, LOG_MEL, MFCC, PAIRS

Array = np.ndarray[Any, np.dtype[Any]]


def sound_of(samples: int, seed: int = 0) -> Array:
    """Noise whose loudness changes over time, with silence in it, float32."""
    random = np.random.default_rng(seed)
    loudness = 10.0 ** random.uniform(-5, 0, samples // 500 + 1).repeat(500)[:samples]
    sound = random.uniform(-1, 1, samples) * loudness
    sound[samples // 3 : samples // 2] = 0.0
    return sound.astype(np.float32)


# --- the equations -------------------------------------------------------------------------------------------------


def oracle_log_mel(sound: Array, start: int, f: FrontEnd) -> list[float]:
    """One frame of log-mel, written out: a direct Fourier transform and one triangle at a time."""
    frame = sound[start : start + f.window_samples].astype(np.float64)
    n = np.arange(f.window_samples)
    windowed = frame * np.sin(np.pi * n / f.window_samples) ** 2
    k = np.arange(f.fft // 2 + 1)
    power = np.abs(np.exp(-2j * np.pi * np.outer(k, n) / f.fft) @ windowed) ** 2

    mel_low, mel_high = (2595 * np.log10(1 + hz / 700) for hz in (f.low_hz, f.high_hz))
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(mel_low, mel_high, f.mels + 2)]
    values = []
    for left, peak, right in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.interp(k * f.sample_rate / f.fft, [left, peak, right], [0.0, 1.0, 0.0], left=0.0, right=0.0)
        values.append(float(np.log(triangle @ power + f.floor)))
    return values


def oracle_mfcc(log_mel: list[float], coefficients: int) -> list[float]:
    """The orthonormal DCT-II, written out."""
    mels = len(log_mel)
    sums = [sum(v * np.cos(np.pi * c * (2 * j + 1) / (2 * mels)) for j, v in enumerate(log_mel)) for c in range(mels)]
    return [s * np.sqrt((1 if c == 0 else 2) / mels) for c, s in enumerate(sums)][:coefficients]


@pytest.mark.parametrize("f", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_features_are_those_of_the_equations(f: FrontEnd) -> None:
    sound = sound_of(3000, seed=1)
    rows = f.features(sound)
    assert rows.dtype == np.float32 and rows.shape == (f.rows(3000), f.width) and len(rows) >= 3
    for r, row in enumerate(rows):
        frames = [oracle_log_mel(sound, (r * f.stack + i) * f.hop_samples, f) for i in range(f.stack)]
        if f.coefficients is not None:
            frames = [oracle_mfcc(frame, f.coefficients) for frame in frames]
        wanted = (np.concatenate(frames) - f.center) * f.scale
        # float32 keeps seven digits; the two mel formulas differ in the seventh (1127 and 2595 are rounded)
        np.testing.assert_allclose(row, wanted, rtol=1e-5, atol=2e-4)


def test_a_tone_rises_in_the_band_around_it() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    points = np.linspace(1127 * np.log1p(60 / 700), 1127 * np.log1p(7600 / 700), 42)
    centers = 700 * np.expm1(points[1:-1] / 1127)
    assert abs(centers[LOG_MEL.features(tone).mean(axis=0).argmax()] - 1000) < 60


def test_silence_is_the_floor() -> None:
    np.testing.assert_array_equal(LOG_MEL.features(np.zeros(400, np.float32)), np.full((1, 40), np.log(1e-5), "f4"))


# --- streaming -----------------------------------------------------------------------------------------------------


def streamed(stream: FrontEndStream, sound: Array, cuts: list[int]) -> Array:
    """Rows of the sound pushed in pieces that end at `cuts`."""
    return np.concatenate([stream.push(piece) for piece in np.split(sound, cuts)])


@settings(max_examples=60, deadline=None)
@given(
    f=st.sampled_from(list(FRONT_ENDS.values())),
    samples=st.integers(0, 4000),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_cut_gives_the_same_bits_as_the_whole(f: FrontEnd, samples: int, cuts: list[int]) -> None:
    sound = sound_of(samples, seed=samples)
    whole = f.features(sound)
    pieces = streamed(f.stream(), sound, sorted(min(cut, samples) for cut in cuts))
    assert whole.shape == (f.rows(samples), f.width) and pieces.tobytes() == whole.tobytes()


@pytest.mark.parametrize("size", [1, 159, 320, 1600])
def test_blocks_of_one_size_give_the_same_bits_as_the_whole(size: int) -> None:
    sound = sound_of(size * 20 + 7, seed=size) if size > 1 else sound_of(900)
    pieces = streamed(PAIRS.stream(), sound, list(range(size, len(sound), size)))
    assert pieces.tobytes() == PAIRS.features(sound).tobytes()


def test_a_long_sound_is_computed_in_blocks_with_the_same_bits() -> None:
    sound = sound_of(16_000 * 6)  # 598 frames
    assert streamed(LOG_MEL.stream(), sound, [80_000]).tobytes() == LOG_MEL.features(sound).tobytes()


def test_a_row_depends_on_no_sample_after_its_end() -> None:
    sound = sound_of(4000)
    other = sound.copy()
    end = round(PAIRS.frame_end_seconds(4) * PAIRS.sample_rate)
    other[end:] = np.nan
    assert other[end - 1] == sound[end - 1]
    changed, rows = PAIRS.features(other), PAIRS.features(sound)
    np.testing.assert_array_equal(changed[:5], rows[:5])
    assert np.isnan(changed[5]).any()


@settings(max_examples=25, deadline=None)
@given(f=st.sampled_from(list(FRONT_ENDS.values())), cut=st.integers(0, 3000))
def test_a_restored_snapshot_goes_on_with_the_same_bits(f: FrontEnd, cut: int) -> None:
    sound = sound_of(3000, seed=cut)
    first, second = f.stream(), f.stream()
    before = first.push(sound[:cut])
    saved = first.snapshot()
    first.push(sound_of(500, seed=9))  # the snapshot is a copy
    second.push(sound_of(700, seed=8))  # and replaces whatever came before
    second.restore(saved)
    after = second.push(sound[cut:])
    assert np.concatenate([before, after]).tobytes() == f.features(sound).tobytes()
    assert second.state["rows"].tolist() == [f.rows(3000)]


def test_reset_forgets_everything() -> None:
    stream = PAIRS.stream()
    stream.push(np.full(1000, np.nan, np.float32))
    stream.reset()
    sound = sound_of(2000)
    assert stream.push(sound).tobytes() == PAIRS.features(sound).tobytes()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tail", np.zeros(400, np.float32), r"frontend\.tail: at most 399 x float32"),
        ("tail", np.zeros(10, np.float64), "float64"),
        ("pending", np.zeros((2, 40), np.float32), r"at most 1 x float32\[40\]"),
        ("pending", np.zeros((1, 41), np.float32), r"\[1, 41\] came"),
        ("rows", np.array([-1]), "one count"),
        ("rows", np.array([], np.int64), "one count"),
        ("rows", None, "frontend.rows is missing"),
        ("head", np.array([1]), "frontend.head is unknown"),
    ],
)
def test_a_snapshot_of_another_front_end_is_refused_and_changes_nothing(name: str, value: Any, message: str) -> None:
    stream = PAIRS.stream()
    stream.push(sound_of(1000))
    before = stream.state
    state = {**before, name: value}
    if value is None:
        del state[name]
    with pytest.raises(SnapshotError, match=message):
        stream.restore(state)
    assert {n: a.tobytes() for n, a in stream.state.items()} == {n: a.tobytes() for n, a in before.items()}


def test_rows_know_their_time() -> None:
    assert PAIRS.seconds_per_frame == 0.02
    assert PAIRS.frame_start_seconds(3) == 0.06 and PAIRS.frame_end_seconds(0) == (160 + 400) / 16_000
    np.testing.assert_allclose(PAIRS.frame_end_seconds(np.arange(3)), [0.035, 0.055, 0.075])
    assert PAIRS.rows(560) == 1 and PAIRS.rows(559) == 0 and PAIRS.rows(0) == 0


@pytest.mark.parametrize("samples", [np.zeros(800, np.int16), np.zeros((800, 2), np.float32)])
def test_samples_that_are_not_float_mono_are_refused(samples: Array) -> None:
    with pytest.raises(InputError, match=r"float mono \[time\] was wanted, .*" + re.escape(str(list(samples.shape)))):
        LOG_MEL.stream().push(samples)


# --- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_parameters_travel_as_json(f: FrontEnd) -> None:
    assert FrontEnd.from_dict(json.loads(json.dumps(f.to_dict()))) == f


def test_whole_numbers_stand_for_floats() -> None:
    assert FrontEnd.from_dict({**LOG_MEL.to_dict(), "low_hz": 60}) == LOG_MEL


def test_an_mfcc_has_thirteen_coefficients_unless_told() -> None:
    assert FrontEnd(kind="mfcc").width == 13


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "mel"), ("kind", 3), ("sample_rate", 0), ("sample_rate", 16e3), ("sample_rate", True),
        ("window_samples", 513), ("window_samples", "400"), ("hop_samples", 0), ("hop_samples", 401),
        ("fft", 500), ("fft", 1 << 20), ("mels", 0), ("mels", None), ("low_hz", -1.0), ("low_hz", 7600.0),
        ("high_hz", 8001.0), ("high_hz", float("nan")), ("stack", 0), ("stack", 1 << 40), ("coefficients", 13),
        ("floor", 0.0), ("floor", float("inf")), ("floor", 10**400), ("center", float("nan")), ("scale", 0),
        ("scale", [1.0]), ("mels", 200),
    ],
)  # fmt: skip
def test_a_wrong_parameter_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ContractError, match=rf"frontend\.{name}\b"):
        FrontEnd.from_dict({**LOG_MEL.to_dict(), name: value})


@pytest.mark.parametrize("value", [0, 41, 2.0])
def test_mfcc_coefficients_are_checked(value: object) -> None:
    with pytest.raises(ContractError, match=r"frontend\.coefficients"):
        FrontEnd.from_dict({**MFCC.to_dict(), "coefficients": value})


def test_an_unknown_and_a_missing_key_are_refused() -> None:
    with pytest.raises(ContractError, match=r"frontend\.dither is not a parameter"):
        FrontEnd.from_dict({**LOG_MEL.to_dict(), "dither": 0.1})
    with pytest.raises(ContractError, match=r"frontend\.hop_samples is missing"):
        FrontEnd.from_dict({k: v for k, v in LOG_MEL.to_dict().items() if k != "hop_samples"})
    with pytest.raises(ContractError, match="list came"):
        FrontEnd.from_dict([])  # type: ignore[arg-type]


def test_the_constructor_checks_too() -> None:
    with pytest.raises(ContractError, match=r"frontend\.hop_samples: 1 to window_samples = 400 was wanted, 500 came"):
        replace(LOG_MEL, hop_samples=500)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_of_each_format_is_read(tmp_path: Path, suffix: str) -> None:
    sound = 0.4 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16_000)
    soundfile.write(tmp_path / f"a.{suffix}", sound, 16_000)
    came = read_audio(tmp_path / f"a.{suffix}")
    assert came.dtype == np.float32 and came.shape == (8000,)
    error = np.abs(came - sound)[500:-500].max()  # a lossy coder rings at the ends
    assert error < (0.02 if suffix == "ogg" else 1 / 32_768)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sound_of(1000, seed=1), sound_of(1000, seed=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_another_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate, subtype="FLOAT")
    came = read_audio(tmp_path / "a.wav")
    wanted = np.sin(2 * np.pi * 440 * np.arange(len(came)) / 16_000)
    assert abs(len(came) - 16_000) <= 1
    np.testing.assert_allclose(came[1000:-1000], wanted[1000:-1000], atol=1e-3)  # soxr HQ: 20 bits in its pass band


def test_files_that_are_no_audio_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, 0.5, np.nan]), 16_000, subtype="FLOAT")
    for name, message in {
        "text.wav": "cannot be read as one",
        "empty.wav": "at least one sample was wanted",
        "nan.wav": "NaN or infinity came at sample 2",
        "gone.wav": "an audio file was wanted, nothing is there",
        ".": "an audio file was wanted, a folder is there",
    }.items():
        with pytest.raises(InputError, match=message) as refused:
            read_audio(tmp_path / name)
        assert str(tmp_path / name) in str(refused.value)


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 16_000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependency, match=r"soundfile is not installed; pip install 'edgemem\[audio\]'"):
        read_audio(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingDependency, match=r"pip install 'edgemem\[mic\]'"):
        next(microphone())


# --- raw PCM and the microphone ------------------------------------------------------------------------------------


class Pipe(io.BytesIO):
    """Gives at most three bytes per read, as a pipe may."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, 3))


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
def test_pcm_blocks_join_to_the_sound(source: type[io.BytesIO]) -> None:
    pcm = np.array([0, 1, -1, 32_767, -32_768, 256, 7], "<i2")
    blocks = list(read_pcm16(source(pcm.tobytes()), 4))
    assert all(block.dtype == np.float32 and 1 <= len(block) <= 4 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), pcm / 32_768)


def test_half_a_sample_of_pcm_is_refused_after_the_whole_ones() -> None:
    blocks = read_pcm16(io.BytesIO(b"\0\1\2\3\4"), 100)
    assert len(next(blocks)) == 2
    with pytest.raises(InputError, match="an odd number of bytes came"):
        next(blocks)


class FakeInput:
    """A sound card that records a ramp and loses sound once."""

    def __init__(self, blocksize: int, **asked: object) -> None:
        if asked["device"] == "none":
            raise ValueError("No input device matching 'none'")
        self.at, self.asked = 0, asked

    def __enter__(self) -> FakeInput:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, frames: int) -> tuple[Array, bool]:
        self.at += frames
        return np.arange(self.at - frames, self.at, dtype=np.float32)[:, None], self.at == 2 * frames


def test_the_microphone_gives_blocks_and_reports_lost_sound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = SimpleNamespace(InputStream=FakeInput, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    blocks = microphone(block=4)
    np.testing.assert_array_equal(np.concatenate([next(blocks) for _ in range(3)]), np.arange(12))
    assert caplog.text.count("sound was lost") == 1
    with pytest.raises(InputError, match="microphone none: mono at 16000 Hz was wanted"):
        next(microphone(device="none"))
