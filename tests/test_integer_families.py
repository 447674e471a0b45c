"""The integer step of every family: C on this machine and on boards gives the bytes of NumPy, near those of float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.program import Array, Program
from edgemem.runtimes.integer.lower import lowered
from edgemem.runtimes.integer.reference import IntegerProgram
from edgemem.runtimes.integer.states import as_integers
from edgemem.trial import random_inputs, random_state, trial
from edgemem.verify import FEW_STEPS, INT8_STEP
from tests.firmware import manifest, needs
from tests.integer_programs import FAMILIES, MORE, on_host, quantized

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
BOARDS = ("mps2_an386", "mps2_an500", "riscv32_virt")
FLOAT_KINDS = {"quantize", "dequantize", "wide", "wide_sum", "exponential", "move", "select", "compare", "cast"}
SEEDS = st.integers(0, 2**32 - 1)
MODELS = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def pairs(folder: Path) -> dict[str, tuple[IntegerProgram, Program]]:
    """The step in NumPy and in C, by model; filled at first use."""
    return {}


def pair(name: str, folder: Path, pairs: dict[str, tuple[IntegerProgram, Program]]) -> tuple[IntegerProgram, Program]:
    if name not in pairs:
        path = quantized(name, (FAMILIES | MORE)[name], folder)
        pairs[name] = IntegerProgram(path), on_host(path, folder / f"{name}-c")
    return pairs[name]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=SEEDS)
def test_c_gives_the_bytes_of_numpy(
    name: str,
    seed: int,
    folder: Path,
    pairs: dict[str, tuple[IntegerProgram, Program]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A free run of outputs and states, from the start and from a random state; nothing undefined happens in C."""
    reference, program = pair(name, folder, pairs)
    rng = np.random.default_rng(seed)
    here, there = reference.new_state(), program.new_state()
    assert_same(here.held, there.get())  # type: ignore[attr-defined]
    for index in range(12):
        if index == 6:
            start = {state.name: random_state(state, rng) for state in reference.contract.states}
            here.set(start)
            there.set(as_integers(start, reference._plan.scales))
        inputs = random_inputs(reference.contract, rng)
        wanted = reference.step(inputs, here)
        assert_same(wanted, program.step(inputs, there))
        assert_same(here.held, there.get())  # type: ignore[attr-defined]
    assert "runtime error" not in capfd.readouterr().err


def assert_same(wanted: dict[str, Array], came: dict[str, Array]) -> None:
    """Equal bytes, tensor by tensor."""
    assert wanted.keys() == came.keys()
    for name, value in wanted.items():
        assert value.dtype == came[name].dtype, name
        np.testing.assert_array_equal(value.reshape(-1), came[name].reshape(-1), err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_integers_is_near_the_step_in_float(
    name: str, folder: Path, pairs: dict[str, tuple[IntegerProgram, Program]]
) -> None:
    """From onnxruntime's state, every output and state is within four steps of eight bits of it."""
    reference, _ = pair(name, folder, pairs)
    float_program = edgemem.load(quantized(name, (FAMILIES | MORE)[name], folder))
    found = trial(float_program, reference, 48, relative=INT8_STEP * FEW_STEPS, together=True)
    assert found.holds, found.first_divergence


@pytest.mark.parametrize("name", MODELS)
def test_nothing_but_the_ends_and_wide_states_is_float(
    name: str, folder: Path, pairs: dict[str, tuple[IntegerProgram, Program]]
) -> None:
    """States that are not declared wide are int16; between rounding and the end, operations read and write integers."""
    reference, _ = pair(name, folder, pairs)
    step = lowered(reference.model)
    wide = {s.name for s in reference.contract.states if s.quant.get("wide")}
    assert set(step.scales) == {s.name for s in reference.contract.states} - wide
    for operation in step.operations:
        dtypes = {tensor.dtype for tensor in (*operation.reads, operation.write)}
        assert "float32" not in dtypes or operation.kind in FLOAT_KINDS, operation.kind
        if not wide and operation.kind != "quantize" and "float32" in dtypes:
            assert operation.write in step.results.values(), operation.kind


def test_a_cache_is_shifted_where_it_lies(folder: Path, pairs: dict[str, tuple[IntegerProgram, Program]]) -> None:
    """Caches, slots and wide states have one place; a second one is kept only where waiting in the arena costs more."""
    from edgemem.runtimes.integer.generate import generated

    for name in FAMILIES:
        plan = generated(quantized(name, FAMILIES[name], folder), "model").source.plan
        twice = {state for state, slot in plan.states.items() if slot.second is not None}
        assert not {state for state in twice if "attend" in state or "memory" in state or "wkv" in state}, name
        held = sum(slot.first.nbytes for slot in plan.states.values())
        assert plan.state_bytes <= 16 + held + sum(plan.states[s].first.nbytes for s in twice) + 16 * len(plan.states)


@pytest.mark.slow
@pytest.mark.parametrize("board_name", BOARDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_same_bytes_on_boards(
    name: str, board_name: str, folder: Path, pairs: dict[str, tuple[IntegerProgram, Program]]
) -> None:
    from edgemem.boards import board
    from edgemem.runtimes.aot.compiler import compile_model
    from edgemem.runtimes.firmware.proof import first_difference

    needs(board_name)
    reference, _ = pair(name, folder, pairs)
    output = folder / f"{name}-{board_name}"
    compile_model(quantized(name, FAMILIES[name], folder), board(board_name), output, name="model")
    facts = manifest(output)
    assert facts["integer"]["step"], facts["integer"]["reason"]
    for part in ("state", "arena", "io", "stack"):
        assert facts["budget"]["predicted"]["ram"][part] == facts["budget"]["linked"]["ram"][part], part
    assert facts["bytes"]["arena"] <= 1.15 * facts["bytes"]["arena_lower_bound"]
    assert first_difference(edgemem.load(output), reference, 6, seed=0) is None
