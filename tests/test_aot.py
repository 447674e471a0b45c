"""The aot runtime: compiled programs against onnxruntime, and everything that they must refuse."""

from __future__ import annotations

import ctypes
import itertools
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.boards import board, names, parsed
from edgemem.errors import BudgetError, ConfigError, InputError, ModelFileError, UsageError
from edgemem.modelfile import open_model
from edgemem.trial import poisoned, trial
from edgemem.weights import stored_tensors
from tests.aot_programs import compiled, model_file, run_guarded

FAMILIES = ("rwkv4", "lmu", "kws-lmuformer", "memformer-seq2seq", "folding")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.onnx and NAME/ (compiled for this machine) for one small model of each family."""
    folder = tmp_path_factory.mktemp("aot")
    for name in FAMILIES:
        compiled(model_file(name, folder), folder / name)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_compiled_program_equals_onnxruntime(programs: Path, name: str) -> None:
    program = edgemem.load(programs / name)
    assert program.runtime == "aot"
    found = trial(edgemem.load(programs / f"{name}.onnx"), program, 160, seed=3)
    assert found.holds, found.first_divergence
    assert found.max_abs_error > 0  # another engine's rounding: the comparison is not of one program with itself


@pytest.mark.parametrize("name", FAMILIES)
def test_reset_is_total(programs: Path, name: str) -> None:
    for tensor, fresh, reset in poisoned(edgemem.load(programs / name), 8):
        assert fresh.tobytes() == reset.tobytes(), tensor


@pytest.mark.parametrize("name", ["rwkv4", "folding"])
def test_snapshots_move_between_runtimes(programs: Path, name: str) -> None:
    """Half of a run in one engine and half in the other, both ways, as a whole run in one."""
    ort, aot = edgemem.load(programs / f"{name}.onnx"), edgemem.load(programs / name)
    rng = np.random.default_rng(5)
    port = ort.contract.inputs[0]
    shape = (12, *port.shape)
    low, high = port.range or (0, 0)
    x = rng.standard_normal(shape).astype("f") if port.range is None else rng.integers(low, high + 1, shape)
    whole = ort.stream()
    expected = [whole.step(chunk) for chunk in x]
    for first, second in ((ort, aot), (aot, ort)):
        begun, resumed = first.stream(), second.stream()
        for chunk in x[:7]:
            begun.step(chunk)
        resumed.restore(begun.snapshot())
        for chunk, wanted in zip(x[7:], expected[7:], strict=True):
            np.testing.assert_allclose(resumed.step(chunk), wanted, rtol=1e-4, atol=1e-5)


def test_two_streams_do_not_mix(programs: Path) -> None:
    program = edgemem.load(programs / "rwkv4")
    tokens = np.random.default_rng(0).integers(0, 11, (20, 1, 1))
    alone, one, other = program.stream(), program.stream(), program.stream()
    for index, token in enumerate(tokens):
        wanted = alone.step(token)
        assert one.step(token).tobytes() == wanted.tobytes()
        other.step(tokens[-1 - index])


def test_the_stream_refuses_what_the_contract_forbids(programs: Path) -> None:
    stream = edgemem.load(programs / "rwkv4").stream()
    before = stream.snapshot()
    with pytest.raises(InputError, match="values from 0 to 10 were wanted, 11 came"):
        stream.step(np.array([[11]]))
    floats = edgemem.load(programs / "lmu").stream()
    with pytest.raises(InputError, match="finite numbers were wanted"):
        floats.step(np.full((1, 1, 3), np.nan, np.float32))
    assert stream.snapshot() == before


def test_the_short_way_of_a_step_is_the_long_one(programs: Path) -> None:
    """Arrays of the input's own type take it; lists and other widths do not, and all of them agree and may mix."""
    program = edgemem.load(programs / "rwkv4")
    one, other = program.stream(), program.stream()
    for token in np.random.default_rng(0).integers(0, 11, (20, 1, 1)):
        wanted = one.step(token.tolist())
        for x in (token, token[0], token[0, 0], np.asarray(token[0, 0]), token.astype(np.int16)):
            twin = other.fork()
            came = twin.step(x)
            assert came.tobytes() == wanted.tobytes() and came.ndim == wanted.ndim - 2 + np.ndim(x)
        other.step(token)
    assert one.snapshot() == other.snapshot()
    one.push(np.zeros((0,), np.int64))
    assert one.step(token).tobytes() == other.step(token).tobytes()


