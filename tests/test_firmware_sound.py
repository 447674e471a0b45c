"""The streaming example: samples from flash through ring, front end, model and detector, beside Python's stream."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemem.boards import board
from edgemem.runner import softmax
from edgemem.runtimes.firmware import build
from edgemem.runtimes.firmware.emulator import Session, command_of
from edgemem.tasks.kws import Detector
from tests.firmware import manifest, needs

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
# FPU and the front end in float32; without one, in fixed point: with and without products of 64 bits.
FLOAT, FIXED = ("mps2_an386", "mps2_an500", "riscv32_virt"), ("mps2_an385", "microbit")
SAID = re.compile(r"(\d+\.\d\d) s (\w+) ([01]\.\d\d)")
LOST = re.compile(r"too slow: (\d+) samples were lost")
# Features that differ by a rounding may fall on either side of a step of int8 in the first product, and what follows
# remembers that: of the logits' range.
ROWS_BOUND = 0.02
A_ROW = 0.03  # seconds: a score at the threshold may reach it a row earlier or later; hundredths are cut off


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The spotter that ships for microcontrollers, in integers."""
    from edgemem.export import export_model
    from edgemem.quant import quantize

    folder = tmp_path_factory.mktemp("tiny")
    export_model("kws-tiny", folder / "t.onnx")
    quantize(folder / "t.onnx", folder / "t8.onnx", "w8a8", smallest=64, steps=64)
    return folder / "t8.onnx"


@pytest.fixture(scope="module")
def heard(tiny: Path) -> tuple[Any, list[Any]]:
    """Rows of logits of the packaged words, and what Python detects in them."""
    from edgemem.runtimes.firmware.sound import clip
    from edgemem.runtimes.integer.reference import IntegerProgram

    stream = IntegerProgram(tiny).stream()
    samples = clip(stream.sample_rate).astype(np.float32) / np.float32(32768)
    pieces = [stream.push_samples(samples), stream.flush()]
    values = np.concatenate([rows.values for rows in pieces])
    times = np.concatenate([rows.t_end for rows in pieces])
    labels = stream.contract.outputs[0].labels
    assert labels is not None
    return values, Detector(labels).push(softmax(values), times)


@pytest.mark.parametrize("on", [*FLOAT, *FIXED])
def test_firmware_hears_what_a_stream_hears(tiny: Path, heard: tuple[Any, list[Any]], tmp_path: Path, on: str) -> None:
    from edgemem.runtimes.aot.compiler import compile_model

    needs(on)
    rows, detections = heard
    compile_model(tiny, board(on), tmp_path / "fw", name="model")
    facts = manifest(tmp_path / "fw")
    assert facts["integer"]["step"] and facts["sound"]["fixed"] == (on in FIXED)
    build.make(tmp_path / "fw", "clip.elf", "EXTRA=-Werror")
    said = [SAID.fullmatch(line) for line in lines(on, tmp_path / "fw" / "clip.elf", "end")]
    came = [(match[1], match[2], float(match[3])) for match in said if match is not None]
    assert [label for _, label, _ in came] == [d.label for d in detections] and len(came) >= 2
    for (time, _, score), wanted in zip(came, detections, strict=True):
        assert abs(float(time) - wanted.time) <= A_ROW and abs(score - wanted.score) < 0.05
    (tmp_path / "fw" / "examples" / "clip.c").write_text((Path(__file__).parent / "firmware_c" / "rows.c").read_text())
    build.make(tmp_path / "fw", "clip.elf", "EXTRA=-Werror")
    session = Session(command_of(board(on), tmp_path / "fw" / "clip.elf"))
    while session.line() != "rows":
        pass
    given = np.frombuffer(session.receive(rows.nbytes), "<f4").reshape(rows.shape)
    session.close()
    assert np.abs(given - rows).max() <= ROWS_BOUND * np.ptp(rows)


@pytest.mark.parametrize("on", ["mps2_an386", "riscv32_virt"])
def test_an_interrupt_brings_samples_as_a_microphone_would(tiny: Path, tmp_path: Path, on: str) -> None:
    """The same words by the timer's interrupt at the pace of real time; too fast for the core, samples are counted."""
    from edgemem.runtimes.aot.compiler import compile_model

    folder = tmp_path / "fw"
    needs(on)
    compile_model(tiny, board(on), folder, name="model")
    build.make(folder, "clip.elf", "microphone.elf", "EXTRA=-Werror")
    wanted = lines(on, folder / "clip.elf", "end")
    came = lines(on, folder / "microphone.elf", "end", counted=True)
    assert came == wanted and len(came) >= 4
    build.make(folder, "-B", "microphone.elf", "EXTRA=-Werror -DMICROPHONE_SPEED=2000u")
    session, said = Session(command_of(board(on), folder / "microphone.elf", counted=True)), [""]
    while said[-1] != "end":
        said.append(session.line())
    session.close()
    lost = [int(match[1]) for match in map(LOST.fullmatch, said) if match is not None]
    assert lost == sorted(lost) and 0 < lost[-1] < (folder / "examples" / "clip.bin").stat().st_size // 2


