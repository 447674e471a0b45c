"""Silero VAD, which others made, published and wrap: adopted, compiled and streamed, against its own wrapper."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.cli.main import cli
from edgemem.errors import ContractError, EdgememError, ModelFileError, UsageError
from edgemem.export.adopt import Request, adopt
from edgemem.export.adopt.request import RECIPE
from edgemem.verify import verify

DEMO = Path(edgemem.__file__).parent / "tasks" / "data" / "demo.wav"
ROW, CONTEXT, RATE = 512, 64, 16_000
# Probabilities: float32 through five convolutions and an LSTM, summed in another order by every engine.
CLOSE = 2e-5


def silero(name: str = "silero_vad.onnx") -> Path:
    """A file of the installed package `silero-vad`."""
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("silero-vad is not installed: pip install silero-vad")
    return Path(found.origin).parent / "data" / name


@pytest.fixture(scope="module")
def vad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, adopted by the command with no options at all."""
    path = tmp_path_factory.mktemp("vad") / "vad.onnx"
    result = CliRunner().invoke(cli, ["adopt", str(silero()), "-o", str(path)])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def program(vad: Path) -> Any:
    pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
    from tests.aot_programs import compiled

    compiled(vad, vad.parent / "program")
    return vad.parent / "program"


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    """Whole rows of the demo's speech."""
    from edgemem.audio import read_audio

    samples = read_audio(DEMO, RATE)
    return samples[: len(samples) // ROW * ROW]


@pytest.fixture(scope="module")
def wanted(sound: np.ndarray) -> np.ndarray:
    """What the package's own wrapper says of every row."""
    import torch
    from silero_vad.utils_vad import OnnxWrapper

    model = OnnxWrapper(str(silero()), force_onnx_cpu=True)
    return np.array([float(model(torch.from_numpy(row), RATE)) for row in sound.reshape(-1, ROW)])


def test_the_contract_says_what_the_wrapper_carries(vad: Path) -> None:
    contract = edgemem.load(vad).contract
    assert [(s.name, s.shape, s.role) for s in contract.states] == [
        ("state", (1, 2, 128), "recurrent"),
        ("input_tail", (1, 1, CONTEXT), "tail"),
    ]
    assert contract.inputs[0].shape == (1, 1, ROW) and contract.inputs[0].role == "samples"
    assert contract.seconds_per_frame == ROW / RATE
    assert contract.model.source.kind == "foreign"


def test_speech_streams_as_in_the_wrapper(vad: Path, sound: np.ndarray, wanted: np.ndarray) -> None:
    stream = edgemem.load(vad).stream()
    pieces = np.split(sound, [1, 700, 5000, 5001])
    rows = [stream.push_samples(piece) for piece in pieces]
    np.testing.assert_allclose(np.concatenate([r.values[:, 0] for r in rows]), wanted, atol=CLOSE)
    assert wanted.max() > 0.9 and wanted.min() < 0.1, "the demo has speech and silence, and the model hears both"
    assert rows[-1].t_end[-1] == len(sound) / RATE


def test_the_audio_context_matters(vad: Path, sound: np.ndarray, wanted: np.ndarray) -> None:
    """Without the tail the probabilities are others: the comparison above can fail."""
    stream = edgemem.load(vad).stream()
    found = []
    for row in sound.reshape(-1, ROW):
        stream.set_state({**stream.state, "input_tail": np.zeros((1, 1, CONTEXT), np.float32)})
        found.append(float(stream.step(row[None, None]).item()))
    assert np.abs(np.array(found) - wanted).max() > 100 * CLOSE


@pytest.mark.parametrize("engine", ["ort", "aot"])
def test_a_wav_streams_from_the_command_line(
    vad: Path, request: pytest.FixtureRequest, engine: str, wanted: np.ndarray
) -> None:
    file = vad if engine == "ort" else request.getfixturevalue("program")
    result = CliRunner().invoke(cli, ["run", str(file), "--input", str(DEMO), "--json"])
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in result.stdout.splitlines()]
    np.testing.assert_allclose([row["values"][0] for row in found], wanted, atol=CLOSE)
    assert found[1]["t_start"] == ROW / RATE


