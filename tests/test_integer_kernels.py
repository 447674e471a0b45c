"""Integer kernels one by one: C gives the bytes of NumPy for any input, and both give what the real function gives."""

from __future__ import annotations

import ctypes
import math
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemem.runtimes.aot.graph import Tensor
from edgemem.runtimes.integer import powers
from edgemem.runtimes.integer.factors import whole_numbers
from edgemem.runtimes.integer.generate import SHARED, function
from edgemem.runtimes.integer.operation import Array, Operand, Operation, Out
from edgemem.runtimes.integer.operators import arithmetic, curves, moves, norms, products, rows, whole, wide
from edgemem.runtimes.integer.values import places_of
from edgemem.runtimes.integer.views import pieces
from tests.integer_programs import SANITIZED

BYTE, WORD = Out("int8", -3, -128, 127), Out("int16", 0, -32768, 32767)
SIGMOID = curves.FUNCTIONS["Sigmoid"]


def tensor(number: int, *shape: int, dtype: str = "int16") -> Tensor:
    return Tensor(number, "call", "", shape, dtype)


def operand(number: int, shape: tuple[int, ...], of: tuple[int, ...], dtype: str = "int16", zero: int = 0) -> Operand:
    """A buffer of shape `of`, transposed where it has the extents of `shape` the other way round, else repeated."""
    places = places_of(number, of)
    places = places.T if of == shape[::-1] and of != shape else places
    return Operand(tensor(number, *of, dtype=dtype), np.broadcast_to(places, shape), zero)


def moved() -> Operation:
    """[3, 4] beside [3, 2], the second one turned: pieces of two buffers, neither of which is one stretch."""
    places = np.concatenate([places_of(0, (3, 4)), places_of(1, (2, 3)).T], axis=1)
    parts = pieces(places)
    assert parts is not None and len(parts) == 2
    return moves.move(
        parts, [(tensor(0, 3, 4), tensor(1, 2, 3))[p.view.buffer] for p in parts], (3, 6), tensor(2, 3, 6)
    )