def test_nan_passes_where_it_is_allowed(programs: Path) -> None:
    bad = np.full((1, 1, 3), np.nan, np.float32)
    strict, lenient = (edgemem.load(programs / "lmu").stream(nan=nan) for nan in ("error", "allow"))
    assert np.isnan(lenient.step(bad)).any()
    with pytest.raises(InputError, match="finite numbers were wanted"):
        strict.step(bad)


def test_the_program_itself_refuses_an_index_out_of_range(programs: Path) -> None:
    program = edgemem.load(programs / "rwkv4")
    state = program.new_state()
    before = state.get()
    for bad in (-1, 11, 2**40):
        with pytest.raises(InputError, match="outside its range"):
            program.step({"tokens": np.array([[bad]])}, state)
    for name, value in state.get().items():
        assert value.tobytes() == before[name].tobytes()


@pytest.mark.parametrize(
    "name", [*FAMILIES, "kws-gru", "kws-transformer", "kws-spiking-lmuformer", "lm-transformer-xl"]
)
def test_c_api_under_sanitizers(programs: Path, tmp_path: Path, name: str) -> None:
    """Random inputs with every buffer against a guard page, and every error code of the header."""
    if name in FAMILIES:
        shutil.copytree(programs / name, tmp_path / "p")
    else:
        compiled(model_file(name, tmp_path), tmp_path / "p")
    done = run_guarded(tmp_path / "p", edgemem.load(tmp_path / "p").contract, steps=200)
    assert done.returncode == 0, done.stderr


def test_the_header_is_clean_in_cpp(programs: Path, tmp_path: Path) -> None:
    source = tmp_path / "use.cc"
    source.write_text('#include "model.h"\nint main() { return MODEL_STATE_BYTES > 0 ? 0 : model_check(); }\n')
    command = ["g++", "-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{programs / 'rwkv4'}"]
    subprocess.run([*command, "-fsyntax-only", str(source)], check=True)


def test_two_compilations_give_the_same_bytes(programs: Path, tmp_path: Path) -> None:
    compiled(programs / "rwkv4.onnx", tmp_path / "again")
    for file in sorted((tmp_path / "again").iterdir()):
        assert file.read_bytes() == (programs / "rwkv4" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", FAMILIES)
def test_every_kernel_is_a_primfunc_of_tvm(programs: Path, name: str) -> None:
    """What the library defines beside the driver is exactly what the manifest names a PrimFunc for."""
    folder = programs / name
    manifest = json.loads((folder / "manifest.json").read_text())
    lines = subprocess.run(["nm", folder / "model_kernels.o"], capture_output=True, text=True, check=True).stdout
    symbols = {parts[2] for parts in map(str.split, lines.splitlines()) if len(parts) == 3 and parts[1] == "T"}
    undefined = {parts[1] for parts in map(str.split, lines.splitlines()) if parts[0] == "U"}
    assert symbols == {kernel["symbol"] for kernel in manifest["kernels"]}
    assert all(len(kernel["tir_sha256"]) == 64 and kernel["primfunc"] for kernel in manifest["kernels"])
    assert {call["symbol"] for call in manifest["calls"]} == symbols
    assert undefined <= {"memcpy", "memset", "memmove"}  # no math library, no runtime


def test_the_library_needs_and_exports_nothing_else(programs: Path) -> None:
    library = programs / "rwkv4" / "model.so"
    defined = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True).stdout.split()
    api = {f"model_{name}" for name in ("reset", "step", "step_bound", "finite", "state", "check")}
    api |= {f"model_team_{name}" for name in ("bytes", "start", "step", "idle", "stop")}
    assert {word for word in defined if word.startswith("model")} == api
    text = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True).stdout
    assert " .data " not in text and " .bss " not in text  # no writable globals


def damaged(folder: Path, target: Path, file: str, change: Any) -> Path:
    """A copy of a program with one file changed."""
    shutil.copytree(folder, target)
    (target / file).write_bytes(change((target / file).read_bytes()))
    return target