def test_the_static_program_takes_raw_pcm(program: Path, sound: np.ndarray, wanted: np.ndarray) -> None:
    pcm = np.rint(sound * 32768).astype("<i2").tobytes()
    done = subprocess.run([program / "edgemem-run"], input=pcm + b"\0\0" * 3, capture_output=True, check=True)
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32), wanted, atol=CLOSE)


def test_verify_holds_without_and_with_the_foreign_file(vad: Path, program: Path) -> None:
    candidates = {"aot": edgemem.load(program)}
    alone = verify(vad, 64, programs=candidates)
    assert alone.ok and {s.name: s.reference for s in alone.stages}["adopt"] == "foreign (recorded)"
    beside = verify(vad, 64, reference=silero(), programs=candidates)
    names = {stage.name: stage.reference for stage in beside.stages}
    assert beside.ok and names["ort"] == names["aot"] == "foreign" and "adopt" not in names


def test_verify_refuses_another_foreign_file(vad: Path) -> None:
    with pytest.raises(ContractError, match=r"is not the file that .* was adopted from: SHA-256"):
        verify(vad, 8, reference=silero("silero_vad_16k_op15.onnx"))


@pytest.mark.parametrize(
    ("name", "rate"),
    [("silero_vad_16k_op15.onnx", RATE), ("silero_vad_op18_ifless.onnx", RATE), ("silero_vad_half.onnx", RATE),
     ("silero_vad_openvino_16k.onnx", RATE), ("silero_vad.onnx", 8000)],
)  # fmt: skip
def test_its_other_files_and_rate(name: str, rate: int, tmp_path: Path) -> None:
    """Adoption compares each with its foreign file; what it heard is the same."""
    options = [] if rate == RATE else ["--sound", str(rate)]
    result = CliRunner().invoke(cli, ["adopt", str(silero(name)), "-o", str(tmp_path / "m.onnx"), *options])
    assert result.exit_code == 0, result.output
    contract = edgemem.load(tmp_path / "m.onnx").contract
    row = ROW * rate // RATE
    assert contract.inputs[0].shape == (1, 1, row) and contract.states[1].shape == (1, 1, row // 8)
    assert contract.seconds_per_frame == row / rate
    assert contract.inputs[0].frontend is not None and contract.inputs[0].frontend["sample_rate"] == rate


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--set", "sr=44100"], "--set sr=44100: .*at 16 kHz takes 16000 and .*at 8 kHz takes 8000; .*by --sound"),
        (["--sound", "8000", "--set", "sr=16000"], "--sound 8000: .*takes 16000 .*takes 8000"),
        (["--sound", "8000", "--set", "input.1=576"], "--s.*takes 576|--sound 8000: .*takes 16000"),
        (["--tail", "input=63"], "--tail input=63: .*takes 64 and .*takes 32"),
        (["--layout", "input=FB"], "--layout input=FB: .*takes BF; leave the option out, or say --no-recipe"),
        (["--state", "state="], "--state state=: .*takes stateN"),
        (["--chunk", "4"], "--chunk 4: .*is run without"),
        (["--streaming"], "--streaming: .*is run without"),
        (["--seconds", "0.5"], "--seconds 0.5: .*is run without"),
        (["--drop", "output"], "--drop output: .*is run without"),
        (["--sound", "16000", "--seconds", "1"], "--seconds 1 with --sound 16000: .*leave --seconds out"),
    ],
)
def test_options_against_the_known_recipe_are_refused(options: list[str], wanted: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["adopt", str(silero()), "-o", str(tmp_path / "m.onnx"), *options])
    assert isinstance(result.exception, UsageError), result.output
    assert re.search(wanted, str(result.exception)), result.exception
    assert not list(tmp_path.iterdir())


def test_a_file_of_one_rate_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"--sound 8000: the file is known, and Silero VAD at 16 kHz takes 16000; leave"
    ):
        adopt(silero("silero_vad_half.onnx"), tmp_path / "m.onnx", Request(sound=8000))