def operations() -> dict[str, Operation]:
    """Every kernel, with extents that no block of it divides."""
    a, b, row = operand(0, (5, 7), (7, 5), zero=3), operand(1, (5, 7), (5, 7)), operand(1, (5, 7), (7,), zero=-9)
    line, short = operand(0, (9,), (9,)), operand(1, (9,), (1,))
    f, g = operand(0, (9,), (9,), "float32"), operand(1, (9,), (1,), "float32")
    count, mask = operand(0, (9,), (9,), "int64"), operand(0, (9,), (9,), "int8")
    columns = tuple(tensor(index, 5, dtype="int32") for index in (2, 3, 4))
    table, shift = curves.tabled(lambda x: SIGMOID(x) / 2.0**-14, 7, 2.0**-12, WORD)
    assert table.shape == (513,)
    return {
        "sum": arithmetic.sum_of_terms([(911, [a, b]), (-77003, [row])], tensor(3, 5, 7), 24, WORD),
        "scale": arithmetic.sum_of_terms([(1 << 28, [a])], tensor(3, 5, 7, dtype="int8"), 34, BYTE),
        "quotient": arithmetic.quotient(a, b, tensor(3, 5, 7), 3 << 28, 22, WORD),
        "by_row": arithmetic.quotient(a, row, tensor(3, 5, 7, dtype="int8"), 1 << 29, 29, BYTE),
        "row_sum": arithmetic.sum_of_rows(tensor(0, 5, 7), 0, tensor(1, 5), 7, 4, 12345, 17, WORD),
        "root": arithmetic.root(line, tensor(1, 9), 1 << 24, 11, WORD),
        "product8": products.product8(tensor(0, 3, 11, dtype="int8"), 0, tensor(1, 5, 11, dtype="int8"), columns,  # type: ignore[arg-type]
                                      tensor(5, 3, 5), 11, 40, WORD),
        "product16": products.product16(tensor(0, 3, 11), 0, tensor(1, 5, 11), tensor(2, 5, dtype="int32"),
                                        tensor(3, 3, 5, dtype="int8"), 11, 50, BYTE),
        "pair": products.pair((tensor(0, 2, 3, 11, dtype="int8"), 0), (tensor(1, 2, 6, 11, dtype="int8"), 0),
                              tensor(2, 2, 3, 6), (2, 3, 11, 6), (-128, 5), 1 << 20, 21, WORD),
        "pair16": products.pair16((tensor(0, 2, 3, 11), 0), (tensor(1, 2, 7, 11), 0), tensor(2, 2, 3, 7),
                                  (2, 3, 11, 7), 1 << 26, 50, WORD),
        "softmax": norms.softmax(tensor(0, 3, 13), 0, tensor(1, 3, 13, dtype="int8"), 13, *softmax_step(2.0**-9),
                                 *softmax_factor(1 / 255), Out("int8", -128, -128, 127)),
        "curve": curves.curve(line, Tensor(1, "constant", "", table.shape, "int16"), tensor(2, 9), 7, shift, WORD),
        "take": rows.take_scaled(operand(0, (4,), (4,), "int64"), tensor(1, 6, 7, dtype="int8"),
                                 tensor(2, 6, dtype="int32"), tensor(3, 4, 7), 12, WORD),
        "taken": rows.take(operand(0, (4,), (4,), "int64"), tensor(1, 6, 7), tensor(2, 4, 7)),
        "quantize": wide.quantize(tensor(0, 9, dtype="float32"), 0, tensor(1, 9, dtype="int8"), 0.37, BYTE),
        "dequantize": wide.dequantize(line, tensor(1, 9, dtype="float32"), 0.37),
        "exponential": wide.exponential(tensor(0, 9, dtype="float32"), 0, tensor(1, 9, dtype="float32")),
        **{f"wide{index}": wide.binary(sign, f, g, tensor(2, 9, dtype="float32"))
           for index, sign in enumerate(wide.OPERATORS)},
        "wide_sum": wide.sum_of_rows(tensor(0, 5, 7, dtype="float32"), 0, tensor(1, 5, dtype="float32"), 7),
        "compare": whole.compare("<", np.less, count, operand(1, (9,), (1,), "int8"), tensor(2, 9, dtype="int8")),
        "select": whole.select(mask, operand(1, (9,), (9,)), operand(2, (9,), (1,)), tensor(3, 9)),
        "clip": whole.clip(count, -2, 6, tensor(1, 9, dtype="int64")),
        "count": whole.total(count, operand(1, (9,), (1,), "int64"), -1, tensor(2, 9, dtype="int64")),
        "move": moved(),
        "gather": moves.gather(tensor(0, 9), tensor(1, 5, dtype="int32"), tensor(2, 5)),
        "least": arithmetic.sum_of_terms([(1, [line]), (1, [short])], tensor(2, 9), 1, WORD),
    }  # fmt: skip


def softmax_step(scale: float) -> tuple[int, int]:
    steps, bits = whole_numbers(np.array([scale / math.log(2)]), 31)
    return int(steps[0]), bits


def softmax_factor(scale: float) -> tuple[int, int]:
    factor, shift = whole_numbers(np.array([1 / scale]), 31)
    return int(factor[0]), shift + 29


