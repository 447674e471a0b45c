"""What is asked for ahead of many rows' products: all of the next panel, and nothing where it would not help."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tvm", reason="apache-tvm is not installed: pip install 'edgemem[tvm]'")
from tvm import te, tirx
from tvm.ir import Call

from edgemem.boards import board
from edgemem.runtimes.aot import ahead, legalize
from edgemem.runtimes.aot.lowering import lowered
from edgemem.runtimes.aot.machine import Machine, machine
from edgemem.runtimes.aot.schedules import matmul, scheduled
from tests.aot_kernels import HOST


def asked(weights: Any, extents: list[int], panel: int) -> list[int]:
    """Elements whose lines all turns over one panel ask for."""
    found = []
    for turn in itertools.product(*map(range, extents[1:])):
        loops = [
            SimpleNamespace(extent=extent, loop_var=tirx.const(at, "int32"))
            for extent, at in zip(extents, (panel, *turn), strict=True)
        ]
        for statement in ahead.lines(weights, loops):
            address = next(arg for arg in statement.value.args if isinstance(arg, Call))
            found.append(int(address.args[0].indices[0]))
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 5), st.integers(2, 4), st.integers(1, 9), st.integers(1, 40), st.sampled_from(["float32", "int8"])
)
def test_all_turns_ask_for_every_line_of_the_next_panel(
    panels: int, tiles: int, over: int, lines: int, dtype: str
) -> None:
    in_line = ahead.LINE_BYTES // (4 if dtype == "float32" else 1)
    size = lines * in_line
    weights = tirx.decl_buffer((panels * size,), dtype)
    found = asked(weights, [panels, tiles, over], 1)
    wanted = range(2 * size, 3 * size, in_line)
    assert set(wanted) <= set(found)
    assert len(found) == len(set(found)) < lines + tiles * over


def text_of(rows: int, core: Machine, columns: int = 256, width: int = 64) -> str:
    """The lowered product of so many rows."""
    panel = matmul.panel_of(core, rows, columns)
    left = te.placeholder((rows, width), "float32")
    right = te.placeholder((panel.count, width, panel.columns), "float32")
    y = legalize.packed_product(left, right, (rows, columns), panel)
    function, _ = scheduled(te.create_prim_func([left, right, y]), core)
    return str(lowered(function, "probe", core).function)


def test_many_rows_ask_and_one_does_not() -> None:
    assert text_of(64, HOST).count("llvm.prefetch") > 0
    assert "llvm.prefetch" not in text_of(1, HOST)
    assert "llvm.prefetch" not in text_of(64, HOST, columns=16)  # one panel: there is no next one


def test_a_core_without_caches_is_not_told_to_fill_them() -> None:
    assert "llvm.prefetch" not in text_of(64, machine(board("mps2_an500")))
