"""Firmware: built for microcontrollers, weighed against its budget, and run under emulation beside the host."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import edgemem
from edgemem.boards import board
from edgemem.cli.main import cli
from edgemem.errors import BudgetError, CheckFailed, ConfigError, MissingDependency, StreamError, UsageError
from edgemem.runtimes.firmware import budget, build, elf
from edgemem.runtimes.firmware.emulator import Session, command_of
from edgemem.runtimes.firmware.proof import Proof
from edgemem.trial import poisoned, random_inputs, random_state, trial
from tests.aot_programs import compiled, model_file
from tests.firmware import manifest, needs

CASES = (
    ("mps2_an500", "kws-lmuformer"),
    ("mps2_an386", "rwkv4"),
    ("riscv32_virt", "memformer"),
    ("mps3_an547", "folding"),
)
NONE, CUT = 1, 2  # codes of snapshot.h


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as files, and firmware in folders that are made at first use."""
    return tmp_path_factory.mktemp("firmware")


def model(files: Path, name: str) -> Path:
    path = files / f"{name}.onnx"
    return path if path.exists() else model_file(name, files)


def built(files: Path, on: str, name: str) -> Path:
    """The firmware of a small model for a board."""
    needs(on)
    folder = files / f"{on}-{name}"
    if not folder.exists():
        compiled(model(files, name), folder, on)
    return folder


@pytest.mark.parametrize(("on", "name"), CASES)
def test_firmware_computes_what_the_host_does(files: Path, on: str, name: str) -> None:
    """Outputs and states, within 1e-5 of the largest value; reset is total; the stack stays inside its bound."""
    folder = built(files, on, name)
    program = edgemem.load(folder)
    assert program.runtime == f"aot on {on}"
    found = trial(edgemem.load(model(files, name)), program, 32)
    assert found.holds, found.first_divergence
    for tensor, fresh, reset in poisoned(program, 4):
        assert fresh.tobytes() == reset.tobytes(), tensor
    state = program.new_state()
    program.step(random_inputs(program.contract, np.random.default_rng(0)), state)
    used = state.stack_bytes()  # type: ignore[attr-defined]
    assert 0 < used <= manifest(folder)["budget"]["predicted"]["ram"]["stack"]


@pytest.mark.parametrize(("on", "name"), CASES)
def test_the_linker_agrees_with_the_budget(files: Path, on: str, name: str) -> None:
    """Weights, state, arena and stack to the byte, the whole within what a user may rely on; no TVM, no heap."""
    facts = manifest(built(files, on, name))["budget"]
    predicted, linked = facts["predicted"], facts["linked"]
    for part in ("state", "arena", "io", "stack"):
        assert predicted["ram"][part] == linked["ram"][part], part
    assert predicted["ram"]["data"] >= linked["ram"]["data"]
    assert predicted["flash"]["weights"] == linked["flash"]["weights"]
    assert predicted["flash"]["test_vectors"] >= linked["flash"]["test_vectors"]
    assert abs(predicted["flash"]["code"] / linked["flash"]["code"] - 1) < 0.2
    text = (built(files, on, name) / "firmware.map").read_text()
    assert not re.search(r"\b(TVM\w+|malloc|_sbrk|printf|__libc_init_array)\b", text)


@pytest.mark.parametrize(("on", "name"), CASES[1:3])
def test_instructions_are_counted_and_the_count_repeats(files: Path, on: str, name: str) -> None:
    program = edgemem.load(built(files, on, name))
    first, _ = program.instructions(4)  # type: ignore[attr-defined]
    assert first == program.instructions(4)[0] > 1000  # type: ignore[attr-defined]