OPERATIONS = operations()
INDEX = {"take": 6, "taken": 6, "gather": 9}  # kernels that read by index, and how much there is to choose from


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Every kernel in C, with the sanitizer for undefined behaviour."""
    from importlib import resources

    folder = tmp_path_factory.mktemp("kernels")
    for name in SHARED:
        text = resources.files("edgemem.runtimes.integer").joinpath("c", name).read_text()
        (folder / name).write_text(text)
    functions = "\n".join(function(f"k_{name}", operation) for name, operation in OPERATIONS.items())
    (folder / "kernels.c").write_text(f'#include "edgemem_integer.h"\n#include <string.h>\n{functions}')
    sources = ["kernels.c", *(name for name in SHARED if name.endswith(".c"))]
    strict = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter")
    subprocess.run(["gcc", *SANITIZED, *strict, *sources, "-o", "kernels.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "kernels.so"))


def random_array(tensor: Tensor, rng: np.random.Generator, most: int | None) -> Array:
    """Any values of a type: small ones, large ones, both ends."""
    count, kind = math.prod(tensor.shape), np.dtype(tensor.dtype)
    if kind == np.float32:
        values: Array = (rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)).astype(np.float32)
        values[rng.random(count) < 0.1] = rng.choice([0.0, -1e30, 1e30, 89.0, -88.0, 1e-40])
        return values
    if most is not None and tensor.dtype in ("int64", "int32") and tensor.number in (0, 1):
        return rng.integers(0, most, count).astype(kind)
    if tensor.dtype == "int64":
        return rng.integers(-9, 9, count)
    limits = np.iinfo(kind)
    low, high = (-(2**20), 2**20) if tensor.dtype == "int32" else (limits.min, limits.max)
    if rng.random() < 0.3:
        low, high = low // 64, high // 64
    values = rng.integers(low, high, count, endpoint=True).astype(kind)
    values[rng.random(count) < 0.1] = rng.choice([low, high, 0])
    return values


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_c_gives_the_bytes_of_numpy(
    name: str, seed: int, library: ctypes.CDLL, capfd: pytest.CaptureFixture[str]
) -> None:
    operation, rng = OPERATIONS[name], np.random.default_rng(seed)
    given_ = [random_array(t, rng, INDEX.get(name)) for t in operation.reads]
    wanted = operation.run([array.copy() for array in given_])
    came = np.full(math.prod(operation.write.shape), -1, operation.write.dtype)
    scratch = [np.zeros(operation.work_bytes, np.uint8)] if operation.work_bytes else []
    library[f"k_{name}"](*(ctypes.c_void_p(array.ctypes.data) for array in (*given_, came, *scratch)))
    assert wanted.dtype == came.dtype and wanted.tobytes() == came.tobytes(), (wanted, came)
    assert "runtime error" not in capfd.readouterr().err
    for index in operation.in_place:  # the result over what is read
        given_[index] = np.array(given_[index])
        pointers = [array.ctypes.data for array in (*given_, given_[index], *scratch)]
        library[f"k_{name}"](*map(ctypes.c_void_p, pointers))
        assert given_[index].tobytes() == wanted.tobytes()
        break


def test_kernels_that_may_write_over_what_they_read() -> None:
    """Only those that read the element that they write, or read it before they write there."""
    found = {name for name, operation in OPERATIONS.items() if operation.in_place}
    assert {"root", "curve", "clip", "count", "least", "select"} <= found
    assert not found & {"move", "gather", "row_sum", "softmax", "product8", "pair", "compare", "quantize"}
    back, forth = (np.roll(np.arange(6), by)[:6] for by in (-2, 2))
    for places, safe in ((back[:4], True), (forth[2:], True), (forth, False)):
        shifted = np.concatenate([places, 6 + np.arange(6 - len(places))])
        in_two = np.where(shifted < 6, shifted, (1 << 32) + shifted - 6)
        parts = pieces(in_two)
        assert parts is not None
        tensors = [tensor(0, 6) if p.view.buffer == 0 else tensor(1, 6) for p in parts]
        assert (0 in moves.move(parts, tensors, (6,), tensor(2, 6)).in_place) is safe


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.floats(2.0**-12, 0.2))
def test_softmax_in_integers_is_softmax(seed: int, count: int, scale: float) -> None:
    """Within a step of eight bits, of sixteen it is within two; a row of equal elements is uniform."""
    x = np.random.default_rng(seed).integers(-32768, 32768, (3, count)).astype(np.int16)
    x[0] = x[0, 0]
    wide_x = x.astype(np.float64) * scale
    wanted = np.exp(wide_x - wide_x.max(1, keepdims=True))
    wanted /= wanted.sum(1, keepdims=True)
    for out, step, near in ((Out("int8", -128, -128, 127), 1 / 255, 0.51), (WORD, 2.0**-15, 0.52)):
        target = tensor(1, 3, count, dtype=out.dtype)
        operation = norms.softmax(
            tensor(0, 3, count), 0, target, count, *softmax_step(scale), *softmax_factor(step), out
        )
        came = (operation.run([x.reshape(-1)]).reshape(3, count).astype(np.float64) - out.zero) * step
        np.testing.assert_allclose(came, np.minimum(wanted, (out.high - out.zero) * step), atol=near * step)


@given(st.floats(-87.0, 88.0, width=32))
def test_the_exponential_of_float32_is_within_two_units_of_the_last_place(x: float) -> None:
    came = float(powers.exponential(np.array([x], np.float32))[0])
    true = math.exp(np.float32(x))
    assert abs(came - true) <= 2 * float(np.spacing(np.float32(true)))


def test_the_exponential_at_the_ends() -> None:
    x = np.array([0.0, -0.0, -1e30, -np.inf, -104.0, 90.0, np.inf, 1e-45], np.float32)
    assert powers.exponential(x).tolist() == [1, 1, 0, 0, 0, np.inf, np.inf, 1]
    assert np.isnan(powers.exponential(np.array([np.nan], np.float32))[0])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_a_quotient_in_integers_is_a_quotient(seed: int, ratio: float) -> None:
    """To the nearest step, clamped; nothing over nothing is nothing."""
    rng = np.random.default_rng(seed)
    a, b = (
        rng.integers(-(2 ** int(rng.integers(1, 16))), 2 ** int(rng.integers(1, 15)), 9).astype(np.int16) for _ in "ab"
    )
    a[0] = b[0] = 0
    shift = 29 - math.floor(math.log2(ratio))
    operation = arithmetic.quotient(
        operand(0, (9,), (9,)), operand(1, (9,), (9,)), tensor(2, 9), round(ratio * 2.0**shift), shift, WORD
    )
    came = operation.run([a, b])
    with np.errstate(all="ignore"):
        wanted = np.clip(np.nan_to_num(a / b.astype(np.float64) * ratio, nan=0.0), -32768, 32767)
    np.testing.assert_allclose(came, wanted, atol=0.501)


@pytest.mark.parametrize(("name", "reach"), [("Sigmoid", 12.0), ("Tanh", 6.0), ("Exp", 4.0), ("Softplus", 9.0)])
@pytest.mark.parametrize("out", [BYTE, WORD])
def test_a_table_is_within_a_step_of_its_curve(name: str, reach: float, out: Out) -> None:
    """For every one of the 65,536 inputs; and half as many entries would not do, or the table is the shortest."""
    every, scale = np.arange(-32768, 32768).astype(np.int16), reach / 32768
    step = float(np.abs(curves.FUNCTIONS[name](np.array([-reach, reach]))).max()) / 120 / (1 if out is BYTE else 200)
    true = np.clip(curves.FUNCTIONS[name](every * scale) / step + out.zero, out.low, out.high)

    def errors(bits: int) -> float:
        table, shift = curves.tabled(lambda x: curves.FUNCTIONS[name](x) / step, bits, scale, out)
        x = operand(0, every.shape, every.shape)
        constant = Tensor(1, "constant", "", table.shape, "int16")
        made = curves.curve(x, constant, tensor(2, *every.shape, dtype=out.dtype), bits, shift, out)
        return float(np.abs(made.run([every, table]) - true).max())

    assert errors(curves.NARROWEST + 2) <= curves.NEAR < errors(14)
