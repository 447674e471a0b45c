"""RWKV-4: public checkpoints as they lie, and numbers that would overflow an unstable recurrence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgemem.cells.rwkv4 import BLOCK, ChannelMix, TimeMix
from edgemem.errors import CheckpointError
from edgemem.models import build_model
from edgemem.module import StreamingModule, chunk, scan, start_state, unrolled

SIZES = {"layers": 2, "width": 8, "vocab": 11, "ffn": 24}


def checkpoint(tied: bool = False, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A checkpoint in the public layout, random."""
    generator = torch.Generator().manual_seed(1)
    d, f, v = 8, 24, 11
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (v, d), "ln_out.weight": (d,), "ln_out.bias": (d,)}
    if not tied:
        shapes["head.weight"] = (v, d)
    for n in range(2):
        block = f"blocks.{n}."
        for norm in ("ln0", "ln1", "ln2") if n == 0 else ("ln1", "ln2"):
            shapes |= {f"{block}{norm}.weight": (d,), f"{block}{norm}.bias": (d,)}
        shapes |= {f"{block}att.time_decay": (d,), f"{block}att.time_first": (d,)}
        shapes |= {f"{block}att.time_mix_{c}": (1, 1, d) for c in "kvr"}
        shapes |= {f"{block}att.{m}.weight": (d, d) for m in ("key", "value", "receptance", "output")}
        shapes |= {f"{block}ffn.time_mix_{c}": (1, 1, d) for c in "kr"}
        shapes |= {f"{block}ffn.key.weight": (f, d), f"{block}ffn.value.weight": (d, f)}
        shapes |= {f"{block}ffn.receptance.weight": (d, d)}
    return {name: torch.randn(shape, generator=generator).mul(0.4).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_public_checkpoints_load_as_they_are(tied: bool, suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors, path = checkpoint(tied, dtype), tmp_path / f"m{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    module, facts = build_model("rwkv4", checkpoint=path)
    assert facts["config"] == {**SIZES, "tied": tied}
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(tensor, tensors[name].float(), rtol=0, atol=0)
    assert set(module.state_dict()) == set(tensors)


def test_both_models_read_their_settings_off_a_checkpoint(tmp_path: Path) -> None:
    save_file(checkpoint(), tmp_path / "m.safetensors")
    module, facts = build_model("lm-rwkv4", checkpoint=tmp_path / "m.safetensors")
    assert facts["config"] == {**SIZES, "tied": False}
    assert module.inputs[0].encoding is None, "11 tokens are not bytes"
    assert build_model("lm-rwkv4", {"layers": 1, "width": 8})[0].inputs[0].encoding == "bytes"


def test_the_byte_model_has_two_million_parameters() -> None:
    count = sum(parameter.numel() for parameter in build_model("lm-rwkv4")[0].parameters())
    assert 1.8e6 < count < 2.2e6


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must never run",)


def test_a_pth_file_with_code_is_refused_unrun(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({**checkpoint(), "extra": Harmful()}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"not a \.pth file of tensors alone"):
        build_model("rwkv4", checkpoint=tmp_path / "m.pth")
    assert "must never run" not in capfd.readouterr().out


def test_checkpoints_that_do_not_fit_name_the_tensor(tmp_path: Path) -> None:
    def refused(change: dict[str, Tensor | None], **settings: object) -> str:
        tensors = {k: v for k, v in {**checkpoint(), **change}.items() if v is not None}
        save_file(tensors, tmp_path / "m.safetensors")
        with pytest.raises(CheckpointError) as caught:
            build_model("rwkv4", settings, checkpoint=tmp_path / "m.safetensors")
        return str(caught.value)

    assert "lacks blocks.1.att.time_first [8]" in refused({"blocks.1.att.time_first": None})
    assert "blocks.0.ln1.bias must have shape [8], got [9]" in refused({"blocks.0.ln1.bias": torch.zeros(9)})
    assert "holds other.weight" in refused({"other.weight": torch.zeros(1)})
    assert "no matrix emb.weight" in refused({"emb.weight": None})
    assert "must have shape" in refused({}, width=16)
    (tmp_path / "m.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        build_model("rwkv4", checkpoint=tmp_path / "m.safetensors")


def test_extreme_keys_and_decays_stay_finite_and_agree() -> None:
    torch.manual_seed(0)
    cell = TimeMix(16).double()
    with torch.no_grad():
        cell.key.weight.mul_(400.0)  # keys beyond +-200: exp of them overflows
        cell.time_decay.copy_(torch.linspace(-12.0, 4.0, 16))
        cell.time_first.mul_(30.0)
        x = torch.randn(2, 90, 16, dtype=torch.float64)
        y = cell(x)
        stepped, _ = scan(cell, x, sizes=[1])
    assert torch.isfinite(y).all() and y.abs().max() > 0.1
    torch.testing.assert_close(stepped, y, rtol=1e-10, atol=1e-10)
    single = cell.float()
    with torch.no_grad():
        assert torch.isfinite(single(x.float())).all()


def test_keys_of_sixty_agree_in_single_precision() -> None:
    torch.manual_seed(0)
    cell, x = TimeMix(16), torch.randn(2, 3 * BLOCK, 16)
    with torch.no_grad():
        past = torch.cat([torch.zeros(2, 1, 16), x[:, :-1]], dim=1)
        cell.key.weight.mul_(60.0 / cell._projected(x, past)[1].abs().max())
        cell.time_decay.copy_(torch.linspace(-12.0, 8.0, 16))
        y = cell(x)
        for sizes in ([1], [1, 40, 7]):
            streamed, _ = scan(cell, x, sizes=sizes)
            # an exponent near 60 is known to 4e-6, and so is its power: that, twice, and the sums
            assert (streamed - y).abs().max() <= 1e-5 * y.abs().max()


def test_gradients_of_both_forms_agree() -> None:
    torch.manual_seed(0)
    cell = TimeMix(6).double()
    x = torch.randn(2, BLOCK + 8, 6, dtype=torch.float64, requires_grad=True)
    wanted = [x, *cell.parameters()]
    parallel = torch.autograd.grad(cell(x).square().sum(), wanted)
    stepped = torch.autograd.grad(unrolled(cell, x, start_state(cell, 2))[0].square().sum(), wanted)
    for ours, reference in zip(parallel, stepped, strict=True):
        assert reference.abs().max() > 0
        assert (ours - reference).abs().max() <= 1e-10 * reference.abs().max()  # float64, sums in another order


@pytest.mark.parametrize("cell", [TimeMix(6), ChannelMix(6, 10)], ids=["time", "channel"])
def test_padding_of_frames_never_reaches_outputs_or_state(cell: StreamingModule) -> None:
    """Token models never see NaN; a cell of a sensor model does."""
    real, time = 3, BLOCK + 2
    x = torch.randn(1, time, 6, generator=torch.Generator().manual_seed(0))
    x[:, real:] = float("nan")
    with torch.no_grad():
        y, after = chunk(cell, x, start_state(cell), torch.tensor([real]))
        wanted, state = chunk(cell, x[:, :real], start_state(cell))
    torch.testing.assert_close(y[:, :real], wanted, rtol=1e-5, atol=1e-6)
    for name, tensor in state.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-6)