def test_verify_says_what_the_emulated_core_computes(files: Path) -> None:
    """One more board by the command line, against torch; its kernels on this machine give the same bytes."""
    needs("mps2_an385")
    path = str(model(files, "rwkv4"))
    done = CliRunner().invoke(cli, ["verify", path, "--steps", "8", "--board", "mps2_an385", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["ok"] and report["byte_equal"]
    assert report["instructions_per_step"]["mps2_an385"] > 1000
    assert {"mps2_an385", "mps2_an385 reset"} <= {stage["name"] for stage in report["stages"]}


def test_an_integer_step_of_other_bytes_fails_verify() -> None:
    """Floats may differ in rounding, within the tolerance of the report; whole numbers may not."""
    from edgemem.cli.verify import differing, with_proofs

    programs: Any = {"a": SimpleNamespace(integer=False), "b": SimpleNamespace(integer=True)}
    proofs = {name: Proof(False, "y at step 3", 10.0) for name in programs}
    assert differing(programs, proofs) == "b"
    assert differing(programs, {"a": proofs["a"], "b": Proof(True, None, 10.0)}) is None
    report: Any = SimpleNamespace(to_json=lambda: {"ok": True, "stages": []})
    assert with_proofs(report, proofs, False)["ok"] is False
    assert with_proofs(report, proofs, True) == {
        "ok": True, "stages": [], "byte_equal": False, "instructions_per_step": {"a": 10.0, "b": 10.0},
        "boards": {"a": asdict(proofs["a"]), "b": asdict(proofs["b"])},
    }  # fmt: skip


@pytest.mark.parametrize(("on", "name"), CASES[1:3])
def test_the_emulator_ends_with_the_outcome_of_the_self_test(files: Path, tmp_path: Path, on: str, name: str) -> None:
    """For runs that nobody watches: status 0 after PASS, 1 after FAIL, where the input has an end."""
    whole, broken = built(files, on, name), tmp_path / "broken"
    shutil.copytree(whole, broken)
    wrong_vector(broken / "src/vectors.c")
    build.make(broken, "-B", "firmware.elf")
    for folder, status, word in ((whole, 0, "PASS"), (broken, 1, "FAIL")):
        command = command_of(board(on), folder / "firmware.elf")
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.splitlines()[1].partition(" ")[0]) == (status, word), done.stdout
        assert done.stdout.splitlines()[-1] == "stopped"


def test_a_wrong_weight_fails_the_self_test(files: Path, tmp_path: Path) -> None:
    """A flipped byte of flash is found by the checksum; a kernel that computes something else, by the vectors."""
    whole = built(files, "mps2_an386", "rwkv4")
    for name, change in (("model_weights.bin", flipped), ("src/vectors.c", wrong_vector)):
        folder = tmp_path / Path(name).stem
        shutil.copytree(whole, folder)
        change(folder / name)
        build.make(folder, "-B")
        facts = manifest(folder)
        facts["files"]["firmware.elf"] = hashlib.sha256((folder / "firmware.elf").read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(facts))
        with pytest.raises(CheckFailed, match=r"self-test failed: FAIL") as caught:
            edgemem.load(folder).new_state()
        assert caught.value.exit_code == 1


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def wrong_vector(path: Path) -> None:
    """Another first output than the one that was computed: 2.0."""
    head, marker, rest = path.read_text().partition("edgemem_vector_outputs[] = {\n")
    numbers = rest.split(",")
    path.write_text(head + marker + ",".join([" 0", " 0", " 0", " 64", *numbers[4:]]))


def test_a_snapshot_cut_at_any_word_leaves_the_old_state_or_the_new(files: Path) -> None:
    """Every erased page and every written word of a save in turn is the last before the power goes."""
    program = edgemem.load(built(files, "mps2_an386", "rwkv4"))
    rng, board_state = np.random.default_rng(3), program.new_state()
    states = program.contract.states
    old, new = ({s.name: random_state(s, rng) for s in states} for _ in range(2))
    assert board_state.load() == NONE
    board_state.set(old)
    assert board_state.save() == 0
    outcomes, words = [], 0
    while True:
        board_state.set(new)
        code = board_state.save(words)
        board_state.reset()
        assert board_state.load() == 0
        found = same_state(board_state.get(), old, new)
        outcomes.append(found)
        if code == 0:
            break
        assert code == CUT
        words += 1
        board_state.set(old)  # the newest whole snapshot is the old one again
        if found == "new":
            assert board_state.save() == 0
    nbytes = sum(np.dtype(s.dtype).itemsize * int(np.prod(s.shape)) for s in states)
    assert words >= nbytes // 4 + 5  # every word was tried
    assert outcomes[0] == "old" and outcomes[-1] == "new" and outcomes[:-1].count("new") <= 1


def same_state(came: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> str:
    for label, wanted in (("old", old), ("new", new)):
        if all(came[name].tobytes() == value.tobytes() for name, value in wanted.items()):
            return label
    raise AssertionError("a mixture of both states")


def test_a_state_of_the_host_goes_on_on_the_board_and_back(files: Path) -> None:
    here = edgemem.load(model(files, "rwkv4")).stream()
    there = edgemem.load(built(files, "mps2_an386", "rwkv4")).stream()
    for token in (1, 7, 3):
        here.step(np.array([[token]]))
    there.restore(here.snapshot())
    np.testing.assert_allclose(there.step(np.array([[5]])), here.step(np.array([[5]])), rtol=1e-4, atol=1e-5)
    here.restore(there.snapshot())
    np.testing.assert_allclose(here.step(np.array([[2]])), there.step(np.array([[2]])), rtol=1e-4, atol=1e-5)


def test_cmake_builds_the_same_code(files: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed: make boards")
    folder = built(files, "mps2_an386", "rwkv4")
    options = ["-DCMAKE_TOOLCHAIN_FILE=" + str(folder / "toolchain.cmake")]
    for command in (["cmake", "-S", folder, "-B", tmp_path, *options], ["cmake", "--build", tmp_path]):
        subprocess.run(command, check=True, capture_output=True)
    made, cmade = elf.read(folder / "firmware.elf"), elf.read(tmp_path / "firmware.elf")
    for section in (".vectors", ".weights", ".stack", ".state", ".arena"):
        assert made.size(section) == cmade.size(section), section
    assert abs(made.size(".text") - cmade.size(".text")) <= 64  # the order of objects moves padding


def test_a_board_that_hangs_is_given_up_with_its_console(tmp_path: Path) -> None:
    session = Session(["sh", "-c", "echo edgemem x on y; sleep 60"], timeout_s=0.3)
    with pytest.raises(StreamError, match=r"silent for 0\.3 s; its console says:\nedgemem x on y"):
        session.started()
    session.close()
    gone = Session(["sh", "-c", "echo no such machine; exit 3"])
    with pytest.raises(StreamError, match=r"emulator ended with code 3; its console says:\nno such machine"):
        gone.started()
    gone.close()


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(files: Path, tmp_path: Path) -> None:
    needs("mps2_an386")
    small = tmp_path / "tiny.toml"
    text = resources.files("edgemem.devices").joinpath("mps2_an386.toml").read_text()
    for field, value in (("name", '"tiny"'), ("flash_bytes", "16384"), ("ram_bytes", "1024")):
        text = re.sub(rf"^{field} = .*$", f"{field} = {value}", text, flags=re.MULTILINE)
    small.write_text(text)
    command = ["compile", str(model(files, "rwkv4")), "--board", str(small), "-o", str(tmp_path / "fw")]
    refused = CliRunner().invoke(cli, command).exception
    assert isinstance(refused, BudgetError) and refused.exit_code == 2
    said = re.fullmatch(
        r"rwkv4 does not fit tiny: .+ of flash needed, 16\.0 KiB on the board, .+ too much \((.*)\); .+ of RAM needed, "
        r"1\.0 KiB on the board, .+ too much \((.*)\)\. (.+)",
        str(refused),
    )
    assert said is not None, str(refused)
    assert re.fullmatch(r"code .+, weights .+, test vectors .+, snapshots 0 B", said[1])
    assert re.fullmatch(r"stack .+, data .+, io .+, state .+, arena .+", said[2])
    flash, ram = refused.needs["flash"], refused.needs["RAM"]
    assert flash["needed_bytes"] == sum(flash["parts"].values()) > flash["board_bytes"] == 16384
    assert ram["needed_bytes"] == sum(ram["parts"].values()) > ram["board_bytes"] == 1024
    assert not (tmp_path / "fw").exists()


@pytest.mark.parametrize(
    ("what", "excess", "scheme", "advice"),
    [
        ("flash", 40_000, "none", "`edgemem quantize --scheme f16`: its weights take about 48.8 KiB."),
        ("soft flash", 40_000, "none", "`edgemem quantize --scheme w8a8`: its weights take about 25.4 KiB."),
        ("flash", 60_000, "none", "`edgemem quantize --scheme w8a8`: its weights take about 25.4 KiB."),
        ("flash", 88_000, "none", "`edgemem quantize --scheme vq:dim=4,codes=256`: its weights take about 9.8 KiB."),
        ("flash", 50_000, "w8a8", "`edgemem quantize --scheme vq:dim=4,codes=256`, from the float file: its weights"),
        ("flash", 95_000, "none", "Its weights have to be 20.0 times smaller: take a smaller width or fewer layers."),
        ("flash", 200_000, "none", "Code alone is too large: take another board."),
        ("RAM", 100, "none", "`edgemem quantize --state i16`: the states that may be narrow take"),
        ("RAM", 12_000, "none", "`edgemem quantize --scheme w8a8`: states and arena are int16, half as large, in an"),
        ("RAM", 99_000, "none", "For its RAM take a smaller width, fewer layers or another board."),
        ("RAM", 12_000, "w8", "For its RAM take a smaller width, fewer layers or another board."),
    ],
)
def test_the_mildest_change_that_would_fit_is_named(
    files: Path, what: str, excess: int, scheme: str, advice: str
) -> None:
    """For 100 kB of weights, and for states of a few hundred bytes with 30 kB of state and arena."""
    from edgemem.modelfile import open_model

    contract = open_model(model(files, "kws-lmuformer")).contract.model_copy(update={"quant": {"scheme": scheme}})
    program: Any = SimpleNamespace(model=SimpleNamespace(contract=contract), kernels=None)
    parts = {"weights": 100_000, "state": 15_000, "arena": 15_000, "io": 100}
    core = board("microbit" if what.startswith("soft") else "mps2_an386")
    assert budget.advice(core, program, what.removeprefix("soft "), parts, excess).startswith(advice)


def test_snapshots_are_left_out_where_they_alone_do_not_fit() -> None:
    """A step needs none: refusing the whole program for them would be too much."""
    core = board("mps3_an547")
    room = core.flash_bytes or 0
    parts = {"code": 10_000, "weights": room - 12_000, "test_vectors": 1_000, "snapshots": 1_024}
    freed = 10_000 - budget.SNAPSHOT_CODE_BYTES
    assert budget.without_snapshots(core, parts) == {**parts, "snapshots": 0, "code": freed}
    exact = {**parts, "code": 9_976}
    assert sum(exact.values()) == room and budget.without_snapshots(core, exact) == exact
    none = {**exact, "snapshots": 0}  # they were not wanted
    assert budget.without_snapshots(core, none) == {**none, "code": 9_976 - budget.SNAPSHOT_CODE_BYTES}


def test_firmware_without_snapshots_has_neither_flash_nor_code_of_them(files: Path, tmp_path: Path) -> None:
    """`--no-snapshots`: the budget says so before the build and after it; the rest is the same program."""
    needs("mps2_an386")
    path, folder = model(files, "rwkv4"), tmp_path / "fw"
    command = ["compile", str(path), "--board", "mps2_an386", "-o", str(folder), "--name", "model", "--no-snapshots"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    assert "no snapshots, the state ends with the power: compiled with --no-snapshots" in done.output
    bare, full = (manifest(f)["budget"] for f in (folder, built(files, "mps2_an386", "rwkv4")))
    for kind in ("predicted", "linked"):
        assert bare[kind]["flash"]["snapshots"] == 0 < full[kind]["flash"]["snapshots"]
        saved = full[kind]["flash"]["code"] - bare[kind]["flash"]["code"]
        assert abs(saved - budget.SNAPSHOT_CODE_BYTES) < 100, kind
        assert bare[kind]["ram"]["data"] < full[kind]["ram"]["data"]
    assert "snapshot_save" not in elf.read(folder / "firmware.elf").symbols
    assert (
        not list((folder / "src").glob("flash*"))
        and "compiled with --no-snapshots" in (folder / "README.md").read_text()
    )
    state = edgemem.load(folder).new_state()
    assert state.save() == state.load() == 3  # type: ignore[attr-defined]
    found = trial(edgemem.load(path), edgemem.load(folder), 4)
    assert found.holds, found.first_divergence
    refused = CliRunner().invoke(cli, ["compile", str(path), "--board", "rpi4", "-o", "x", "--no-snapshots"]).exception
    assert isinstance(refused, UsageError) and "board rpi4 runs under an operating system" in str(refused)


def test_states_in_few_bits_run_on_a_board(files: Path, tmp_path: Path) -> None:
    """int8 states in their place in RAM; outputs and states are those of onnxruntime on the same file."""
    from edgemem.quant import quantize

    needs("mps2_an386")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.standard_normal((64, 8)).astype(np.float32))
    quantize(model(files, "kws-lmuformer"), tmp_path / "q.onnx", "w8", smallest=16, state="i8", steps=8,
             calibrate=tmp_path / "x.npy")  # fmt: skip
    compiled(tmp_path / "q.onnx", tmp_path / "fw", "mps2_an386")
    program = edgemem.load(tmp_path / "fw")
    narrow = [s for s in program.contract.states if s.dtype == "int8"]
    assert len(narrow) >= 4
    wide = manifest(built(files, "mps2_an386", "kws-lmuformer"))["bytes"]["state"]
    assert manifest(tmp_path / "fw")["bytes"]["state"] < wide / 2
    found = trial(edgemem.load(tmp_path / "q.onnx"), program, 32)
    assert found.holds, found.first_divergence


def test_without_its_compiler_or_emulator_a_board_says_what_installs_them(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(files, "mps2_an386", "rwkv4")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"qemu-system-arm is not installed; `make boards` installs it"):
        edgemem.load(folder)
    monkeypatch.setattr(edgemem.program, "load", lambda *args, **options: pytest.fail("it was compiled first"))
    for name, wanted in (("mps2_an386", "qemu-system-arm is not installed"), ("nucleo_f446re", "no emulator runs its")):
        refused = CliRunner().invoke(cli, ["verify", str(model(files, "rwkv4")), "--board", name]).exception
        assert isinstance(refused, MissingDependency) and wanted in str(refused)
        assert f"`edgemem compile FILE --board {name} -o fw` builds it; fw/README.md says how" in str(refused)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=r"needs arm-none-eabi-gcc, .* `make boards` installs it"):
        compiled(model(files, "rwkv4"), tmp_path / "p", "mps2_an386")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("flash_origin = 0x0000_0000\n", "", "a bare board needs flash_origin"),
        ("ram_origin = 0x2000_0000", "ram_origin = 0x0010_0000", "flash 0x0 to 0x400000 and ram 0x100000 .* overlap"),
        ("ram_bytes = 4_194_304", "ram_bytes = 0", "ram_origin 0x20000000 and ram_bytes 0 are no memory"),
        ("-mcpu=cortex-m4", "-mcpu=cortex-m0", "compiler_flags has -mcpu=cortex-m0, and the board says cortex-m4"),
        ('kind = "semihosting"', 'kind = "uart"', "console: a uart needs baud, transmit and receive"),
        ('boot = "vectors"', 'boot = "riscv"', "boot riscv does not start a core of thumbv7em-unknown-none-eabihf"),
        ("thumbv7em-unknown-none-eabihf", "aarch64-linux-gnu", "triple aarch64-linux-gnu is no microcontroller's"),
        ("emulated_hz = 25_000_000\n", "", "an emulator of a bare board needs emulated_hz"),
        ("flash_page_bytes = 1024\n", "flash_page_bytes = 1000\n", "flash_page_bytes 1000 are no pages of words"),
        ("flash_page_bytes = 1024\n", "flash_page_bytes = 1024\nflash_unit_bytes = 96\n", "flash_unit_bytes 96 are no"),
        ("clock_hz = 25_000_000", "clock_hz = 0", "clock_hz 0 and start_clock_hz None are no clocks"),
        ("clock_hz = 25_000_000", "clock_hz = 9\nstart_clock_hz = 10", "start_clock_hz 10 are no clocks, the second"),
        (
            "flash_page_bytes = 1024\n",
            "flash_page_bytes = 1024\nflash_line_bytes = 16\n",
            "flash_wait_states and flash_line_bytes come together",
        ),
        (
            "interrupts = 32\n",
            "interrupts = 32\nmachine_timer = { time = 8, compare = 16, hz = 1 }\n",
            "machine_timer is of a RISC-V core with an interrupt 7",
        ),
        (
            "interrupts = 32\n",
            "interrupts = 32\nmachine_timer = { time = 8, compare = 16, hz = 0 }\n",
            "field machine_timer.hz: Input should be greater than 0",
        ),
        ("flash_page_bytes = 1024\n", "", "flash_driver needs flash_page_bytes"),
        ('boot = "vectors"', 'boot = "floppy"', "field boot: Input should be 'vectors'"),
    ],
)
def test_a_board_file_with_a_wrong_field_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = resources.files("edgemem.devices").joinpath("mps2_an386.toml").read_text()
    assert old in text
    (tmp_path / "mps2_an386.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        board(str(tmp_path / "mps2_an386.toml"))
