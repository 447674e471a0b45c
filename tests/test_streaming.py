"""What every model of the zoo promises: one set of weights, the same outputs however the input is cut."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgemem.errors import ConfigError
from edgemem.module import chunk, declared_states, each, scan, segment_length, start_state
from edgemem.state import StateTensor
from tests import zoo

# float32 keeps 7 digits, float64 16; sums of some hundred terms in another order lose the rest
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SHOWS = 1e-5  # an effect smaller than the tolerance of float32 would pass every comparison unseen
BATCH = 2

every_model = pytest.mark.parametrize("name", zoo.NAMES)
cuts = st.lists(st.sampled_from([1, 2, 3, 5, 40]), min_size=1, max_size=5)
counts_of_units = st.integers(1, 40)


def resumable(module: nn.Module) -> bool:
    """Whether a short chunk in mid-stream leaves a state that the stream can go on from."""
    return segment_length(module) == 1


def lands(sizes: list[int], time: int) -> bool:
    """Whether chunks of these sizes, the last one repeated, end at `time` without padding."""
    ends = list(accumulate(sizes))
    return time in ends or (time > ends[-1] and (time - ends[-1]) % sizes[-1] == 0)


@every_model
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    data=st.data(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    time=st.integers(1, 70),
    units=cuts,
    seed=st.integers(0, 99),
)
def test_any_cut_equals_the_whole(
    name: str, data: st.DataObject, dtype: torch.dtype, time: int, units: list[int], seed: int
) -> None:
    module = zoo.small(name, seed, dtype, data.draw(zoo.settings_of(name), label="settings"))
    x = zoo.inputs(module, BATCH, time, seed)
    length = segment_length(module)
    with torch.no_grad():
        y = module(x)
        stepped, end = scan(module, x, sizes=[length])
        cut, cut_end = scan(module, x, sizes=[units_ * length for units_ in units])
    assert zoo.relative(stepped, y) <= TOLERANCE[dtype]
    assert zoo.relative(cut, y) <= TOLERANCE[dtype]
    aligned = time % length == 0 and lands([units_ * length for units_ in units], time)
    if module.look_ahead == 0 and (resumable(module) or aligned):  # a flush ends a stream somewhere
        for state, tensor in end.items():
            scale = tensor.abs().max().clamp(min=1.0)
            assert (cut_end[state] - tensor).abs().max() <= TOLERANCE[dtype] * scale, state


@every_model
@settings(max_examples=10, deadline=None, derandomize=True)
@given(data=st.data(), first=counts_of_units, second=counts_of_units, seed=st.integers(0, 99))
def test_any_legal_state_goes_on(name: str, data: st.DataObject, first: int, second: int, seed: int) -> None:
    module = zoo.small(name, seed, torch.float64, data.draw(zoo.settings_of(name), label="settings"))
    length = segment_length(module)
    x = zoo.inputs(module, BATCH, (first + second) * length, seed)
    state = zoo.random_state(module, BATCH, seed)
    split = first * length
    with torch.no_grad():
        y, _ = chunk(module, x, state)
        head, middle = chunk(module, each(x, lambda u: u[:, :split]), state)
        tail, _ = chunk(module, each(x, lambda u: u[:, split:]), middle)
    assert torch.isfinite(y).all()
    assert zoo.relative(torch.cat([head, tail], dim=1), y) <= TOLERANCE[torch.float64]


@every_model
@settings(max_examples=10, deadline=None, derandomize=True)
@given(units=counts_of_units, data=st.data(), seed=st.integers(0, 99))
def test_padding_never_leaks(name: str, units: int, data: st.DataObject, seed: int) -> None:
    """Frames behind `valid` are NaN: outputs before them and the state after are those of the real frames alone."""
    module = zoo.small(name, seed, torch.float64, data.draw(zoo.settings_of(name), label="settings"))
    time = max(2, units * segment_length(module))
    time = zoo.whole(module, time)
    counts = [data.draw(st.just(0) | st.integers(0, time), label="valid") for _ in range(BATCH)]
    x, state = zoo.inputs(module, BATCH, time, seed), zoo.random_state(module, BATCH, seed)
    rows = torch.arange(time)[None] >= torch.tensor(counts)[:, None]

    def spoiled(u: Tensor) -> Tensor:
        if not u.is_floating_point():
            return torch.where(rows, torch.full_like(u, int(u.max())), u)
        mask = rows.reshape(BATCH, time, *[1] * (u.dim() - 2))
        return torch.where(mask, torch.full_like(u, float("nan")), u)

    with torch.no_grad():
        y, after = chunk(module, each(x, spoiled), state, torch.tensor(counts))
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    if not resumable(module):
        return  # a segment has no shorter twin to compare with: finite is what can be said
    for row, count in enumerate(counts):
        mine = {key: tensor[row : row + 1] for key, tensor in state.items()}
        if count:
            with torch.no_grad():
                wanted, mine = chunk(module, each(x, lambda u, r=row, n=count: u[r : r + 1, :n]), mine)
            assert zoo.relative(y[row : row + 1, :count], wanted) <= TOLERANCE[torch.float64]
        for key, tensor in mine.items():
            got = after[key][row : row + 1]
            if count == 0:
                assert torch.equal(got, tensor), f"{key} moved without a frame"
            assert (got - tensor).abs().max() <= TOLERANCE[torch.float64] * tensor.abs().max().clamp(min=1.0), key


@every_model
@pytest.mark.parametrize("at", [0, 5, 9])
def test_outputs_do_not_depend_on_the_future(name: str, at: int) -> None:
    module = zoo.small(name, 1, torch.float64)
    length = segment_length(module)
    time, ahead = 3 * max(4, length), int(module.look_ahead)
    if not getattr(module, "causal", True):
        at = zoo.whole(module, at + ahead + 1) - ahead - 1  # these look to the end of their segment
    first, second = zoo.inputs(module, BATCH, time, 1), zoo.inputs(module, BATCH, time, 2)
    keep = at + ahead + 1
    if not getattr(module, "causal", True):
        keep = zoo.whole(module, keep)  # these look to the end of the step that gives the output
    pairs = zip(*(list(x.values()) if isinstance(x, dict) else [x] for x in (first, second)), strict=True)
    spliced = [torch.cat([a[:, :keep], b[:, keep:]], dim=1) for a, b in pairs]
    other = dict(zip(first, spliced, strict=True)) if isinstance(first, dict) else spliced[0]
    with torch.no_grad():
        y, z = module(first), module(other)
    assert zoo.relative(z[:, : at + 1], y[:, : at + 1]) <= TOLERANCE[torch.float64]
    assert keep >= time or not torch.allclose(z, y), "the rest of the input must matter"


@every_model
def test_every_parameter_and_state_matters(name: str) -> None:
    """With the weights that a seed gives: one that starts at 0 behind another 0 would hide a fault in either."""
    module = zoo.fresh(name, 3, torch.float64)
    x = zoo.inputs(module, BATCH, 3 * max(4, segment_length(module)), 3)
    state = zoo.random_state(module, BATCH, 3)
    with torch.no_grad():
        y, _ = chunk(module, x, state)
        for parameter, tensor in module.named_parameters():
            kept = tensor.clone()
            tensor.add_(0.1 * torch.randn_like(tensor) * torch.where(tensor == 0, 1.0, tensor))
            assert zoo.relative(chunk(module, x, state)[0], y) > SHOWS, f"{parameter} has no effect"
            tensor.copy_(kept)
        for key, value in state.items():
            moved = value + 1 if not value.is_floating_point() else value * 0.5 + 0.05 * torch.randn_like(value)
            limit = declared_states(module)[key]
            moved = moved.clamp(limit.low, limit.high)
            if torch.equal(moved, value):
                moved = torch.full_like(value, limit.low)
            assert zoo.relative(chunk(module, x, {**state, key: moved})[0], y) > SHOWS, f"{key} has no effect"


@every_model
def test_equal_seeds_make_equal_weights_and_streams_stay_apart(name: str) -> None:
    first, second = zoo.small(name, 5), zoo.small(name, 5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    x = zoo.inputs(first, BATCH, 3 * segment_length(first), 5)
    with torch.no_grad():
        y, alone = first(x), first(each(x, lambda u: u[1:]))
    assert zoo.relative(y[1:], alone) <= TOLERANCE[torch.float32]


@every_model
def test_start_values_have_the_declared_shapes(name: str) -> None:
    module = zoo.small(name)
    states = declared_states(module)
    assert states
    for key, tensor in start_state(module, 3).items():
        assert tuple(tensor.shape) == (3, *states[key].shape)
        assert str(tensor.dtype) == f"torch.{states[key].dtype}"
        assert torch.isfinite(tensor).all()


class Average(nn.Module):
    """A user's own module: the mean so far, without edgemem's base class."""

    def __init__(self) -> None:
        super().__init__()
        self.state = (StateTensor("total", (2,)), StateTensor("count", (1,), role="counter", low=0, high=99))

    def step(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        total, count = state["total"] + x, state["count"] + 1
        return total / count, {"total": total, "count": count}


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 20))
def test_a_users_module_streams_without_a_base_class(sizes: list[int], time: int) -> None:
    x = torch.randn(3, time, 2, generator=torch.Generator().manual_seed(time))
    y, state = scan(Average(), x, sizes=sizes)
    torch.testing.assert_close(y, x.cumsum(dim=1) / torch.arange(1, time + 1)[None, :, None])
    assert state["count"].eq(time).all()


def test_states_are_declared_once_and_as_states() -> None:
    module = Average()
    module.state = (*module.state, StateTensor("total", (2,)))
    with pytest.raises(ConfigError, match="total is declared twice"):
        declared_states(module)
    module.state = ("total",)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="str came"):
        declared_states(module)