def test_the_driver_of_a_microphone_is_in_the_vector_table(tiny: Path, tmp_path: Path) -> None:
    """nRF52840: built, not run. Interrupt 29 is the PDM's; without a driver, all of them stop the core."""
    from edgemem.runtimes.aot.compiler import compile_model
    from edgemem.runtimes.firmware import elf

    needs("nrf52840_dk")
    compile_model(tiny, board("nrf52840_dk"), tmp_path / "fw", name="model")
    build.make(tmp_path / "fw", "microphone.elf", "EXTRA=-Werror")
    for image, wanted in (("microphone.elf", "irq_29"), ("firmware.elf", "fault")):
        read = elf.read(tmp_path / "fw" / image)
        vectors = np.frombuffer(read.section(".vectors").data, "<u4")  # type: ignore[union-attr]
        assert len(vectors) == 16 + 48
        assert vectors[16 + 29] == read.symbols[wanted][0] | 1
        assert vectors[15] == read.symbols["fault"][0] | 1


def test_the_example_that_hears_may_take_the_flash_of_snapshots(tiny: Path) -> None:
    """Said where that is all that keeps it from the board, and only there."""
    from edgemem.modelfile import open_model
    from edgemem.runtimes.firmware.budget import Budget
    from edgemem.runtimes.firmware.writer import no_sound

    core, contract = board("nucleo_f446re"), open_model(tiny).contract
    assert core.flash_bytes is not None
    banks = 2 * 131_072
    for rest, ram, wanted in ((1_000, 4_000, True), (1_000, 131_000, False), (20_000, 4_000, None)):
        flash = {"code": core.flash_bytes - banks - rest, "snapshots": banks}
        said = no_sound(core, contract, Budget(flash, {"stack": ram}))
        assert (None if said is None else said.endswith("; --no-snapshots makes room")) is wanted, said


def lines(on: str, image: Path, last: str, counted: bool = False) -> list[str]:
    """What a board says up to a line; `counted`: its clock is that of its instructions."""
    session, said = Session(command_of(board(on), image, counted)), []
    while not said or said[-1] != last:
        said.append(session.line())
        assert not said[-1].startswith(("FAIL", "FAULT", "samples were lost", "too slow")), said
    session.close()
    return said


def test_the_ring_drops_what_it_has_no_room_for(tmp_path: Path) -> None:
    """Never more than it holds, the oldest first, the rest counted; on this machine, under sanitizers."""
    from importlib import resources

    source = resources.files("edgemem.runtimes.firmware").joinpath("c")
    for name in ("sound.c", "sound.h", "edgemem_model.h"):
        (tmp_path / name).write_text(source.joinpath(name).read_text())
    (tmp_path / "sound_model.h").write_text(RING_MODEL)
    (tmp_path / "main.c").write_text(RING_MAIN)
    subprocess.run(
        ["gcc", "-std=gnu99", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-o", "ring", "main.c",
         "sound.c"], cwd=tmp_path, check=True,
    )  # fmt: skip
    done = subprocess.run([tmp_path / "ring"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # 16 samples fit; 3 of 19 are lost; a row is 4 samples, summed; then 2 rows around the end of the ring
    assert done.stdout == "row 0: 10\nrow 1: 26\nrow 2: 42\nrow 3: 58\ndropped 3\nrow 4: 406\nrow 5: 422\n"


RING_MODEL = """\
#include <stddef.h>
#include <stdint.h>
typedef struct { int filled; float sum; } sums;
static inline void sums_reset(sums *s, float *room) { (void)room; s->filled = 0; s->sum = 0.0f; }
static inline int sums_push(sums *s, const int16_t **samples, size_t *count, float *row)
{
    while (*count > 0) {
        s->sum += *(*samples)++;
        --*count;
        if (++s->filled == 4) { *row = s->sum; s->filled = 0; s->sum = 0.0f; return 1; }
    }
    return 0;
}
#define SOUND_RING 16u
#define SOUND_ROOM float room[1]
#define SOUND_STREAM sums
#define SOUND_RESET(stream, room) sums_reset(stream, room)
#define SOUND_PUSH(stream, samples, count, row) sums_push(stream, samples, count, row)
#define SOUND_WIDTH 1u
#define SOUND_FRAMES 1u
#define SOUND_AHEAD 0u
#define SOUND_VALID 0
#define SOUND_OUTPUTS 1u
"""

RING_MAIN = """\
#include "sound.h"
#include "edgemem_model.h"
#include <stdio.h>
static float place[1];
const edgemem_span edgemem_inputs[] = {{(unsigned char *)place, 4, 1}};
const edgemem_span edgemem_outputs[] = {{(unsigned char *)place, 4, 1}};
int edgemem_reset(void) { return 0; }
int edgemem_step(void) { return 0; }
void sound_given(const float *outputs, uint32_t row) { printf("row %u: %g\\n", (unsigned)row, (double)outputs[0]); }
int main(void)
{
    int16_t first[19], second[8];
    int i;
    for (i = 0; i < 19; ++i) first[i] = (int16_t)(i + 1);
    for (i = 0; i < 8; ++i) second[i] = (int16_t)(100 + i);
    sound_open();
    sound_samples(first, 19);
    while (sound_step()) {}
    printf("dropped %u\\n", (unsigned)sound_dropped());
    sound_samples(second, 8);
    while (sound_step()) {}
    return 0;
}
"""