def test_what_the_recipe_decided_is_said_to_be_the_recipes(tmp_path: Path) -> None:
    """And what the user said, the user's: streams are free, and count for input and state."""
    found = adopt(silero(), tmp_path / "m.onnx", Request(sets={"input.0": "2"}, sound=RATE), steps=8)
    rows = {d.what: (d.value, d.reason) for d in found.decisions}
    assert rows["axis input.0"] == ("2", "--set") and rows["axis input.1"] == ("576", RECIPE)
    assert rows["axis state.1"] == ("2", RECIPE) and rows["input sr"] == ("always 16000", RECIPE)
    assert rows["input input"] == ("axes BF [2, 576]", RECIPE)
    assert rows["state state"] == ("-> stateN [2, 2, 128]", RECIPE)
    assert rows["tail of input"] == ("64 of its last, before the new ones", RECIPE)
    assert rows["step"] == ("1 frame of 512 samples at 16000 Hz, 32 ms", "--sound")
    assert found.contract.states[0].shape == (2, 2, 128)


def test_steps_that_the_foreign_file_refuses(tmp_path: Path) -> None:
    sizes = {"input.0": 1, "state.1": 1, "sr": RATE, "input.1": 65}
    options = ["--no-recipe", "--tail", "input=64", "--layout", "input=BF", "--layout", "state=FBF"]
    options += [text for name, size in sizes.items() for text in ("--set", f"{name}={size}")]
    result = CliRunner().invoke(cli, ["adopt", str(silero()), "-o", str(tmp_path / "m.onnx"), *options])
    assert isinstance(result.exception, EdgememError), result.output
    assert not list(tmp_path.iterdir())


def test_snapshots_hold_waiting_samples(vad: Path, sound: np.ndarray) -> None:
    program = edgemem.load(vad)
    first, second = program.stream(), program.stream()
    first.push_samples(sound[:1000])
    second.restore(first.snapshot())
    here, there = first.push_samples(sound[1000:4000]), second.push_samples(sound[1000:4000])
    assert len(here) and here.values.tobytes() == there.values.tobytes()


def test_quantized_like_any_other(vad: Path, sound: np.ndarray, wanted: np.ndarray, tmp_path: Path) -> None:
    """In integers too: calibrated by packaged speech, it hears what the float model does.

    Scales that are fixed lose quiet sound, of which a spectrum has much; that is said where it is too much.
    """
    from edgemem.quant import quantize
    from edgemem.quant.quantizer import MOST_ERROR

    for scheme, close in (("w8", 0.01), ("w8a8-dynamic", 0.01), ("w8a8", 0.04)):  # of probabilities, in the mean
        done = quantize(vad, tmp_path / "q.onnx", scheme, steps=64)
        error = done.output_error or 0.0
        assert error < 0.2 and any("w8a8-dynamic" in text for text in done.warnings) == (error > MOST_ERROR)
        report = verify(tmp_path / "q.onnx", 64, reference=vad)
        stage = next(stage for stage in report.stages if stage.name == done.certificate.stage)
        assert report.ok and stage.max_rel_error <= (done.relative_tolerance or done.rms_tolerance or 0.0)
        heard = edgemem.load(tmp_path / "q.onnx").stream().push_samples(sound).values[:, 0]
        assert np.abs(heard - wanted).mean() < close
        assert ((heard > 0.5) == (wanted > 0.5)).mean() > 0.95


def test_a_reference_without_contract_is_told_from_the_parent(vad: Path, tmp_path: Path) -> None:
    from edgemem.quant import quantize

    quantize(vad, tmp_path / "q.onnx", "f16", steps=4)
    with pytest.raises(ContractError, match=r"silero_vad\.onnx is ONNX without a contract, .*verify FLOAT\.onnx --ref"):
        verify(tmp_path / "q.onnx", 4, reference=silero())
    with pytest.raises(
        ModelFileError, match=r"missing\.onnx is no file; give the ONNX file that .*vad\.onnx was adopted"
    ):
        verify(vad, 4, reference=tmp_path / "missing.onnx")
