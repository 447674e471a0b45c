"""State in a device's flash: the firmware starts from it by itself, and it goes to the host and back as a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.errors import ModelFileError, SnapshotError, UsageError
from edgemem.runtimes.firmware import flash
from edgemem.trial import random_inputs, random_state
from tests.firmware import integer_spotter, manifest, needs

BOARDS = ("mps2_an386", "microbit")  # memory that behaves like flash, and the flash controller of Nordic's chips


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return integer_spotter(tmp_path_factory.mktemp("flash"))


@pytest.fixture(scope="module", params=BOARDS)
def firmware(request: pytest.FixtureRequest, spotter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgemem.boards import board
    from edgemem.runtimes.aot.compiler import compile_model

    needs(request.param)
    folder = tmp_path_factory.mktemp(request.param) / "fw"
    compile_model(spotter, board(request.param), folder, name="model")
    return folder


def inputs_of(program: Any, count: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(8)
    return [random_inputs(program.contract, rng) for _ in range(count)]


def test_a_state_of_the_host_starts_the_device_and_goes_back(firmware: Path, spotter: Path, tmp_path: Path) -> None:
    """Host, flash file, device, flash file, host: the same bytes as a run that nothing interrupted."""
    from edgemem.runtimes.integer.reference import IntegerProgram

    device, host = edgemem.load(firmware), IntegerProgram(spotter)
    steps = inputs_of(host, 9)
    whole, first = host.stream(), host.stream()
    wanted = [whole.step(x) for x in steps]
    for x in steps[:3]:
        first.step(x)
    first.snapshot(tmp_path / "s.safetensors")
    said = ran("--put", tmp_path / "s.safetensors", firmware, tmp_path / "flash.bin")
    facts = manifest(firmware)["snapshots"]
    assert f"write it to {facts['address']:#010x}" in said
    there = device.started(tmp_path / "flash.bin")  # type: ignore[attr-defined]
    assert there.restored
    for x, y in zip(steps[3:6], wanted[3:6], strict=True):
        np.testing.assert_array_equal(there.step(x)["logits"], y)
    assert there.save() == 0
    (tmp_path / "back.bin").write_bytes(there.flash())
    said = ran("--get", tmp_path / "back.bin", firmware, tmp_path / "back.safetensors")
    assert said.startswith(f"{tmp_path / 'back.safetensors'}: the state in {tmp_path / 'back.bin'}; ")
    last = host.stream()
    last.restore(tmp_path / "back.safetensors")
    for x, y in zip(steps[6:], wanted[6:], strict=True):
        np.testing.assert_array_equal(last.step(x), y)
    again = device.started(tmp_path / "back.bin")  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again.step(steps[6])["logits"], wanted[6])


def ran(way: str, source: Path, firmware: Path, output: Path) -> str:
    command = [sys.executable, "-m", "edgemem.runtimes.firmware.flash", firmware, way, source, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_device_starts_from_the_newest_whole_bank(firmware: Path, tmp_path: Path) -> None:
    """Erased flash, one bank, the second of two, a damaged one, another model's, a counter that has wrapped around."""
    device, facts = edgemem.load(firmware), manifest(firmware)
    rng, size = np.random.default_rng(4), flash.bank_bytes(facts)
    old, new = ({s.name: random_state(s, rng) for s in device.contract.states} for _ in range(2))
    one = flash.image(facts, old, 7)[:size]
    two, wrapped = flash.image(facts, new, 8)[:size], flash.image(facts, new, 2)[:size]
    last = flash.image(facts, old, 2**32 - 1)[:size]
    damaged, foreign = bytearray(two), bytearray(two)
    damaged[size // 3] ^= 4
    foreign[0] ^= 1
    empty = b"\xff" * size
    cases = ((one + two, new), (one + damaged, old), (one + foreign, old), (last + wrapped, new), (empty + one, old),
             (empty + empty, None))  # fmt: skip
    start = device.new_state()
    assert not start.restored  # type: ignore[attr-defined]
    fresh = start.get()
    for number, (data, states) in enumerate(cases):
        file = tmp_path / f"{number}.bin"
        file.write_bytes(data)
        came = device.started(file)  # type: ignore[attr-defined]
        kept = fresh if states is None else as_kept(facts, states)
        assert came.restored == (states is not None), number
        assert all(value.tobytes() == kept[name].tobytes() for name, value in came.get().items()), number
        assert came.flash() == data
        if states is not None:
            assert {n: v.tobytes() for n, v in flash.newest(facts, data).items()} == {
                n: v.tobytes() for n, v in kept.items()
            }
    with pytest.raises(SnapshotError, match="no whole snapshot of this firmware in either bank"):
        flash.newest(facts, empty + empty)
    with pytest.raises(SnapshotError, match=rf"2 banks of {size} bytes were wanted, {size} bytes came"):
        flash.newest(facts, empty)


def as_kept(facts: dict[str, Any], states: dict[str, Any]) -> dict[str, Any]:
    """States as they are once a device has rounded them to the integers that it keeps."""
    from edgemem.runtimes.integer.states import as_float, as_integers

    scales = facts["integer"]["state_scales"]
    return as_float(as_integers(states, scales), scales)


def test_what_cannot_be_put_into_flash_is_refused(firmware: Path, spotter: Path) -> None:
    from edgemem.runtimes.integer.reference import IntegerProgram

    facts, stream = manifest(firmware), IntegerProgram(spotter).stream()
    saved = bytearray(stream.snapshot())
    saved[-1] ^= 1
    with pytest.raises(SnapshotError, match="its SHA-256 does not fit"):
        flash.put(facts, bytes(saved))
    none = {**facts, "snapshots": {**facts["snapshots"], "bank_bytes": 0}}
    with pytest.raises(UsageError, match="has no driver for its flash"):
        flash.put(none, stream.snapshot())
    for unit in (None, 0, "4"):
        odd = {**facts, "snapshots": {**facts["snapshots"], "unit_bytes": unit}}
        with pytest.raises(ModelFileError, match=r"unit_bytes must be 1 or more, .* compile the model again"):
            flash.put(odd, stream.snapshot())
    with pytest.raises(UsageError, match="no microcontroller"):
        flash.bank_bytes({"board": {"name": "host"}})
