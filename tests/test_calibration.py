"""Calibration: which data is taken, what is refused, and that state carried along matters."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgemem.errors import InputError, UsageError
from edgemem.export import export_model
from edgemem.modelfile import open_model
from edgemem.quant import calibration, quantize
from edgemem.quant.calibration import Observed, observed, read, steps
from edgemem.quant.ranges import CALIBRATORS
from tests.quantizing import output_error


def huge_header() -> bytes:
    """A file of nothing that says to be terabytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 3)})
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.npy", None, "does not exist"),
        ("empty.npy", np.zeros((0, 3), np.float32), "has 0 frames in its longest sequence"),
        ("wide.npy", np.zeros((9, 4), np.float32), r"x must be \[time, 3\] or \[sequences, time, 3\], \[9, 4\] came"),
        ("flat.npy", np.zeros(32000, np.float32), r"x must be \[time, 3\] .*, \[32000\] came"),
        ("one.npy", np.zeros((), np.float32), r"x must be \[time, 3\] .*, \[\] came"),
        ("words.npy", np.array(["yes", "no"]), "x must hold numbers, text came"),
        ("int.npy", np.zeros((9, 3), np.int64), "x must be of float32, int64 came"),
        ("nan.npy", np.full((9, 3), np.nan, np.float32), "holds NaN or infinity"),
        ("same.npy", np.ones((9, 3), np.float32), "every value of x is 1.0"),
        ("other.npz", {"y": np.zeros((9, 3), np.float32)}, r"an array 'x' was wanted, \['y'\] came"),
        ("text.txt", b"hello", "takes float32.* per frame, not text"),
        ("broken.npy", b"hello", "is not a readable .npy"),
        ("broken.npz", b"PK\x03\x04 and no more", "is not a readable .npy"),
        ("huge.npy", huge_header(), "is not a readable .npy"),
        ("huge.npz", {"x.npy": huge_header()}, "is not a readable .npy"),
        ("folder", "folder", "WAV, FLAC or OGG files were wanted, the folder has none"),
    ],
)
def test_bad_data_is_refused(models: Path, tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, dict) and "x.npy" in content:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", content["x.npy"])
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=message):
        read(path, open_model(models / "lmu.onnx").contract)


def test_an_archive_that_unpacks_to_too_much_is_refused(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "MOST_BYTES", 1 << 12)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((1000, 3), np.float32))
    with pytest.raises(InputError, match=r"unpacks to 11\.\d KiB"):
        read(tmp_path / "x.npz", open_model(models / "lmu.onnx").contract)


def test_tokens_out_of_range_are_refused(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([3, 256, 4]))
    with pytest.raises(InputError, match=r"tokens must lie in \[0, 255\], 3 to 256 came"):
        read(tmp_path / "x.npy", open_model(models / "lm.onnx").contract)


def test_the_text_for_byte_models_stays_as_it_is(models: Path) -> None:
    """A file quantized by one version of this package and by the next is the same."""
    data = calibration.own_sources(open_model(models / "lm.onnx").contract)
    assert data.digest.startswith("ec04c92d7d2a0182")


def test_shipped_models_have_data_and_others_must_be_given_some(models: Path, tmp_path: Path) -> None:
    for name in ("k.onnx", "lm.onnx"):
        data = calibration.packaged(open_model(models / name).contract)
        assert data is not None and sum(len(next(iter(s.values()))) for s in data.sequences) > 500
    with pytest.raises(UsageError, match=r"scheme w8a8.* needs calibration data, and none ships for lmu"):
        quantize(models / "lmu.onnx", tmp_path / "q.onnx", "w8a8")


