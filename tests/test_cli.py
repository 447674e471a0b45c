"""The commands as a user runs them: results, exit codes, one-paragraph errors, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgemem import modelfile, onnxfile, runner
from edgemem.cli.main import COMMANDS
from edgemem.stream import Rows
from tests.command import EDGEMEM, ENVIRONMENT, lines, run


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    out, _ = run(command, "--help")
    assert f"edgemem {command}" in out.partition("Usage:")[2].partition("\n")[2]


def test_models_lists_what_scripts_rely_on() -> None:
    rows = json.loads(run("models", "--json")[0])
    names = {row["name"] for row in rows}
    assert {"rwkv4", "kws-lmuformer", "lm-rwkv4", "lm-memformer", "asr-folding"} <= names
    for row in rows:
        assert {"name", "family", "paper", "parameters", "state_bytes", "chunk_unit"} <= set(row)
        assert row["parameters"] > 0 and row["state_bytes"] > 0
    spotter = next(row for row in rows if row["name"] == "kws-lmuformer")
    assert spotter["parameters"] <= 150_000


def test_export_inspect_and_verify_agree(tmp_path: Path) -> None:
    file = tmp_path / "r.onnx"
    run("export", "rwkv4", "--set", "layers=2", "--set", "width=64", "--set", "vocab=64", "-o", file)
    facts = json.loads(run("inspect", file, "--json")[0])
    assert facts["weight_bytes"] == onnxfile.read(file).weight_bytes
    assert facts["state_bytes"] == 2 * 5 * 64 * 4  # two layers of five vectors
    products = 2 * (4 + 4 + 1 + 4) * 64 * 64 + 64 * 64  # time mixing, channel mixing, head
    assert facts["macs_per_step"] == products
    assert facts["contract"]["model"]["config"] == {"layers": 2, "width": 64, "vocab": 64, "ffn": 0, "tied": False}
    report = json.loads(run("verify", file, "--steps", 300, "--json")[0])
    assert report["ok"] is True
    for stage in report["stages"]:
        assert {
            "name",
            "reference",
            "steps",
            "max_abs_error",
            "max_rel_error",
            "tolerance",
            "drift_per_1000_steps",
        } <= set(stage)
        assert stage["max_abs_error"] <= stage["tolerance"]
    assert "rwkv4" in run("inspect", file)[0]


def test_a_spotter_hears_a_file_and_raw_samples(models: Path, tmp_path: Path) -> None:
    sound = (np.random.default_rng(0).normal(size=16000) * 3000).astype(np.int16)
    soundfile.write(tmp_path / "x.wav", sound, 16000)
    rows = lines(run("run", models / "k.onnx", "--input", tmp_path / "x.wav", "--json")[0])
    assert rows and all({"t_start", "t_end", "label", "score"} == set(row) for row in rows)
    assert rows[0]["t_start"] == 0.0 and all(row["t_start"] < row["t_end"] <= 1.0 for row in rows)
    assert lines(run("run", models / "k.onnx", "--input", "-", "--json", stdin=sound.tobytes())[0]) == rows
    every = lines(run("run", models / "k.onnx", "--input", tmp_path / "x.wav", "--json", "--rows")[0])
    assert len(every) == 49  # 98 windows of 25 ms in a second, two to a row
    run("run", models / "k.onnx", "--input", tmp_path / "x.wav")


def test_stereo_and_other_rates_are_converted(models: Path, tmp_path: Path) -> None:
    sound = np.random.default_rng(0).normal(size=(8000, 2)) * 0.1
    soundfile.write(tmp_path / "x.flac", sound, 8000)
    assert lines(run("run", models / "k.onnx", "--input", tmp_path / "x.flac", "--json")[0])


def test_a_language_model_writes_and_is_seeded(models: Path) -> None:
    arguments = ("run", models / "lm.onnx", "--text", "def ", "--generate", 20, "--temperature", 1.0, "--top-k", 9)
    first, second = run(*arguments, "--seed", 1), run(*arguments, "--seed", 1)
    assert first == second and first[0].startswith("def ")
    assert run(*arguments, "--seed", 2) != first
    greedy = lines(run("run", models / "lm.onnx", "--text", "def ", "--generate", 5, "--json")[0])
    assert len(greedy) == 5 and all(set(row) == {"token", "text"} for row in greedy)


def test_a_state_file_carries_a_text_on(models: Path, tmp_path: Path) -> None:
    state = tmp_path / "s.safetensors"
    whole = lines(run("run", models / "lm.onnx", "--text", "abcdef", "--json", "--rows")[0])
    parts = []
    for text in ("abc", "def"):
        parts += lines(run("run", models / "lm.onnx", "--text", text, "--json", "--rows", "--state", state)[0])
    assert [row["values"] for row in parts] == [row["values"] for row in whole]
    assert [row["t_start"] for row in parts] == list(range(6))


def test_arrays_and_token_numbers_stream(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((7, 3), np.float32))
    rows = lines(run("run", models / "lmu.onnx", "--input", tmp_path / "x.npy", "--json")[0])
    chunked = lines(run("run", models / "lmu4.onnx", "--input", tmp_path / "x.npy", "--json")[0])
    np.testing.assert_allclose([r["values"] for r in rows], [r["values"] for r in chunked], rtol=1e-4, atol=1e-5)
    found = lines(run("run", models / "lm.onnx", "--input", "-", "--json", stdin=b"hello")[0])
    assert [row["token"] for row in found] == list(b"ello")
    logits = [row["values"] for row in lines(run("run", models / "lm.onnx", "--text", "hello", "--json", "--rows")[0])]
    shares = [np.exp(row[byte]) / np.exp(row).sum() for row, byte in zip(logits, b"ello", strict=False)]
    np.testing.assert_allclose([row["bits"] for row in found], -np.log2(shares), atol=1e-3)  # printed in four places


BAD = {
    "missing": (b"", "nowhere.onnx", "does not exist"),
    "text": (b"hello, this is not a model", "m.onnx", "not a whole ONNX file"),
    "empty": (b"", "m.onnx", "not a whole ONNX file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_file_is_one_paragraph_and_exit_2(name: str, tmp_path: Path) -> None:
    content, file, message = BAD[name]
    if file == "m.onnx":
        (tmp_path / file).write_bytes(content)
    for command in (("inspect",), ("verify",), ("run", "--text", "x")):
        _, err = run(command[0], tmp_path / file, *command[1:], code=2)
        assert message in err and len(err.strip().splitlines()) == 1


def test_a_truncated_or_bare_or_newer_model_is_refused(models: Path, tmp_path: Path) -> None:
    data = (models / "lmu.onnx").read_bytes()
    (tmp_path / "t.onnx").write_bytes(data[: len(data) // 2])
    assert "not a whole ONNX file" in run("inspect", tmp_path / "t.onnx", code=2)[1]
    import onnx

    model = onnx.load(models / "lmu.onnx")
    text = model.metadata_props[0].value
    model.metadata_props[0].value = text.replace('"version":1', '"version":2')
    onnx.save(model, tmp_path / "n.onnx")
    assert "version: 2 is newer" in run("inspect", tmp_path / "n.onnx", code=2)[1]
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "b.onnx")
    assert "without a contract" in run("inspect", tmp_path / "b.onnx", code=2)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "rwkv", "-o", "x.onnx"), "unknown model 'rwkv' (did you mean 'rwkv4'?)"),
        (("export", "rwkv4", "--set", "layer=2", "-o", "x.onnx"), "no setting 'layer' (did you mean 'layers'?)"),
        (("export", "rwkv4", "--set", "layers=two", "-o", "x.onnx"), "layers must be a whole number, got 'two'"),
        (("export", "rwkv4", "--set", "layers=0", "-o", "x.onnx"), "layers must be at least 1, got 0"),
        (("export", "rwkv4", "--set", "layers", "-o", "x.onnx"), "--set needs KEY=VALUE, got 'layers'"),
        (("export", "rwkv4", "--checkpoint", "none.pth", "-o", "x.onnx"), "none.pth does not exist"),
        (("export", "rwkv4", "--set", "width=1000000000", "-o", "x.onnx"), "rwkv4 cannot be made with"),
        (("exprt",), "did you mean 'export'?"),
    ],
)
def test_a_wrong_word_is_named_with_the_nearest(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    _, err = run(*arguments, code=2, cwd=tmp_path)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("x")
    _, err = run("export", "lmu", "-o", "afile/z.onnx", code=2, cwd=tmp_path)
    assert err == "edgemem: afile/z.onnx cannot be written: afile is a file, not a folder; give another place\n"


def test_random_weights_of_a_model_that_ships_trained_are_said(tmp_path: Path) -> None:
    _, err = run("export", "kws-lmuformer", "--set", "layers=1", "-o", tmp_path / "k.onnx")
    assert "warning: kws-lmuformer ships trained, but not at these settings" in err
    assert "random, seed 0" in run("inspect", tmp_path / "k.onnx")[0]


@pytest.mark.parametrize("form", [["--json"], ["--rows"]])
def test_a_reader_that_leaves_early_is_no_error(models: Path, form: list[str]) -> None:
    process = subprocess.Popen(
        [*EDGEMEM, "run", str(models / "lm.onnx"), "--text", "a" * 5000, *form],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=120) == 0


def test_what_is_not_installed_is_named_with_its_command(tmp_path: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None; from edgemem.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", hidden, "models"], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 2
    assert b"torch is not installed; install it with: pip install 'edgemem[export]'" in done.stderr


def test_text_needs_a_model_of_tokens(models: Path) -> None:
    assert "takes features, not text" in run("run", models / "k.onnx", "--text", "yes", code=2)[1]


def test_bad_sound_is_named(models: Path, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF no sound at all")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    for name in ("x.wav", "empty.wav", "none.wav"):
        _, err = run("run", models / "k.onnx", "--input", tmp_path / name, code=2)
        assert name in err
    assert "at least one sample was wanted" in run("run", models / "k.onnx", "--input", "-", code=2)[1]
    np.save(tmp_path / "nan.npy", np.where(np.arange(900) == 700, np.nan, np.zeros(900)))
    _, err = run("run", models / "k.onnx", "--input", tmp_path / "nan.npy", code=2)
    assert "nan.npy: finite samples were wanted, NaN or infinity came at sample 700" in err


def test_half_a_sample_is_refused_after_the_last_row(models: Path) -> None:
    out, err = run("run", models / "k.onnx", "--input", "-", "--json", stdin=b"\0" * 32001, code=2)
    assert lines(out)[-1]["t_end"] > 0.9 and "an odd number of bytes came" in err


def test_a_state_that_cannot_be_saved_is_refused_first(models: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("x")
    out, err = run("run", models / "lm.onnx", "--text", "ab", "--state", tmp_path / "afile" / "s", code=2)
    assert out == "" and "afile is a file, not a folder" in err
    out, err = run("run", models / "lm.onnx", "--text", "ab", "--state", tmp_path / "afile", code=2)
    assert out == "" and f"snapshot {tmp_path / 'afile'}: not a snapshot file" in err


def test_a_spotter_names_what_leads_with_its_own_score() -> None:
    labels = ("yes", "no", "silence", "unknown")
    rows = np.log([[0.1, 0.1, 0.7, 0.1], [0.6, 0.2, 0.1, 0.1], *[[0.97, 0.01, 0.01, 0.01]] * 9, [0.1, 0.1, 0.1, 0.7]])
    ends = np.arange(1.0, len(rows) + 1)
    found = list(runner.spans([Rows(rows, 0, ends - 1, ends)], labels))
    assert [row["label"] for row in found] == ["silence", "yes", "unknown"]
    assert [row["score"] for row in found] == [0.7, round((0.6 + 9 * 0.97) / 10, 4), 0.7]


def test_numbers_go_on_after_numbers(tmp_path: Path) -> None:
    run("export", "rwkv4", "--set", "layers=1", "--set", "width=8", "--set", "vocab=16", "-o", tmp_path / "n.onnx")
    out, _ = run("run", tmp_path / "n.onnx", "--text", "1 2", "--generate", 3)
    assert out.startswith("1 2 ") and len(out.split()) == 5
    for text, message in (("a b", "whole numbers"), ("1 99", "values from 0 to 15 were wanted, 99 came at frame 1")):
        out, err = run("run", tmp_path / "n.onnx", "--text", text, "--generate", 3, code=2)
        assert out == "" and message in err


def test_tokens_out_of_range_and_wrong_shapes_exit_2(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([3, 900]))
    assert "0 to 255 were wanted, 900 came" in run("run", models / "lm.onnx", "--input", tmp_path / "t.npy", code=2)[1]
    np.save(tmp_path / "f.npy", np.ones((4, 9), np.float32))
    assert (
        "f.npy: input x: [time, 3] was wanted"
        in run("run", models / "lmu.onnx", "--input", tmp_path / "f.npy", code=2)[1]
    )
    np.save(tmp_path / "s.npy", np.array([["a"]]))
    assert "[time, 3] was wanted" in run("run", models / "lmu.onnx", "--input", tmp_path / "s.npy", code=2)[1]
    np.save(tmp_path / "o.npy", np.array([{"a": 1}]), allow_pickle=True)
    assert "not a readable .npy" in run("run", models / "lmu.onnx", "--input", tmp_path / "o.npy", code=2)[1]


def test_a_failed_check_exits_1_and_prints_json(models: Path, tmp_path: Path) -> None:
    model = modelfile.open_model(models / "lmu.onnx")
    name = next(n for n in model.contract.model.tensors if n.endswith("bias"))
    data = bytearray((models / "lmu.onnx").read_bytes())
    place = data.find(bytes(model.onnx.initializers[name].data))
    data[place : place + 4] = np.float32(9.0).tobytes()
    (tmp_path / "w.onnx").write_bytes(data)
    out, err = run("verify", tmp_path / "w.onnx", "--steps", 8, "--json", code=1)
    assert json.loads(out)["ok"] is False and name in err


def test_an_option_says_what_it_takes() -> None:
    for option, text, message in (
        ("--init", "h", "--init needs IN=FILE, got 'h'"),
        ("--range", "h0=1,-1", "--range h0=1,-1: 1 is above -1; give the lower one first: h0=-1,1"),
    ):
        assert message in run("adopt", "f.onnx", "-o", "m.onnx", option, text, code=2)[1]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_sigterm_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Stopped in the middle of an export, while its file lies in a hidden folder."""
    command = [*EDGEMEM, "export", "lmu", "-o", str(tmp_path / "new" / "m.onnx")]
    code = (
        "import os, signal, sys\nfrom edgemem.export import exporter\n"
        "exporter.trial = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"sys.argv = {['edgemem', *command[3:]]!r}\nfrom edgemem.__main__ import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, timeout=120, text=True)
    assert done.returncode == 143, done.stderr
    assert done.stderr.endswith("edgemem: stopped\n") and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_stops_cleanly_with_130(models: Path, tmp_path: Path) -> None:
    state = tmp_path / "s.safetensors"
    command = [*EDGEMEM, "run", str(models / "k.onnx"), "--input", "-", "--json", "--rows", "--state", str(state)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(np.zeros(16000, np.int16).tobytes())
    process.stdin.flush()
    process.stdout.readline()  # it streams by now
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Traceback" not in err and b"stopped" in err
    assert list(tmp_path.iterdir()) == [state]
    _, err_text = run("run", models / "k.onnx", "--input", "-", "--state", state, stdin=b"\0" * 3200)
    assert err_text == ""
