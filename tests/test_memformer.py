"""Memformer: who attends whom, what a segment writes, what is forgotten, and what padding must not touch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgemem.cells.memformer import DecoderLayer, MemoryEncoder, SlotWriter
from edgemem.errors import ConfigError
from edgemem.models import memformer as models
from edgemem.module import scan

SLOTS, WIDTH, HEADS, SEGMENT, BATCH = 5, 12, 3, 6, 2
SIZES = {"layers": 2, "width": WIDTH, "heads": HEADS, "slots": SLOTS, "segment": SEGMENT}
# forms differ by summation order alone
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def writer(temperature: float = 0.5) -> SlotWriter:
    torch.manual_seed(1)
    return SlotWriter(SLOTS, WIDTH, HEADS, temperature).double()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tokens(time: int, vocab: int = 11, seed: int = 0) -> Tensor:
    return torch.randint(vocab, (BATCH, time), generator=torch.Generator().manual_seed(seed))


def built(name: str, **settings: object) -> models.SegmentModel:
    spec = next(spec for spec in models.MODELS if spec.name == name)
    torch.manual_seed(3)
    return spec.build(spec.config(**{**SIZES, **settings})).double().eval()


@pytest.mark.parametrize("slot", range(SLOTS))
def test_a_slot_sees_itself_and_no_other_slot(slot: int) -> None:
    write, memory, encoded = writer(), drawn(BATCH, SLOTS, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    before = write.written(memory, encoded)
    changed = memory.clone()
    changed[:, slot] += 0.5
    moved = (write.written(changed, encoded) - before).abs().amax(dim=(0, 2))
    others = [i for i in range(SLOTS) if i != slot]
    assert torch.equal(moved[others], torch.zeros(SLOTS - 1, dtype=torch.float64))
    assert moved[slot] > 1e-3


@pytest.mark.parametrize("frame", range(SEGMENT))
def test_every_slot_sees_every_frame(frame: int) -> None:
    write, memory, encoded = writer(), drawn(BATCH, SLOTS, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    changed = encoded.clone()
    changed[:, frame] += 0.5
    moved = (write.written(memory, changed) - write.written(memory, encoded)).abs().amax(dim=2)
    assert (moved > 1e-9).all()


def test_a_slot_that_sees_only_itself_keeps_what_it_holds() -> None:
    write, memory, encoded = writer(), drawn(BATCH, SLOTS, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    nothing = torch.zeros(BATCH, SEGMENT, dtype=torch.bool)
    assert torch.equal(write.written(memory, encoded, nothing), memory)


def test_attention_weights_sum_to_one_over_the_slot_and_the_real_frames() -> None:
    write, memory, encoded = writer(), drawn(BATCH, SLOTS, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    real = torch.arange(SEGMENT)[None] < torch.tensor([[4], [1]])
    weights = write.attention(memory, encoded, real)
    assert weights.shape == (BATCH, HEADS, SLOTS, 1 + SEGMENT)
    assert (weights[0, ..., 5:] == 0).all() and (weights[1, ..., 2:] == 0).all()
    assert (weights[0, ..., :5] > 0).all() and (weights[1, ..., :2] > 0).all()
    torch.testing.assert_close(weights.sum(dim=3), torch.ones(BATCH, HEADS, SLOTS, dtype=torch.float64), **CLOSE)


def test_a_lower_temperature_attends_more_sharply() -> None:
    memory, encoded = drawn(BATCH, SLOTS, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    peaks = [writer(t).attention(memory, encoded, None).amax(dim=3).mean() for t in (2.0, 0.5, 0.05)]
    assert peaks[0] < peaks[1] < peaks[2]


def test_forgetting_adds_the_bias_and_normalises() -> None:
    write, memory, encoded = writer(), drawn(BATCH, SLOTS, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    after = write(memory, encoded)
    torch.testing.assert_close(after.norm(dim=2), torch.ones(BATCH, SLOTS, dtype=torch.float64), **CLOSE)
    biased = write.written(memory, encoded) + write.bias
    torch.testing.assert_close(after * biased.norm(dim=2, keepdim=True), biased, **CLOSE)


def test_memory_starts_at_the_normalised_bias() -> None:
    model = built("lm-memformer", vocab=11)
    bias = model.encoder.write.bias
    start = model.start(BATCH)["encoder.memory"]
    assert start.shape == (BATCH, SLOTS, WIDTH)
    for stream in start:
        torch.testing.assert_close(stream, bias / bias.norm(dim=1, keepdim=True), **CLOSE)
    start[0, 0, 0].backward()
    assert bias.grad is not None and bias.grad.abs().max() > 0


@pytest.mark.parametrize("layer", range(2))
def test_every_layer_reads_the_memory(layer: int) -> None:
    model = built("memformer", features=4)
    x = drawn(BATCH, SEGMENT, 4)
    for other in range(2):
        if other != layer:
            torch.nn.init.zeros_(model.encoder.layers[other].read.out.weight)
    memory = model.start(BATCH)
    moved = {"encoder.memory": memory["encoder.memory"].flip(1) + 0.1}
    assert (model.step(x, memory)[0] - model.step(x, moved)[0]).abs().max() > 1e-4


def test_no_layer_reads_when_no_read_is_let_out() -> None:
    model = built("memformer", features=4)
    for layer in model.encoder.layers:
        torch.nn.init.zeros_(layer.read.out.weight)
    x, memory = drawn(BATCH, SEGMENT, 4), model.start(BATCH)
    moved = {"encoder.memory": memory["encoder.memory"] + 0.1}
    assert torch.equal(model.step(x, memory)[0], model.step(x, moved)[0])


@pytest.mark.parametrize("real", range(1, SEGMENT + 1))
def test_padding_of_nan_leaks_nowhere(real: int) -> None:
    model = built("memformer", features=4)
    state, x = model.start(BATCH), drawn(BATCH, SEGMENT, 4)
    wanted, memory = model.step(x[:, :real], state)
    x[:, real:] = float("nan")
    y, after = model.step(x, state, torch.full((BATCH,), real))
    torch.testing.assert_close(y[:, :real], wanted, **CLOSE)
    torch.testing.assert_close(after, memory, **CLOSE)
    assert y.isfinite().all()


def test_each_stream_of_a_batch_has_its_own_count() -> None:
    model = built("memformer", features=4)
    state, x, counts = model.start(3), drawn(3, SEGMENT, 4), (SEGMENT, 0, 2)
    for row, count in enumerate(counts):
        x[row, count:] = float("nan")
    y, after = model.step(x, state, torch.tensor(counts))
    assert y.isfinite().all()
    assert torch.equal(after["encoder.memory"][1], state["encoder.memory"][1])  # nothing came: not a bit changes
    for row in (0, 2):
        alone, memory = model.step(x[row : row + 1, : counts[row]], model.start(1))
        torch.testing.assert_close(y[row : row + 1, : counts[row]], alone, **CLOSE)
        torch.testing.assert_close(after["encoder.memory"][row : row + 1], memory["encoder.memory"], **CLOSE)


def test_gradients_are_finite_under_nan_padding() -> None:
    model = built("memformer", features=4)
    x = drawn(BATCH, SEGMENT, 4)
    x[:, 3:] = float("nan")
    y, after = model.step(x, model.start(BATCH), torch.full((BATCH,), 3))
    (y[:, :3].square().sum() + after["encoder.memory"].sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_last_segment_teaches_the_first_through_the_memory() -> None:
    model = built("memformer", features=4)
    x = drawn(BATCH, 3 * SEGMENT, 4).requires_grad_()
    model(x)[:, 2 * SEGMENT :].square().sum().backward()
    assert x.grad is not None and (x.grad[:, :SEGMENT].abs().amax(dim=2) > 0).all()


@pytest.mark.parametrize("name", ["lm-memformer", "memformer"])
@pytest.mark.parametrize("time", [1, SEGMENT - 1, SEGMENT, 2 * SEGMENT + 3])
def test_whole_sequence_equals_segments_with_a_padded_tail(name: str, time: int) -> None:
    model = built(name, vocab=11)
    x = tokens(time)
    torch.testing.assert_close(scan(model, x, sizes=[SEGMENT, 2 * SEGMENT])[0], model(x), **CLOSE)


@pytest.mark.parametrize("place", range(2 * SEGMENT))
def test_language_model_is_causal(place: int) -> None:
    model = built("lm-memformer", vocab=11)
    x = tokens(3 * SEGMENT)
    changed = x.clone()
    changed[:, place] = (x[:, place] + 1) % 11
    moved = (model(changed) - model(x)).abs().amax(dim=(0, 2))
    assert (moved[:place] == 0).all()  # same sums in the same order
    assert (moved[place : SEGMENT * (place // SEGMENT + 1)] > 1e-9).all()  # the rest of the segment
    assert (moved[SEGMENT * (place // SEGMENT + 1) :] > 1e-12).all()  # later segments, through the memory


def test_encoder_looks_both_ways_inside_its_segment_alone() -> None:
    model = built("memformer", features=4)
    x = drawn(BATCH, 3 * SEGMENT, 4)
    changed = x.clone()
    changed[:, 2 * SEGMENT - 1] += 1.0
    moved = (model(changed) - model(x)).abs().amax(dim=(0, 2))
    assert (moved[:SEGMENT] == 0).all()
    assert (moved[SEGMENT : 2 * SEGMENT] > 1e-6).all()


def pair(time: int) -> dict[str, Tensor]:
    return {"source": tokens(time, seed=4), "target": tokens(time, seed=5)}


@pytest.mark.parametrize("place", range(SEGMENT, 2 * SEGMENT))
def test_decoder_is_causal_in_its_target_and_sees_the_whole_source_segment(place: int) -> None:
    model = built("memformer-seq2seq", vocab=11)
    x = pair(3 * SEGMENT)
    y = model(x)
    target = {**x, "target": x["target"].clone()}
    target["target"][:, place] = (x["target"][:, place] + 1) % 11
    moved = (model(target) - y).abs().amax(dim=(0, 2))
    assert (moved[:place] == 0).all() and (moved[place : 2 * SEGMENT] > 1e-9).all()
    assert (moved[2 * SEGMENT :] == 0).all()  # the memory is of the source alone
    source = {**x, "source": x["source"].clone()}
    source["source"][:, place] = (x["source"][:, place] + 1) % 11
    moved = (model(source) - y).abs().amax(dim=(0, 2))
    assert (moved[:SEGMENT] == 0).all() and (moved[SEGMENT:] > 1e-12).all()


@pytest.mark.parametrize("time", [1, 2 * SEGMENT + 3])
def test_encoder_decoder_whole_sequence_equals_padded_segments(time: int) -> None:
    model = built("memformer-seq2seq", vocab=11)
    x = pair(time)
    y, state = scan(model, x, sizes=[2 * SEGMENT, SEGMENT])
    torch.testing.assert_close(y, model(x), **CLOSE)
    torch.testing.assert_close(state, scan(model, x)[1], **CLOSE)


def test_cell_streams_alone() -> None:
    torch.manual_seed(0)
    cell = MemoryEncoder(1, WIDTH, HEADS, SLOTS, SEGMENT, 2 * WIDTH, 0.5).double()
    x = drawn(BATCH, 2 * SEGMENT + 1, WIDTH)
    first, state = scan(cell, x[:, :SEGMENT])
    second, _ = scan(cell, x[:, SEGMENT:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), cell(x), **CLOSE)


def test_language_model_size_and_ports() -> None:
    spec = models.MODELS[-1]
    model = spec.build(spec.config())
    assert 2.0e6 < sum(p.numel() for p in model.parameters()) < 2.2e6
    (port,) = model.inputs
    assert (port.encoding, port.low, port.high, model.segment_length) == ("bytes", 0, 255, 128)
    assert built("lm-memformer", vocab=11).inputs[0].encoding is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("memformer", {"heads": 5}, r"width must be a multiple of heads, got width=12 and heads=5"),
        ("memformer", {"vocab": 1}, r"vocab must be at least 2, got 1"),
        ("memformer", {"features": 0}, r"features must be at least 1, got 0"),
        ("lm-memformer", {"vocab": 0}, r"vocab must be at least 2, got 0"),
        ("lm-memformer", {"slots": 0}, r"slots must be at least 1, got 0"),
        ("memformer-seq2seq", {"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
    ],
)
def test_sizes_that_cannot_work_are_refused(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(name, **settings)


def test_decoder_attends_the_whole_source_segment_at_every_place() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(WIDTH, HEADS, 2 * WIDTH).double()
    x, encoded = drawn(BATCH, SEGMENT, WIDTH), drawn(BATCH, SEGMENT, WIDTH, seed=1)
    for place in range(SEGMENT):
        changed = encoded.clone()
        changed[:, place] += 0.5
        assert ((layer(x, changed, None) - layer(x, encoded, None)).abs().amax(dim=2) > 1e-9).all()