def test_recognisers_have_sequences_of_their_own(tmp_path: Path) -> None:
    """Strings as they are trained on; one with another front end hears the spotters' clips through it."""
    small = {"layers": 1, "width": 8, "heads": 1}
    export_model("asr-folding", tmp_path / "m.onnx", small, seed=1)
    export_model("asr-folding", tmp_path / "other.onnx", {**small, "features": 120}, seed=1)
    data = calibration.packaged(open_model(tmp_path / "m.onnx").contract)
    assert data is not None and data.source == calibration.WORDS and len(data.sequences) > 100
    values = np.concatenate([sequence["features"] for sequence in data.sequences])
    assert values.shape[1:] == (240,) and len(values) * 0.06 > 1200  # seconds
    assert -12.0 < values.min() < -6.0 and values.std() > 2.0  # log-mels, silence and speech
    other = calibration.packaged(open_model(tmp_path / "other.onnx").contract)
    assert other is not None and other.source == calibration.SPEECH and len(other.sequences) < 100


def test_sounds_and_clips_become_features(models: Path, tmp_path: Path) -> None:
    import soundfile

    contract = open_model(models / "k.onnx").contract
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", sound, 16000)
    (folder,), (file,) = (read(path, contract).sequences for path in (tmp_path, tmp_path / "a.wav"))
    np.testing.assert_array_equal(folder["features"], file["features"])
    np.savez(tmp_path / "c.npz", clips=np.rint(sound[None] * 32768).astype(np.int16))
    (clips,) = read(tmp_path / "c.npz", contract).sequences
    np.testing.assert_allclose(clips["features"], file["features"], atol=0.05)


def test_the_reset_schedule_then_one_long_run(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((3, 50, 3)).astype(np.float32))
    contract = open_model(models / "lmu.onnx").contract
    data = read(tmp_path / "x.npy", contract)
    positions = [position for position, _ in steps(contract, data, 400, runs=(4, 64))]
    assert positions[200:] == list(range(4096))  # never reset, over the ends of the sequences
    assert positions[:5] == [0, 1, 2, 3, 0] and max(positions[:200]) == 45  # cut where a sequence ends
    assert [p for p, _ in steps(contract, data, 100, runs=())] == list(range(100))


def test_observed_values_are_those_of_a_plain_run(models: Path, tmp_path: Path) -> None:
    from edgemem import load

    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    contract = open_model(models / "lmu.onnx").contract
    seen = observed(ir.load(models / "lmu.onnx"), contract, read(tmp_path / "x.npy", contract), ["y", "x"], 64, ())
    stream = load(models / "lmu.onnx").stream()
    y = np.stack([stream.step(row) for row in x])
    assert (seen["y"].low, seen["y"].high) == (y.min(), y.max())
    np.testing.assert_allclose(seen["x"].channel_max, np.abs(x).max(axis=0))


def test_numbers_that_stand_for_infinity_are_left_out_of_ranges() -> None:
    seen = Observed()
    seen.add(np.array([[1.0, -2.0], [-1e30, 5.0], [np.inf, 1.0]], np.float32), True)
    assert (seen.low, seen.high, seen.masked) == (-2.0, 1.0, True)


def test_calibrating_on_fresh_states_alone_is_worse(
    slow: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow average that is reset before every step never shows the range it lives in."""
    model, data = slow
    quantize(model, tmp_path / "carried.onnx", "w8a8", calibrate=data, smallest=8, steps=20)

    def one_step(*arguments: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        return ((0, inputs) for _, inputs in steps(*arguments, **options))

    monkeypatch.setattr(calibration, "steps", one_step)
    quantize(model, tmp_path / "fresh.onnx", "w8a8", calibrate=data, smallest=8, steps=20)
    carried, fresh = (output_error(tmp_path / f"{name}.onnx", model) for name in ("carried", "fresh"))
    assert carried < 0.05 and fresh > 10 * carried


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators_keep_the_body_and_may_cut_the_tail(name: str) -> None:
    values = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    values[:2] = 60.0, -40.0
    low, high = CALIBRATORS[name](values, float(values.min()), float(values.max()))
    assert -40.0 <= low < -2.0 and 2.0 < high <= 60.0
    if name in ("percentile", "entropy"):
        assert high < 30.0
    step = (high - low) / 255
    error = np.clip(np.rint(values / step) * step, low, high) - values
    assert np.mean(error**2) < 4.0
