"""The C front end against the Python one, over sounds of every loudness and any cut, under sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.audio import FrontEnd
from edgemem.errors import CompileError, ContractError
from edgemem.runtimes.aot import emit_frontend
from tests.front_ends import FRONT_ENDS

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed: apt install gcc")
Array = np.ndarray[Any, np.dtype[Any]]

# Stated in edgemem_frontend.h: float32 against float64. A sum over all mels, MFCC 0, has sqrt(mels) of the error.
LOG_MEL_BOUND, MFCC_BOUND = 1e-4, 5e-4
# Stated in edgemem_fixed.h: a spectrum keeps 20 bits or more beside the loudest sound, of a long transform.
FIXED_LOG_MEL_BOUND, FIXED_MFCC_BOUND = 5e-3, 1.5e-2
FORMS = ("float", "fixed")

MAIN = """\
#include "model_frontend.h"
#include <stdio.h>
static float room[MODEL_FRONTEND_FLOATS], row[MODEL_FRONTEND_WIDTH];
int main(void)
{
    static int16_t block[BLOCK];
    edgemem_frontend_stream sound;
    size_t count;
    edgemem_frontend_reset(&model_frontend, &sound, room);
    while ((count = fread(block, sizeof *block, BLOCK, stdin)) > 0) {
        const int16_t *samples = block;
        while (edgemem_frontend_push(&model_frontend, &sound, &samples, &count, row)) {
            fwrite(row, sizeof *row, MODEL_FRONTEND_WIDTH, stdout);
        }
    }
    return 0;
}
"""


def built(f: FrontEnd, folder: Path, block: int, form: str, *flags: str) -> Path:
    """A program that turns PCM on stdin into rows on stdout, `block` samples at a time."""
    fixed = form == "fixed"
    sources = emit_frontend.FIXED_SOURCES if fixed else emit_frontend.SOURCES
    for name in sources:
        (folder / name).write_text(emit_frontend.source(name))
    header = emit_frontend.fixed_header if fixed else emit_frontend.header
    (folder / "model_frontend.h").write_text(header("model", f))
    text = MAIN.replace("edgemem_frontend", "edgemem_fixed").replace("&model_frontend", "&model_fixed")
    text = text.replace(
        "float room[MODEL_FRONTEND_FLOATS], row", "edgemem_fixed_bin room[MODEL_FRONTEND_BINS];\nstatic float row"
    )
    (folder / "main.c").write_text(text if fixed else MAIN)
    subprocess.run(
        ["gcc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1", f"-DBLOCK={block}", *flags,
         "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-o", "rows", "main.c", sources[1]],
        cwd=folder, check=True,
    )  # fmt: skip
    return folder / "rows"


def pcm_of(samples: int, seed: int) -> Array:
    """Noise and tones from the last bit to full scale, and silence."""
    random = np.random.default_rng(seed)
    loudness = 10.0 ** random.uniform(-5, 0, samples // 500 + 1).repeat(500)[:samples]
    tones = np.sin(np.arange(samples) * random.uniform(0.01, 3.0)) + 0.3 * random.uniform(-1, 1, samples)
    sound = np.clip(tones * loudness, -1, 1 - 2**-15)
    sound[samples // 3 : samples // 2] = 0.0
    return np.round(sound * 32767).astype("<i2")


def check(f: FrontEnd, folder: Path, pcm: Array, block: int, form: str, *flags: str) -> bytes:
    """Compare with the Python front end; the rows as they came."""
    done = subprocess.run([built(f, folder, block, form, *flags)], input=pcm.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    came = np.frombuffer(done.stdout, np.float32).reshape(-1, f.width)
    wanted = f.features(pcm.astype(np.float32) / np.float32(32768))
    assert came.shape == wanted.shape
    bounds = (LOG_MEL_BOUND, MFCC_BOUND) if form == "float" else (FIXED_LOG_MEL_BOUND, FIXED_MFCC_BOUND)
    assert np.abs(came - wanted).max() <= bounds[f.coefficients is not None] * abs(f.scale)
    return done.stdout


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FRONT_ENDS)
def test_rows_are_those_of_the_python_front_end(name: str, form: str, tmp_path: Path) -> None:
    check(FRONT_ENDS[name], tmp_path, pcm_of(48_000, seed=3), 333, form)


def test_fixed_point_overflows_nowhere_and_is_the_same_without_long_products(tmp_path: Path) -> None:
    """Full-scale tones, squares, impulses, the least noise and silence; the sanitizer sees what overflows."""
    n, f = np.arange(16_000), FRONT_ENDS["log_mel"]
    sounds = (
        32767 * np.sin(2 * np.pi * 1000.3 / 16_000 * n),
        np.where(np.sin(0.05 * n) > 0, 32767, -32768),
        np.where(n % 977 == 0, -32768, 0),
        np.random.default_rng(0).normal(0, 1.5, len(n)),
        np.full(len(n), -32768),
        np.zeros(len(n)),
    )
    pcm = np.concatenate([np.round(sound) for sound in sounds]).astype("<i2")
    assert check(f, tmp_path, pcm, 777, "fixed") == check(f, tmp_path, pcm, 777, "fixed", "-D__ARM_ARCH_6M__")


@pytest.mark.parametrize("coefficients", [None, 13])
def test_fixed_point_hears_what_is_faint_beside_what_is_loud(coefficients: int | None, tmp_path: Path) -> None:
    """The longest transform of sound at 48 kHz: noise of the last bits beside a full-scale tone, and on an offset."""
    kind = {"kind": "log_mel"} if coefficients is None else {"kind": "mfcc", "coefficients": coefficients}
    f = FrontEnd(sample_rate=48_000, window_samples=emit_frontend.LONGEST_FIXED_FFT, hop_samples=1024,
                 fft=emit_frontend.LONGEST_FIXED_FFT, mels=80, low_hz=0.0, high_hz=24_000.0, **kind)  # fmt: skip
    n, noise = np.arange(30_000), np.random.default_rng(2).normal(0, 1.5, 30_000)
    sounds = (31_000 * np.sin(2 * np.pi * 61 / f.fft * n) + noise, 30_000 + noise, noise)
    pcm = np.concatenate([np.clip(np.round(sound), -32768, 32767) for sound in sounds]).astype("<i2")
    check(f, tmp_path, pcm, 512, "fixed", "-O2")


def test_a_transform_that_fixed_point_is_too_narrow_for_is_refused() -> None:
    f = FrontEnd(window_samples=8192, hop_samples=4096, fft=8192)
    with pytest.raises(CompileError, match=r"an FFT of 8192 was asked for, fixed point .* up to 4096"):
        emit_frontend.fixed_header("model", f)


@settings(max_examples=8, deadline=None)
@given(
    fft=st.sampled_from([2, 4, 16, 256, 2048]),
    window=st.floats(0.3, 1),
    hop=st.floats(0.2, 1),
    mels=st.integers(1, 30),
    stack=st.integers(1, 3),
    coefficients=st.none() | st.integers(1, 8),
    form=st.sampled_from(FORMS),
    block=st.integers(1, 2000),
    seed=st.integers(0, 99),
)
def test_any_front_end_has_its_twin(
    tmp_path_factory: pytest.TempPathFactory, fft: int, window: float, hop: float, mels: int, stack: int,
    coefficients: int | None, form: str, block: int, seed: int,
) -> None:  # fmt: skip
    samples = max(1, int(window * fft))
    kind = {"kind": "log_mel"} if coefficients is None else {"kind": "mfcc", "coefficients": min(coefficients, mels)}
    try:
        f = FrontEnd(
            window_samples=samples, hop_samples=max(1, int(hop * samples)), fft=fft, mels=mels, stack=stack,
            low_hz=0.0, high_hz=8000.0, **kind,
        )  # fmt: skip
    except ContractError:  # a filter without a bin: no such front end
        return
    check(f, tmp_path_factory.mktemp("frontend"), pcm_of(6 * samples * stack, seed), block, form)


@pytest.mark.parametrize("name", ["kws-lmuformer", "asr-folding"])
def test_edgemem_run_hears_what_a_stream_hears(name: str, tmp_path: Path) -> None:
    """Raw PCM to the rows of real frames: those of `push_samples` and `flush`, look-ahead and a short end included."""
    from tests.aot_programs import compiled, model_file

    compiled(model_file(name, tmp_path), tmp_path / "program")
    pcm = pcm_of(16_000 + 777, seed=5)
    stream = edgemem.load(tmp_path / "program").stream()
    rows = [stream.push_samples(pcm.astype(np.float32) / np.float32(32768)), stream.flush()]
    wanted = np.concatenate([r.values for r in rows])
    command = [tmp_path / "program" / "edgemem-run"]
    done = subprocess.run(command, input=pcm.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    came = np.frombuffer(done.stdout, np.float32).reshape(wanted.shape)
    np.testing.assert_allclose(came, wanted, rtol=1e-3, atol=1e-3)  # features of float32 arithmetic
    features = stream.contract.inputs[0]
    chunk = np.zeros(features.shape, np.float32).tobytes() + (b"" if len(stream.contract.inputs) == 1 else bytes(8))
    done = subprocess.run([*command, "--features"], input=chunk, capture_output=True)
    assert done.returncode == 0 and len(done.stdout) == np.prod(stream.contract.outputs[0].shape) * 4
    done = subprocess.run(command, input=pcm.tobytes()[:-1], capture_output=True)
    assert done.returncode == 2 and b"an odd number of bytes came" in done.stderr
