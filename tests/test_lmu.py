"""LMU family: the held system, what the memory decodes, the three forms, padding, gradients and the spotter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgemem.cells.average import RunningAverage
from edgemem.cells.convolution import CausalConv1d
from edgemem.cells.legendre import BLOCK, LMU, SHORT, LegendreMemory, LMUCell, causal_convolution, held_system
from edgemem.errors import ConfigError
from edgemem.models import kws_lmuformer, lmu
from edgemem.module import State, StreamingModule, scan, start_state

BATCH = 2
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # of the largest value: forms differ by summation order alone
CELLS = {
    "memory": (lambda: LegendreMemory(6, 20.0), 1),
    "memory-channels": (lambda: LegendreMemory(12, 7.5, channels=3), 3),
    "cell": (lambda: LMUCell(5, 7, 6, 12.0), 5),
    "layer": (lambda: LMU(5, 6, 12.0, outputs=4, channels=2), 5),
    "conv": (lambda: CausalConv1d(4, 6, kernel=3, dilation=2), 4),
    "conv-depthwise": (lambda: CausalConv1d(5, 5, kernel=4, groups=5), 5),
    "conv-grouped": (lambda: CausalConv1d(4, 6, kernel=3, groups=2), 4),
    "conv-pointwise": (lambda: CausalConv1d(4, 6, kernel=1), 4),
    "average": (lambda: RunningAverage(3), 3),
    "average-forgetting": (lambda: RunningAverage(3, forget=0.9), 3),
    "lmu": (lambda: lmu.LMUNetwork(lmu.LMUConfig(width=9, features=5, outputs=3)), 5),
    "lmu-parallel": (
        lambda: lmu.LMUNetwork(lmu.LMUConfig(width=9, features=5, outputs=3, parallel=True, channels=2)),
        5,
    ),
    "kws-lmuformer": (lambda: kws_lmuformer.KWSLMUFormer(kws_lmuformer.KWSConfig(width=12, features=8)), 8),
}


def built(name: str, dtype: torch.dtype = torch.float64) -> tuple[StreamingModule, int]:
    make, features = CELLS[name]
    torch.manual_seed(4)
    module: StreamingModule = make().to(dtype).eval()  # type: ignore[no-untyped-call]
    return module, features


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def started(module: StreamingModule, dtype: torch.dtype = torch.float64) -> State:
    """The start state in `dtype`, also of a module that has no tensor of its own to tell."""
    return {key: value.to(dtype) for key, value in start_state(module, BATCH).items()}


def assert_close(came: Tensor, wanted: Tensor) -> None:
    bound = TOLERANCE[wanted.dtype] * float(wanted.detach().abs().max())
    torch.testing.assert_close(came, wanted, rtol=0.0, atol=bound)


def by_steps(module: StreamingModule, x: Tensor, state: State) -> tuple[Tensor, State]:
    rows = []
    for t in range(x.shape[1]):
        y, state = module.step(x[:, t], state)
        rows.append(y)
    return torch.stack(rows, dim=1), state


def taylor_held(order: int, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Ad = e^(A/theta), Bd = (sum_k (A/theta)^k / (k+1)!) B / theta by their series, elements written one by one."""
    a, b = np.zeros((order, order)), np.zeros(order)
    for i in range(order):
        b[i] = (2 * i + 1) * (-1.0) ** i / window
        for j in range(order):
            a[i, j] = (2 * i + 1) / window * (-1.0 if i < j else (-1.0) ** (i - j + 1))
    term, ad, integral = np.eye(order), np.eye(order), np.eye(order)
    for k in range(1, 200):
        term = term @ a / k
        ad, integral = ad + term, integral + term / (k + 1)
    return ad, integral @ b


@pytest.mark.parametrize(("order", "window"), [(1, 5.0), (4, 3.0), (8, 20.0), (16, 60.0), (32, 100.0)])
def test_held_system_is_the_exact_zero_order_hold(order: int, window: float) -> None:
    a, b = held_system(order, window)
    wanted_a, wanted_b = taylor_held(order, window)
    # float64; the series loses a few digits where the norm of A / theta is large
    np.testing.assert_allclose(a, wanted_a, rtol=0, atol=1e-8)
    np.testing.assert_allclose(b, wanted_b, rtol=0, atol=1e-8)


def test_first_order_memory_is_a_leaky_integrator() -> None:
    a, b = held_system(1, 5.0)
    assert a[0, 0] == pytest.approx(math.exp(-1 / 5), abs=1e-15)
    assert b[0] == pytest.approx(1 - math.exp(-1 / 5), abs=1e-15)