def test_damaged_programs_are_refused(programs: Path, tmp_path: Path) -> None:
    good = programs / "rwkv4"
    flipped = damaged(good, tmp_path / "a", "model.so", lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:])
    with pytest.raises(ModelFileError, match=r"model\.so is not the file of its manifest"):
        edgemem.load(flipped)
    for index, (text, match) in enumerate(
        [
            (b"{", "not a readable manifest"),
            (b"{}", "field format is missing"),
            (
                b'{"format": 99, "name": "m", "contract": {}, "board": {}, "bytes": {}, "files": {}}',
                "format 99 is newer",
            ),
            (
                b'{"format": 1, "name": "../m", "contract": {}, "board": {}, "bytes": {}, "files": {}}',
                "is not an identifier",
            ),
        ]
    ):
        bad = damaged(good, tmp_path / f"m{index}", "manifest.json", lambda _, text=text: text)
        with pytest.raises(ModelFileError, match=match):
            edgemem.load(bad)
    (flipped / "model.so").unlink()
    with pytest.raises(ModelFileError, match="cannot be read"):
        edgemem.load(flipped)
    with pytest.raises(ModelFileError, match=r"is no compiled folder, it has no manifest\.json"):
        edgemem.load(tmp_path)


def test_weights_that_changed_are_noticed(programs: Path, tmp_path: Path) -> None:
    """Even where the library's digest is not taken: the weights' own checksum finds one flipped bit anywhere."""
    from edgemem.runtimes.aot.load import OK, WEIGHTS, Library

    blob = (programs / "rwkv4" / "model_weights.bin").read_bytes()
    library = (programs / "rwkv4" / "model.so").read_bytes()
    at = library.index(blob)
    assert Library(programs / "rwkv4" / "model.so", "model").check() == OK
    for index, place in enumerate((0, len(blob) // 2, len(blob) - 100)):
        changed = bytearray(library)
        changed[at + place] ^= 0x10
        path = tmp_path / f"{index}.so"
        path.write_bytes(changed)
        assert Library(path, "model").check() == WEIGHTS


def test_a_state_of_another_model_is_refused(programs: Path) -> None:
    from edgemem.runtimes.aot.load import STATE, Library, aligned_zeros

    library = Library(programs / "rwkv4" / "model.so", "model")
    other = Library(programs / "lmu" / "model.so", "model")
    state = edgemem.load(programs / "rwkv4").new_state()
    block = aligned_zeros((1 << 16,), "uint8")
    assert other.reset(block.ctypes.data, block.nbytes) == 0
    bound = np.frombuffer((ctypes.c_char * 56).from_address(state.argument.value), np.uintp).copy()
    bound[2], bound[3] = block.ctypes.data, block.nbytes
    assert library.step(ctypes.c_void_p(bound.ctypes.data)) == STATE


def test_threads_and_outputs_that_cannot_be(programs: Path, tmp_path: Path) -> None:
    for threads in (0, 17):
        with pytest.raises(UsageError, match=f"on 1 to 16 threads, {threads} came"):
            edgemem.load(programs / "rwkv4", threads=threads)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds other files and no manifest\.json"):
        compiled(programs / "rwkv4.onnx", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_program_that_does_not_fit_is_refused_before_it_is_built(programs: Path, tmp_path: Path) -> None:
    text = 'name = "tiny"\ntitle = "t"\nkind = "linux"\ncore = "native"\ncompiler = "gcc"\nruntime = "aot"\n'
    (tmp_path / "tiny.toml").write_text(text + "ram_bytes = 4096\n")
    with pytest.raises(BudgetError, match=r"rwkv4 does not fit tiny: .* needed, 4\.0 KiB on the board"):
        compiled(programs / "rwkv4.onnx", tmp_path / "out", str(tmp_path / "tiny.toml"))
    assert not (tmp_path / "out").exists()


def test_boards_are_checked() -> None:
    assert names()[0] == "host" and {board(name).name for name in names()} == set(names())
    with pytest.raises(ConfigError, match=r"no board 'rpi44' \(did you mean 'rpi4'\?\)"):
        board("rpi44")
    with pytest.raises(ConfigError, match="board x, field core"):
        parsed("x", 'name = "x"\ntitle = "x"\nkind = "linux"\ncompiler = "gcc"\nruntime = "aot"')
    with pytest.raises(ConfigError, match="file and name must agree"):
        parsed("y", 'name = "x"\ntitle = "x"\nkind = "linux"\ncore = "native"\ncompiler = "gcc"\nruntime = "aot"')


def test_the_command_line_compiles_and_runs(programs: Path, tmp_path: Path) -> None:
    from edgemem.cli.main import cli

    done = CliRunner().invoke(cli, ["compile", str(programs / "lmu.onnx"), "-o", str(tmp_path / "b"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bytes"]["arena"] >= json.loads(done.stdout)["bytes"]["arena_lower_bound"]
    np.save(tmp_path / "x.npy", np.ones((5, 3), np.float32))
    rows = [
        CliRunner().invoke(cli, ["run", str(path), "--input", str(tmp_path / "x.npy"), "--json"]).stdout.splitlines()
        for path in (tmp_path / "b", programs / "lmu.onnx")
    ]
    for compiled_row, row in zip(*rows, strict=True):
        np.testing.assert_allclose(json.loads(compiled_row)["values"], json.loads(row)["values"], rtol=1e-4, atol=1e-5)
    listed = CliRunner().invoke(cli, ["boards", "--json"])
    assert {"host", "rpi4", "visionfive2"} <= {row["name"] for row in json.loads(listed.stdout)}


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(1, 500)), min_size=1, max_size=20))
def test_the_arena_never_gives_living_tensors_the_same_bytes(spans: list[tuple[int, int, int]]) -> None:
    from edgemem.runtimes.aot.plan import packed, peak

    requests = [(start, start + length, size, ("tensor", i, 0)) for i, (start, length, size) in enumerate(spans)]
    slots, total = packed(requests)
    for i, (start, end, size, key) in enumerate(requests):
        assert slots[key].offset % 64 == 0 and slots[key].offset + size <= total
        for first, last, other_size, other in requests[:i]:
            if first <= end and start <= last:
                a, b = slots[key].offset, slots[other].offset
                assert a + size <= b or b + other_size <= a
    assert total >= peak(requests)


def test_every_state_has_its_own_bytes(programs: Path) -> None:
    for name in FAMILIES:
        manifest = json.loads((programs / name / "manifest.json").read_text())
        spans = []
        for state in manifest["contract"]["states"]:
            size = math.prod(state["shape"]) * np.dtype(state["dtype"]).itemsize
            spans += [(offset, offset + size) for offset in manifest["states"][state["name"]]["offsets"]]
        spans.sort()
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert spans[0][0] >= 64 and spans[-1][1] <= manifest["bytes"]["state"]


def test_the_profile_accounts_for_every_call(programs: Path, tmp_path: Path) -> None:
    from edgemem.cli.main import cli

    done = CliRunner().invoke(cli, ["profile", str(programs / "rwkv4"), "--steps", "5", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    manifest = json.loads((programs / "rwkv4" / "manifest.json").read_text())
    assert {row["kernel"]: row["calls"] for row in found["kernels"]} == {
        kernel["symbol"]: kernel["calls"] for kernel in manifest["kernels"]
    }
    assert found["total_us"] == pytest.approx(sum(row["us"] for row in found["kernels"]), abs=0.1)
    touched = sum(call["weight_bytes"] + call["activation_bytes"] for call in manifest["calls"])
    assert sum(row["bytes"] for row in found["kernels"]) == touched
    refused = CliRunner().invoke(cli, ["profile", str(programs / "rwkv4"), "--runtime", "ort"])
    assert isinstance(refused.exception, UsageError)


@pytest.mark.parametrize("name", ["rwkv4", "lmu", "memformer"])
@settings(max_examples=1, derandomize=True)  # seconds of compilation each
@given(data=st.data())
def test_random_models_compile_and_match(tmp_path_factory: pytest.TempPathFactory, name: str, data: Any) -> None:
    from edgemem.export import export_model
    from edgemem.reference import rebuilt
    from tests.zoo import settings_of

    folder = tmp_path_factory.mktemp("random")
    config = data.draw(settings_of(name))
    export_model(name, folder / "m.onnx", config, seed=1, chunk=data.draw(st.integers(1, 2)))
    compiled(folder / "m.onnx", folder / "p")
    model = open_model(folder / "m.onnx")
    found = trial(rebuilt(model, stored_tensors(model)), edgemem.load(folder / "p"), 64)
    assert found.holds, (config, found.first_divergence)
