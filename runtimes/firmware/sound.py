"""What firmware of a model of sound has beside the others: the front end, a ring of samples, and two examples.

src/sound.c .h          samples from an interrupt -> rows of outputs
src/hearing.c .h        rows of logits -> words on the console
src/sound_model.h       generated: sizes, labels, and which front end
NAME_frontend.h         generated: its tables; in float32 where the core has an FPU, else in fixed point
examples/clip.c         a recording in flash, heard without a microphone: `make clip.elf`
examples/microphone.c   two buffers that are filled in turn: `make microphone.elf`, with a driver beside it

Drivers are `microphone_NAME.c`: of the board's own microphone, or `clip`, which plays the recording from the interrupt
of a timer, that of a Cortex-M or a RISC-V core's machine timer; without either, the example says what is to be written.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.boards import Board
from edgemem.contract import Contract
from edgemem.frontend import FrontEnd
from edgemem.runtimes.aot import emit_frontend
from edgemem.runtimes.aot.emit_audio import front_end, takes_sound
from edgemem.runtimes.firmware import build
from edgemem.runtimes.firmware.build import EXAMPLES, Sound
from edgemem.tasks import kws, words

Array = np.ndarray[Any, np.dtype[Any]]
OWN = ("sound.c", "sound.h", "hearing.c", "hearing.h", "microphone.h")
MICROPHONE_BYTES = 4 * 160 + 16  # two halves of a buffer, and the driver's own
SMALLEST_RING = 1024  # samples
CLIP = "demo.wav"
CLIP_SECONDS = (2.0, 5.4)  # of it: "please go left then stop"
SHORTEST_CLIP_SECONDS = 1.0
EXTRA_BYTES = 128  # variables of sound.c and hearing.c beside their arrays
CODE_BYTES = 12_288  # front end, tables and examples, at most


def hears(contract: Contract) -> bool:
    """Whether rows of such a model can be told in words: logits with labels, from samples."""
    output = contract.outputs[0]
    if not takes_sound(contract) or not output.labels or output.dtype != "float32":
        return False
    return isinstance(front_end(contract.inputs[0]), FrontEnd)  # raw samples need none


def features_of(contract: Contract) -> FrontEnd:
    """The front end of a model that hears."""
    found = front_end(contract.inputs[0])
    assert isinstance(found, FrontEnd)
    return found


def ring_samples(contract: Contract, f: FrontEnd) -> int:
    """A power of two that holds what comes while a step runs, twice."""
    return max(SMALLEST_RING, 1 << math.ceil(math.log2(2 * f.hop_per_row * contract.chunk.frames)))


def ram_bytes(board: Board, contract: Contract) -> int:
    """RAM of a streaming example beside the firmware's."""
    f = features_of(contract)
    posteriors = 4 * kws.SMOOTHING_ROWS * len(contract.outputs[0].labels or ())
    samples = f.window_samples
    if build.soft(board):
        room = 8 * (f.fft // 2 + 1 + -(-f.mels // 2) + -(-samples // 4))
    else:
        room = 4 * (samples + f.fft + 2 + f.mels)
    return 2 * ring_samples(contract, f) + room + posteriors + MICROPHONE_BYTES + EXTRA_BYTES


def obstacle(board: Board, contract: Contract, free: dict[str, int]) -> str | None:
    """Why firmware gets no part that takes sound; `free` are bytes of flash and RAM that the firmware leaves."""
    if not hears(contract):
        return "the model does not hear words"
    f, needed = features_of(contract), ram_bytes(board, contract)
    if build.soft(board) and f.fft > emit_frontend.LONGEST_FIXED_FFT:
        return (
            f"its front end has an FFT of {f.fft}, fixed point is exact enough up to {emit_frontend.LONGEST_FIXED_FFT}"
        )
    if needed > free["ram"]:
        return f"front end and samples need {needed} bytes of RAM, {free['ram']} are left"
    if free["flash"] < CODE_BYTES:
        return f"front end and example need {CODE_BYTES} bytes of flash, {free['flash']} are left"
    return None


def write(folder: Path, board: Board, name: str, contract: Contract, free: dict[str, int]) -> Sound | None:
    """Write all of it into a project; None where there is an `obstacle`."""
    if obstacle(board, contract, free) is not None:
        return None
    f, fixed = features_of(contract), build.soft(board)
    own = emit_frontend.FIXED_SOURCES if fixed else emit_frontend.SOURCES
    header = emit_frontend.fixed_header if fixed else emit_frontend.header
    (folder / f"{name}_frontend.h").write_text(header(name, f))
    for file in own:
        (folder / file).write_text(emit_frontend.source(file))
    for file in OWN:
        (folder / build.SHARED / file).write_text(shared(file))
    (folder / build.SHARED / "sound_model.h").write_text(sound_model_h(name, contract, f, fixed))
    (folder / EXAMPLES).mkdir()
    data = clip_data(folder, f, free)
    examples = {"microphone": (f"{EXAMPLES}/microphone.c", *driver(board, data))}
    if data:
        examples["clip"] = (f"{EXAMPLES}/clip.c", *data)
    for file in {Path(source).name for sources in examples.values() for source in sources if source.endswith(".c")}:
        (folder / EXAMPLES / file).write_text(shared(file))
    code = next(file for file in own if file.endswith(".c"))
    sources = (code, f"{build.SHARED}/sound.c", f"{build.SHARED}/hearing.c")
    return Sound(sources, (code,), examples, ram_bytes(board, contract), fixed)


def clip_data(folder: Path, f: FrontEnd, free: dict[str, int]) -> tuple[str, ...]:
    """Write as much of the recording as there is flash for; its source, none if that is too short to be heard."""
    samples = clip(f.sample_rate)[: (free["flash"] - CODE_BYTES) // 2]
    if len(samples) < SHORTEST_CLIP_SECONDS * f.sample_rate:
        return ()
    (folder / EXAMPLES / "clip.bin").write_bytes(samples.tobytes())
    (folder / EXAMPLES / "clip_data.S").write_text(CLIP_DATA)
    return (f"{EXAMPLES}/clip_data.S",)


def driver(board: Board, data: tuple[str, ...]) -> tuple[str, ...]:
    """What fills the buffer of the microphone example: `data` is the recording, if there is room for it."""
    if board.microphone is not None:
        return (f"{EXAMPLES}/microphone_{board.microphone}.c",)
    timer = board.core.startswith("cortex-m") or board.machine_timer is not None
    return (f"{EXAMPLES}/microphone_clip.c", *data) if data and timer else ()


def shared(file: str) -> str:
    return resources.files("edgemem.runtimes.firmware").joinpath("c", file).read_text()


def clip(rate: int) -> Array:
    """A few packaged words, 16 bits, little-endian [samples]."""
    from edgemem.audio import PCM16_FULL_SCALE, read_audio
    from edgemem.checkpoints import packaged

    sound = read_audio(packaged(CLIP), rate)
    start, stop = (round(second * rate) for second in CLIP_SECONDS)
    samples: Array = np.clip(np.rint(sound[start:stop] * PCM16_FULL_SCALE), -32768, 32767).astype("<i2")
    return samples


CLIP_DATA = """\
/* Generated by edgemem: the samples of clip.bin, 16 bits, in flash. */
    .section .rodata.clip, "a"
    .balign 4
    .globl clip_start, clip_end
clip_start:
    .incbin "examples/clip.bin"
clip_end:
"""


def sound_model_h(name: str, contract: Contract, f: FrontEnd, fixed: bool) -> str:
    """Sizes and labels for sound.c and hearing.c."""
    labels = contract.outputs[0].labels or ()
    big, detects = name.upper(), set(kws.QUIET) <= set(labels)
    silent = set(kws.QUIET) if detects else {words.BLANK}
    valid = contract.valid_input
    index = 0 if valid is None else list(contract.inputs).index(valid)
    kind = "edgemem_fixed" if fixed else "edgemem_frontend"
    room = f"edgemem_fixed_bin room[{big}_FRONTEND_BINS]" if fixed else f"float room[{big}_FRONTEND_FLOATS]"
    tables = f"{name}_fixed" if fixed else f"{name}_frontend"
    refractory = math.ceil(kws.REFRACTORY_SECONDS / f.seconds_per_frame - 1e-6)
    return f"""\
/* Generated by edgemem: {contract.model.name} as what hears. */
#ifndef SOUND_MODEL_H
#define SOUND_MODEL_H

#include "{name}_frontend.h"

#define SOUND_RING {ring_samples(contract, f)}u
#define SOUND_ROOM {room}
#define SOUND_STREAM {kind}_stream
#define SOUND_RESET(stream, room) {kind}_reset(&{tables}, stream, room)
#define SOUND_PUSH(stream, samples, count, row) {kind}_push(&{tables}, stream, samples, count, row)

#define SOUND_RATE {f.sample_rate}u /* samples a second */
#define SOUND_HOP {f.hop_per_row}u /* from the start of a row to that of the next */
#define SOUND_SPAN {f.samples_per_row}u /* that a row covers */
#define SOUND_WIDTH {f.width}u /* features of a row */
#define SOUND_FRAMES {contract.chunk.frames}u /* rows that a step takes */
#define SOUND_AHEAD {contract.latency.look_ahead}u /* rows that an output waits for */
#define SOUND_VALID {index} /* input that counts the rows of a chunk that are no padding, 0: none */

#define SOUND_OUTPUTS {len(labels)}u
#define SOUND_LABELS {", ".join(quoted(label) for label in labels)}
#define SOUND_QUIET {", ".join(str(int(label in silent)) for label in labels)} /* labels that are not said */
#define SOUND_DETECTS {int(detects)} /* 1: keywords, by the rule of edgemem.tasks.kws; 0: the label that leads */
#define SOUND_SMOOTHING {kws.SMOOTHING_ROWS}u
#define SOUND_THRESHOLD {emit_frontend.literal(kws.THRESHOLD)}
#define SOUND_REFRACTORY {refractory}u /* rows */

#endif
"""


def quoted(text: str) -> str:
    """A C string, whatever a label holds."""
    return '"' + "".join(c if c.isascii() and (c.isalnum() or c in " _-'<>") else octal(c) for c in text) + '"'


def octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())