@pytest.mark.parametrize("delay", [0.25, 0.5, 1.0])
def test_memory_decodes_the_delayed_input(delay: float) -> None:
    window, order, time = 64.0, 12, 400
    t = torch.arange(time, dtype=torch.float64)
    signal = torch.sin(2 * math.pi * t / 90) + 0.5 * torch.cos(2 * math.pi * t / 55)
    memory = LegendreMemory(order, window).double()(signal[None, :, None])[0]
    # shifted Legendre polynomials at delay in 0..1
    read_out = torch.from_numpy(np.array([np.polynomial.Legendre.basis(i)(2 * delay - 1) for i in range(order)]))
    decoded = memory @ read_out
    shift = int(delay * window)
    # a held step stands for the time up to it, so the decoded signal is half a step ahead
    wanted = (signal[200 - shift : -1 - shift] + signal[201 - shift : time - shift]) / 2
    assert (decoded[200:-1] - wanted).abs().max() < 0.01


def test_memory_keeps_float64_after_double() -> None:
    memory = LegendreMemory(16, 30.0).double()
    assert torch.equal(memory.powers[0], torch.from_numpy(held_system(16, 30.0)[0]))


@pytest.mark.parametrize("time", [1, 7, SHORT, SHORT + 1])
def test_short_and_long_sequences_are_the_same_sum(time: int) -> None:
    draw = torch.Generator().manual_seed(time)
    u, h = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, time, 3), (time, 4)))
    wanted = np.zeros((2, time, 3, 4))
    for k in range(time):
        wanted[:, k:] += u.numpy()[:, : time - k, :, None] * h.numpy()[k]
    np.testing.assert_allclose(causal_convolution(u, h).numpy(), wanted, rtol=0, atol=1e-10)


def test_memory_is_no_parameter_and_not_in_the_checkpoint() -> None:
    memory = LegendreMemory(4, 8.0)
    assert not list(memory.parameters()) and not memory.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("time", [1, BLOCK, 45])
