"""Folding attention: what folding saves, who attends whom, how look-ahead flushes, what padding must not touch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgemem.audio import FrontEnd
from edgemem.cells.folding import FoldingEncoder, FoldingLayer
from edgemem.errors import ConfigError, InputError
from edgemem.models import folding as models
from edgemem.module import declared_states, scan
from edgemem.tasks import words

WIDTH, HEADS, SEGMENT, LEFT, BATCH = 16, 2, 4, 5, 2
SIZES = {"layers": 2, "width": WIDTH, "heads": HEADS, "segment": SEGMENT, "left": LEFT, "features": 3}
# forms differ by summation order alone
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def built(name: str = "folding", **settings: object) -> models.Folding:
    spec = next(spec for spec in models.MODELS if spec.name == name)
    torch.manual_seed(3)
    module = spec.build(spec.config(**{**SIZES, "look_ahead": 2, **settings})).double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def sees(time: int, ahead: int, left: int = LEFT) -> Tensor:
    """[time, time] true where the frame of a row attends the frame of a column: by the timetable of segments alone."""
    allowed = torch.zeros(time, time, dtype=torch.bool)
    for query in range(time):
        first = (query + ahead) // SEGMENT * SEGMENT - ahead  # of the segment's centre
        for key in range(time):
            allowed[query, key] = first - left <= key < first + SEGMENT + ahead
    return allowed


def ordinary_layer(layer: FoldingLayer, x: Tensor, ahead: int, fold: int) -> Tensor:
    """One encoder layer on whole sequences, on torch's own attention; sub-tokens are tokens with a common place."""
    time, sub = x.shape[1], WIDTH // fold
    u = layer.attend_norm(x).reshape(BATCH, time * fold, sub)
    attend = layer.attend
    q, k, v = (
        project(u).reshape(BATCH, time * fold, HEADS, sub // HEADS).transpose(1, 2)
        for project in (attend.query, attend.key, attend.value)
    )
    nearest = attend.distance.shape[1] - SEGMENT - ahead  # the entry of distance 0
    bias = torch.full((HEADS, time, time), -math.inf, dtype=x.dtype)
    allowed = sees(time, ahead)
    for query in range(time):
        for key in range(time):
            if allowed[query, key]:
                bias[:, query, key] = attend.distance[:, nearest + key - query]
    bias = bias.repeat_interleave(fold, dim=1).repeat_interleave(fold, dim=2)
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    x = x + attend.out(y.transpose(1, 2).reshape(BATCH, time * fold, sub)).reshape(BATCH, time, WIDTH)
    u = layer.feed_norm(x).reshape(BATCH, time * fold, sub)
    return x + layer.feed.reduce(torch.relu(layer.feed.expand(u))).reshape(BATCH, time, WIDTH)


@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize("ahead", [0, 1, 4, 6])
def test_a_layer_is_masked_attention_over_sub_tokens(fold: int, ahead: int) -> None:
    torch.manual_seed(1)
    encoder = FoldingEncoder(1, WIDTH, HEADS, 2 * WIDTH, fold, SEGMENT, LEFT, ahead).double()
    x = drawn(BATCH, 15, WIDTH)
    wanted = encoder.norm(ordinary_layer(encoder.layers[0], x, ahead, fold))
    torch.testing.assert_close(encoder(x), wanted, **CLOSE)


def stacked(encoder: FoldingEncoder, x: Tensor, ahead: int) -> Tensor:
    """Two ordinary layers, segment by segment, each right context encoded again with its segment."""
    time = x.shape[1]
    first, second = encoder.layers
    rows = []
    for start in range(-ahead, time, SEGMENT):
        end = min(start + SEGMENT + ahead, time)
        if start + SEGMENT <= 0:
            continue
        past = torch.cat([final_rows(first, x, ahead), ordinary_layer_window(first, x, start, end, ahead)], dim=1)
        past = torch.cat([past[:, : max(start, 0)], past[:, -(end - max(start, 0)) :]], dim=1)
        rows.append(ordinary_layer_window(second, past, start, min(start + SEGMENT, time), ahead))
    return encoder.norm(torch.cat(rows, dim=1))


def final_rows(layer: FoldingLayer, x: Tensor, ahead: int) -> Tensor:
    """The layer's output for every frame as part of its own centre."""
    return ordinary_layer(layer, x, ahead, 1)


def ordinary_layer_window(layer: FoldingLayer, x: Tensor, start: int, end: int, ahead: int) -> Tensor:
    """The layer's outputs for the frames from `start` to `end`, all of one segment's window whose centre is `start`."""
    attend, first = layer.attend, max(start, 0)
    u = layer.attend_norm(x)
    low, high = max(start - LEFT, 0), min(start + SEGMENT + ahead, x.shape[1])
    q, k, v = attend.query(u[:, first:end]), attend.key(u[:, low:high]), attend.value(u[:, low:high])
    q, k, v = (t.reshape(BATCH, t.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2) for t in (q, k, v))
    nearest = attend.distance.shape[1] - SEGMENT - ahead
    place = torch.arange(low, high)[None] - torch.arange(first, end)[:, None] + nearest
    y = functional.scaled_dot_product_attention(q, k, v, attn_mask=attend.distance[:, place])
    x = x[:, first:end] + attend.out(y.transpose(1, 2).reshape(BATCH, end - first, WIDTH))
    return x + layer.feed.reduce(torch.relu(layer.feed.expand(layer.feed_norm(x))))


@pytest.mark.parametrize(("ahead", "time"), [(0, 13), (1, 14), (3, 11), (4, 12)])
def test_right_context_is_encoded_again_with_every_segment(ahead: int, time: int) -> None:
    torch.manual_seed(1)
    encoder = FoldingEncoder(2, WIDTH, HEADS, 2 * WIDTH, 1, SEGMENT, LEFT, ahead).double()
    x = drawn(BATCH, time, WIDTH)
    torch.testing.assert_close(encoder(x), stacked(encoder, x, ahead), **CLOSE)


def linear_costs(fold: int, ffn_fold: int = 0) -> tuple[int, int]:
    """Weights in the matrices of the encoder's layers, and multiplications with them in one segment."""
    module, macs = built(fold=fold, ffn_fold=ffn_fold), [0]

    def count(layer: nn.Module, _: object, y: Tensor) -> None:
        macs[0] += layer.weight.numel() * y.numel() // y.shape[-1]

    matrices = [part for part in module.encoder.layers.modules() if isinstance(part, nn.Linear)]
    for part in matrices:
        part.register_forward_hook(count)
    module.step(drawn(1, SEGMENT, 3), module.start(1))
    return sum(part.weight.numel() for part in matrices), macs[0]


@pytest.mark.parametrize("fold", [2, 4, 8])
def test_weights_shrink_by_the_square_and_multiplications_by_the_factor(fold: int) -> None:
    weights, macs = linear_costs(1)
    assert linear_costs(fold) == (weights // fold**2, macs // fold)


def test_folding_attention_alone_saves_a_quarter() -> None:
    """Of a layer's weights 4 width^2 are attention's, 8 width^2 the feed-forward's; of the former 1/4 stay."""
    weights, macs = linear_costs(1)
    folded, fewer = linear_costs(2, ffn_fold=1)
    assert folded * 4 == weights * 3 and fewer < macs
    assert linear_costs(2, ffn_fold=2) == linear_costs(2)


def test_state_is_the_same_at_any_fold() -> None:
    assert declared_states(built(fold=4)) == declared_states(built(fold=1))


@pytest.mark.parametrize("fold", [1, 4])
@pytest.mark.parametrize("ahead", [0, 2, 4, 7])
@pytest.mark.parametrize("time", [1, 3, 8, 22])
def test_streamed_and_flushed_equals_whole(fold: int, ahead: int, time: int) -> None:
    module, x = built(fold=fold, look_ahead=ahead), drawn(BATCH, time, 3)
    y = module(x)
    assert y.shape == (BATCH, time, WIDTH)
    for sizes in ([SEGMENT], [3 * SEGMENT], [2 * SEGMENT, SEGMENT]):
        torch.testing.assert_close(scan(module, x, sizes=sizes)[0], y, **CLOSE)


@pytest.mark.parametrize("fold", [1, 2])
def test_segments_side_by_side_leave_the_state_of_steps(fold: int) -> None:
    module, x = built(fold=fold), drawn(BATCH, 6 * SEGMENT, 3)
    y, at_once = module.chunk(x, module.start(BATCH))
    state, rows = module.start(BATCH), []
    for at in range(0, 6 * SEGMENT, SEGMENT):
        row, state = module.step(x[:, at : at + SEGMENT], state)
        rows.append(row)
    torch.testing.assert_close(torch.cat(rows, dim=1), y, **CLOSE)
    assert list(state) == list(at_once) == list(module.start(BATCH))
    torch.testing.assert_close(state, at_once, **CLOSE)


@pytest.mark.parametrize("ahead", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_frame_sees_to_the_end_of_its_segments_right_context(ahead: int, layers: int) -> None:
    """The last frame of a centre sees exactly `ahead` frames; how many layers there are adds nothing."""
    module, time = built(look_ahead=ahead, layers=layers), 5 * SEGMENT
    x = drawn(BATCH, time, 3)
    y = module(x)
    for place in range(SEGMENT, 4 * SEGMENT):
        changed = x.clone()
        changed[:, place] += 1.0
        moved = (module(changed) - y).abs().amax(dim=(0, 2))
        for row in range(max(0, place - ahead - SEGMENT), place + 1):
            visible = (row + ahead) // SEGMENT * SEGMENT + SEGMENT
            assert (moved[row] > 1e-9) == (place < visible), (place, row)
        assert (moved[: max(0, place - ahead - SEGMENT)] == 0).all()


def test_one_layer_forgets_what_left_its_cache() -> None:
    module, time = built(layers=1), 6 * SEGMENT
    x = drawn(BATCH, time, 3)
    allowed = sees(time, 2)
    for place in range(time):
        changed = x.clone()
        changed[:, place] += 1.0
        moved = (module(changed) - module(x)).abs().amax(dim=(0, 2)) > 1e-9
        assert torch.equal(moved, allowed[:, place])


def test_rows_before_the_stream_are_look_ahead_many() -> None:
    module, x = built(), drawn(BATCH, 3 * SEGMENT, 3)
    emitted, _ = module.chunk(x, module.start(BATCH))
    torch.testing.assert_close(emitted[:, 2:], module(x)[:, :-2], **CLOSE)


def test_an_endless_stream_saturates_and_knows_no_place() -> None:
    module, time = built(), 40 * SEGMENT
    x, state = drawn(BATCH, time, 3), built().start(BATCH)
    assert (state["encoder.real"] == 0).all()
    rows = []
    for at in range(0, time, SEGMENT):
        y, state = module.step(x[:, at : at + SEGMENT], state)
        rows.append(y)
        seen = min(at + SEGMENT, LEFT + 2)
        assert (state["encoder.real"][:, LEFT + 2 - seen :] == 1).all()
        assert (state["encoder.real"][:, : LEFT + 2 - seen] == 0).all()
    late, alone = torch.cat(rows, dim=1), module(x[:, -10 * SEGMENT :])  # two layers see 2 * (LEFT + SEGMENT) back
    torch.testing.assert_close(late[:, -2 * SEGMENT :], alone[:, -2 * SEGMENT - 2 : -2], **CLOSE)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_real_is_never_attended(seed: int) -> None:
    module, x = built(), drawn(BATCH, 2 * SEGMENT, 3)
    draw = torch.Generator().manual_seed(seed)
    state = {k: drawn(BATCH, *s.shape, seed=seed) for k, s in declared_states(module).items()}
    state["encoder.real"] = torch.randint(2, state["encoder.real"].shape, generator=draw).double()
    hidden = state["encoder.real"] == 0
    other = dict(state)
    for name, mask in {"layers.0.attend.keys": hidden[:, :LEFT], "layers.1.attend.values": hidden[:, :LEFT]}.items():
        value = state[f"encoder.{name}"]
        other[f"encoder.{name}"] = torch.where(mask[:, :, None], 9.0, value)
    y, _ = module.chunk(x, state)
    assert y.isfinite().all()
    assert torch.equal(module.chunk(x, other)[0], y)
    tail = torch.where(hidden[:, LEFT:, None], 9.0, state["encoder.tail"])
    moved = (module.chunk(x, {**state, "encoder.tail": tail})[0] - y).abs().amax(dim=2)
    assert torch.equal(moved[:, :2] > 0, hidden[:, LEFT:])  # their own rows alone, which nobody reads
    assert (moved[:, 2:] == 0).all()


@pytest.mark.parametrize("real", range(2 * SEGMENT + 1))
def test_padding_of_nan_leaks_nowhere(real: int) -> None:
    module, x = built(), drawn(BATCH, 2 * SEGMENT, 3)
    head, state = module.chunk(x, module.start(BATCH))
    tail = drawn(BATCH, 2 * SEGMENT, 3, seed=1)
    whole = module(torch.cat([x, tail[:, :real]], dim=1))
    tail[:, real:] = float("nan")
    last, state = module.chunk(tail, state, torch.full((BATCH,), real))
    nothing = torch.full((BATCH, SEGMENT, 3), float("nan"), dtype=torch.float64)
    flushed, state = module.step(nothing, state, torch.zeros(BATCH, dtype=torch.int64))
    for _ in range(3):  # nothing real is left to attend
        _, state = module.step(nothing, state, torch.zeros(BATCH, dtype=torch.int64))
    rows = torch.cat([head, last, flushed], dim=1)
    assert rows.isfinite().all() and all(value.isfinite().all() for value in state.values())
    torch.testing.assert_close(rows[:, 2 : 2 + 2 * SEGMENT + real], whole, **CLOSE)
    assert (state["encoder.real"] == 0).all()


def test_each_stream_of_a_batch_has_its_own_count() -> None:
    module, counts = built(), (SEGMENT, 0, 2)
    x = drawn(3, SEGMENT, 3)
    for row, count in enumerate(counts):
        x[row, count:] = float("nan")
    y, after = module.step(x, module.start(3), torch.tensor(counts))
    for row, count in enumerate(counts):
        alone, state = module.step(x[row : row + 1], module.start(1), torch.tensor([count]))
        torch.testing.assert_close(y[row : row + 1], alone, **CLOSE)
        torch.testing.assert_close({k: v[row : row + 1] for k, v in after.items()}, state, **CLOSE)


def test_a_gap_is_not_attended() -> None:
    """A short segment in mid-stream: frames after it see the gap's length, not its content."""
    module, x = built(), drawn(BATCH, 3 * SEGMENT, 3)
    valid = torch.full((BATCH,), 1)
    _, state = module.step(x[:, :SEGMENT], module.start(BATCH), valid)
    assert (state["encoder.real"][0] == torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])).all()
    y, _ = module.chunk(x[:, SEGMENT:], state)
    x[:, 1:SEGMENT] = 5.0
    _, state = module.step(x[:, :SEGMENT], module.start(BATCH), valid)
    assert torch.equal(module.chunk(x[:, SEGMENT:], state)[0], y)


def test_every_parameter_learns() -> None:
    module = built("asr-folding", features=12, vocab=5)
    module(drawn(BATCH, 8 * SEGMENT, 12)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert (parameter.grad.abs() > 0).any(), name


def test_speech_model_size_ports_and_time() -> None:
    spec = models.MODELS[-1]
    module = spec.build(spec.config())
    assert 0.3e6 < sum(parameter.numel() for parameter in module.parameters()) < 0.5e6
    (features,), (logits,) = module.inputs, module.outputs
    front_end = FrontEnd.from_dict(features.frontend)
    assert (front_end.width, front_end.mels, front_end.stack) == (240, 40, 6) == (*features.shape, 40, 6)
    assert front_end.hop_samples * front_end.stack / front_end.sample_rate == module.seconds_per_frame
    assert logits.labels == words.LABELS and logits.shape == (21,)
    characters = spec.build(spec.config(layers=1, vocab=29)).outputs[0].labels
    assert characters is not None and set("set a timer for o'clock seven") <= set(characters)
    assert built("asr-folding", features=12, vocab=5).outputs[0].labels is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fold": 3}, r"width must be a multiple of fold, got width=16 and fold=3"),
        ({"fold": 4, "ffn": 30}, r"ffn must be a multiple of fold, got ffn=30 and fold=4"),
        ({"fold": 2, "ffn_fold": 4, "ffn": 30}, r"ffn must be a multiple of ffn_fold, got ffn=30 and ffn_fold=4"),
        ({"ffn_fold": 3, "ffn": 30}, r"width must be a multiple of ffn_fold, got width=16 and ffn_fold=3"),
        ({"fold": 8, "heads": 4}, r"heads must divide width / fold, got heads=4, width=16 and fold=8, that is 2"),
        ({"left": 0}, r"left must be at least 1, got 0"),
        ({"look_ahead": -1}, r"look_ahead must be at least 0, got -1"),
        ({"segment": 1}, r"segment must be at least 2, got 1"),
    ],
)
def test_sizes_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built(**settings)


def test_speech_features_are_those_of_whole_frames() -> None:
    with pytest.raises(ConfigError, match=r"features must be a multiple of 6, got 10"):
        built("asr-folding", features=10, vocab=5)


def test_half_a_segment_is_refused() -> None:
    module = built()
    with pytest.raises(InputError, match="segments of 4 frames were wanted, 6 frames came"):
        module.chunk(drawn(BATCH, 6, 3), module.start(BATCH))


@pytest.mark.parametrize("chunk", [1, 2])
def test_exported_file_streams_and_flushes(tmp_path: Path, chunk: int) -> None:
    from edgemem.export import to_onnx
    from edgemem.program import load

    module, x = built().float(), drawn(1, 27, 3).float()
    to_onnx(module, None, tmp_path / "folding.onnx", chunk=chunk)
    stream = load(tmp_path / "folding.onnx").stream()
    pieces = [stream.push(piece.numpy()) for piece in x[0].split([3, 11, 1, 12])]
    rows = np.concatenate([rows.values for rows in (*pieces, stream.flush())])
    with torch.no_grad():
        wanted = module(x)[0].numpy()
    assert rows.shape == wanted.shape
    # float32 in another order of sums
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