def test_forward_equals_step_and_chunk(name: str, dtype: torch.dtype, time: int) -> None:
    module, features = built(name, dtype)
    x = drawn(BATCH, time, features, dtype=dtype)
    wanted, after = by_steps(module, x, started(module, dtype))
    assert_close(module(x), wanted)
    came, state = scan(module, x, started(module, dtype))
    assert_close(came, wanted)
    for key in after:
        assert_close(state[key], after[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("sizes", [(1, 2, 3), (7,), (19, 1), (64,)])
def test_any_cut_from_any_state_gives_the_steps(name: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    module, features = built(name, dtype)
    state = {key: drawn(*v.shape, seed=9, dtype=dtype).abs() for key, v in started(module).items()}
    x = drawn(BATCH, 41, features, dtype=dtype)
    wanted, after = by_steps(module, x, state)
    came, last = scan(module, x, state, sizes)
    assert_close(came, wanted)
    for key in after:
        assert_close(last[key], after[key])


@pytest.mark.parametrize("name", CELLS)
def test_padding_leaves_no_trace_where_streams_end_at_different_frames(name: str) -> None:
    module, features = built(name)
    x, valid = drawn(BATCH, 11, features), torch.tensor([0, 6])
    state = {key: drawn(*v.shape, seed=9).abs() for key, v in started(module).items()}
    holed = torch.where((torch.arange(11)[None] < valid[:, None])[..., None], x, torch.nan)
    y, after = module.chunk(holed, state, valid)
    wanted, state_six = by_steps(module, x[:, :6], state)
    assert_close(y[1, :6], wanted[1])
    for key, value in after.items():
        assert torch.equal(value[0], state[key][0])
        assert_close(value[1], state_six[key][1])


@pytest.mark.parametrize("name", CELLS)
def test_every_parameter_and_every_state_matters(name: str) -> None:
    module, features = built(name)
    x, state = drawn(BATCH, 30, features), {k: v + 0.1 for k, v in started(module).items()}
    wanted = scan(module, x, state)[0]
    for key in state:
        assert not torch.equal(scan(module, x, {**state, key: state[key] + 0.1})[0], wanted), key
    for key, parameter in module.named_parameters():
        saved = parameter.detach().clone()
        with torch.no_grad():
            # one-sided, so that a shift before a norm shows
            parameter.add_(0.1 * torch.arange(1, saved.numel() + 1).reshape(saved.shape) / saved.numel())
            assert not torch.equal(scan(module, x, state)[0], wanted), key
            parameter.copy_(saved)


@pytest.mark.parametrize("name", CELLS)
def test_later_input_never_reaches_back(name: str) -> None:
    module, features = built(name)
    x = drawn(BATCH, 40, features)
    changed = torch.cat([x[:, :25], x[:, 25:] + 1.0], dim=1)
    y, z = (scan(module, u, started(module), (40,))[0] for u in (x, changed))
    assert_close(z[:, :25], y[:, :25])
    assert (y[:, 25:] - z[:, 25:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name in CELLS if name.split("-")[0] not in ("memory", "average")])
def test_gradients_of_the_parallel_form_are_those_of_the_steps(name: str) -> None:
    module, features = built(name)
    x = drawn(BATCH, 20, features)
    grads = []
    for y in (module(x), by_steps(module, x, started(module))[0]):
        module.zero_grad()
        (y * y).sum().backward()
        grads.append({key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None})
    assert grads[0].keys() == dict(module.named_parameters()).keys()
    for key, value in grads[0].items():
        assert_close(value, grads[1][key])


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_is_torchs_with_padding_on_the_left(groups: int, dilation: int) -> None:
    conv = CausalConv1d(4, 4, kernel=3, dilation=dilation, groups=groups).double()
    nn.init.normal_(conv.bias)
    x = drawn(BATCH, 15, 4)
    weight = conv.weight.reshape(4, 3, 4 // groups).transpose(1, 2)
    left = nn.functional.pad(x.transpose(1, 2), (2 * dilation, 0))
    wanted = nn.functional.conv1d(left, weight, conv.bias, dilation=dilation, groups=groups).transpose(1, 2)
    assert_close(conv(x), wanted)


def test_average_is_the_mean_of_all_frames_so_far() -> None:
    x = drawn(BATCH, 700, 3)
    wanted = torch.cumsum(x, dim=1) / torch.arange(1, 701)[None, :, None]
    assert_close(RunningAverage(3)(x), wanted)


def test_forgetting_average_weighs_frames_by_age() -> None:
    x = drawn(1, 50, 1)
    weights = torch.tensor([0.8 ** (49 - k) for k in range(50)], dtype=torch.float64)
    wanted = (x[0, :, 0] * weights).sum() / weights.sum()
    assert float(RunningAverage(1, forget=0.8)(x)[0, -1, 0]) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("forget", [0.5, 0.999, 1.0])
def test_average_of_a_constant_stays_exact_over_a_long_stream(forget: float) -> None:
    y = RunningAverage(1, forget=forget)(torch.full((1, 20_000, 1), 0.3))
    torch.testing.assert_close(y, torch.full_like(y, 0.3), rtol=1e-5, atol=0.0)  # float32 sums of 20 000 terms


def test_cell_stays_bounded_and_alive_over_a_long_stream() -> None:
    cell, features = built("cell", torch.float32)
    y = scan(cell, drawn(1, 3000, features, dtype=torch.float32))[0]
    assert torch.isfinite(y).all() and y[:, -100:].std() > 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LegendreMemory(0, 5.0), "order=0"),
        (lambda: LegendreMemory(4, 0.0), "window=0.0"),
        (lambda: CausalConv1d(4, 6, groups=4), "groups=4"),
        (lambda: RunningAverage(3, forget=1.5), "got 1.5"),
        (lambda: lmu.LMUConfig(channels=2), "parallel=true"),
        (lambda: lmu.LMUConfig(layers=0), "layers must be at least 1"),
        (lambda: kws_lmuformer.KWSConfig(forget=0.0), "got 0.0"),
        (lambda: kws_lmuformer.KWSConfig(features=81), "got 81"),
        (lambda: kws_lmuformer.KWSConfig(window=0.5), "got 0.5"),
    ],
)
def test_sizes_that_cannot_work_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_spotter_is_small_and_says_what_it_reads_and_writes() -> None:
    spotter = kws_lmuformer.KWSLMUFormer(kws_lmuformer.KWSConfig())
    assert sum(p.numel() for p in spotter.parameters()) <= 150_000
    assert spotter.inputs[0].frontend is not None and spotter.inputs[0].shape == (80,)
    assert spotter.outputs[0].labels is not None and len(spotter.outputs[0].labels) == 12
    assert spotter.seconds_per_frame == 0.02
