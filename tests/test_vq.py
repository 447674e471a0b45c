"""k-means, vector codes of weights, vector codes of the memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemem import load
from edgemem.errors import UsageError
from edgemem.modelfile import open_model
from edgemem.narrow import as_parent
from edgemem.quant import memory_tuning, memory_vq, quantize
from edgemem.quant.calibration import Calibration, read
from edgemem.quant.kmeans import assigned, kmeans
from edgemem.quant.scheme import Job, parsed
from edgemem.quant.vq import encoded
from edgemem.trial import poisoned
from edgemem.verify import verify
from tests.quantizing import Files, random_data

pytestmark = pytest.mark.usefixtures("short_calibration")


def test_centres_are_as_good_as_scikit_learns() -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    points = np.random.default_rng(0).standard_normal((2000, 3)).astype(np.float32)
    theirs = cluster.KMeans(16, n_init=1, random_state=0).fit(points).inertia_
    assert assigned(points, kmeans(points, 16))[1].sum() < 1.1 * theirs


def test_weights_draw_the_centres() -> None:
    """The oracle: the weighted error of the centres, against those that were found without weights."""
    rng = np.random.default_rng(1)
    points, weights = rng.standard_normal((1500, 2)).astype(np.float32), rng.uniform(0.01, 1, (1500, 2)) ** 3
    with_them, without = kmeans(points, 8, weights), kmeans(points, 8)
    assert assigned(points, with_them, weights)[1].sum() < assigned(points, without, weights)[1].sum()
    labels, errors = assigned(points, with_them, weights)
    wanted = (weights[:, None] * (points[:, None] - with_them[None]) ** 2).sum(axis=2)
    np.testing.assert_allclose(errors, wanted.min(axis=1), rtol=1e-3, atol=1e-6)
    assert (wanted[np.arange(1500), labels] <= wanted.min(axis=1) * (1 + 1e-3) + 1e-6).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.sampled_from([2, 16, 64]))
def test_codes_are_never_worse_than_k_means_itself(seed: int, dim: int, codes: int) -> None:
    """float16 codebooks are assigned anew, so that rounding them costs next to nothing."""
    rows = np.random.default_rng(seed).standard_normal((12, 8)).astype(np.float32)
    (coded,) = encoded([rows], dim, codes, seed=seed)
    scale = coded.scale.astype(np.float64)[:, None]
    points = (rows / scale).reshape(-1, dim)
    own = assigned(points, kmeans(points, codes, seed=seed))[1].sum()
    found = (((coded.decoded() - rows) / scale) ** 2).sum()
    assert found <= own * 1.01 + 1e-3


def test_each_residual_codebook_makes_the_error_smaller() -> None:
    rows = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    errors = [np.mean((encoded([rows], 4, 64, residual)[0].decoded() - rows) ** 2) for residual in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 4]), st.sampled_from([2, 16, 64]), st.booleans(), st.booleans())
def test_mirrored_codebooks(seed: int, dim: int, codes: int, weighted: bool, repeated: bool) -> None:
    """Negations to the last bit, also where points are fewer than entries; no worse than half as many free entries,
    of which each may be one of a pair.
    """
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((12, 8)).astype(np.float32)
    if repeated:
        rows = (rows[:1] * rng.choice([-1, 0, 1], (12, 1))).astype(np.float32)
    moments = [rng.uniform(0.1, 10, 8)] if weighted else [None]
    (coded,) = encoded([rows], dim, codes, moments=moments, seed=seed, mirrored=True)
    assert coded.books.shape == (1, codes, dim)
    np.testing.assert_array_equal(coded.books[:, codes // 2 :], -coded.books[:, : codes // 2])
    points, h = rng.standard_normal((200, dim)), rng.uniform(0.1, 10, (200, dim)) if weighted else None
    pairs, free = kmeans(points, codes, h, seed, mirrored=True), kmeans(points, codes // 2, h, seed)
    assert assigned(points, pairs, h)[1].sum() <= assigned(points, free, h)[1].sum() * 1.001
    assert not np.isnan(coded.decoded()).any()


def test_mirrored_codes_are_about_as_good_as_free_ones() -> None:
    """Of weights that are as often of one sign as of the other."""
    rows = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)
    free, mirrored, half = (
        np.mean((encoded([rows], 4, codes, mirrored=m)[0].decoded() - rows) ** 2)
        for codes, m in ((64, False), (64, True), (32, False))
    )
    assert mirrored < 1.03 * free < 0.9 * half


def test_codebooks_stay_mirrored_when_they_are_trained(models: Path, tmp_path: Path) -> None:
    """Each of them in the file, and the model is better for it: else what was trained would have been dropped."""
    out = tmp_path / "q.onnx"
    report = quantize(models / "k.onnx", out, "vq:dim=8,codes=64,residual=2,mirror=1,tune=3", steps=10)
    assert not any("tuning" in warning for warning in report.warnings)
    books = [value.numpy() for name, value in open_model(out).onnx.initializers.items() if ".book" in name]
    assert len(books) >= 4
    for book in books:
        np.testing.assert_array_equal(book[32:], -book[:32])


@pytest.mark.parametrize(("scheme", "came"), [("codes=255,mirror=1", "codes=255"), ("codes=16,mirror=2", "mirror=2")])
def test_what_cannot_be_mirrored(scheme: str, came: str) -> None:
    with pytest.raises(UsageError, match=rf"even number of codes, was wanted, .*{came}.* came; for example vq:"):
        parsed(f"vq:dim=4,{scheme}")


def test_codes_and_codebooks_survive_the_file(models: Path, tmp_path: Path) -> None:
    """What NumPy decodes from the file's constants, two-byte codes, is what the report said, tensor by tensor."""
    report = quantize(models / "k.onnx", tmp_path / "q.onnx", "vq:dim=8,codes=300,residual=2", steps=20)
    before, after = open_model(models / "k.onnx").onnx.initializers, open_model(tmp_path / "q.onnx").onnx.initializers
    coded = [choice for choice in report.tensors if choice.choice.startswith("codes")]
    assert len(coded) > 8
    for choice in coded:
        owner = choice.choice.split(" entries of ")[1]
        terms = [
            after[f"{owner}.book{s}"].numpy().astype(np.float32)[after[f"{choice.name}.codes{s}"].numpy()]
            for s in (".0", ".1")
        ]
        assert after[f"{choice.name}.codes.0"].dtype == "uint16"
        scale = after[f"{choice.name}.scale.rows"].numpy().astype(np.float32)
        rows = sum(terms[1:], terms[0]).reshape(len(scale), -1) * scale
        error = np.abs(rows.T - before[choice.name].numpy()).max()
        assert error == pytest.approx(choice.max_abs_error, rel=1e-5)


def test_two_bits_take_a_tenth(models: Path, tmp_path: Path) -> None:
    report = quantize(models / "k.onnx", tmp_path / "q.onnx", "vq:dim=4,codes=256", steps=20)
    assert report.ratio < 0.1


def test_memory_as_codes(zoo: Files, tmp_path: Path) -> None:
    parent, out = zoo("memformer"), tmp_path / "q.onnx"
    data = random_data(parent, tmp_path / "x.npz", 512)
    report = quantize(parent, out, "memory-vq:dim=4,codes=64", calibrate=data, steps=50)
    assert report.state_bytes_before == 16 * report.state_bytes_after  # one byte for four float32
    assert verify(out, 50, reference=parent).ok
    assert all(a.tobytes() == b.tobytes() for _, a, b in poisoned(load(out), 8))
    view = as_parent(open_model(out), load(out), load(parent))
    state = view.new_state()
    held = state.get()
    state.set(held)
    for name, value in state.get().items():  # what codes can hold comes back as it was
        np.testing.assert_array_equal(value, held[name])


def test_vectors_as_codes_come_with_a_warning(zoo: Files, tmp_path: Path) -> None:
    """A model without slots or caches: it still runs, and is told what that costs and what to do instead."""
    data = random_data(zoo("lmu"), tmp_path / "x.npz")
    report = quantize(zoo("lmu"), tmp_path / "q.onnx", "memory-vq:dim=4,codes=16", calibrate=data, steps=20)
    assert report.state_bytes_after < report.state_bytes_before
    (warning,) = [text for text in report.warnings if "slots" in text]
    assert "lmu keeps no slots and no caches" in warning and "layers.0.memory" in warning and "--state auto" in warning
    slots = quantize(
        zoo("memformer"),
        tmp_path / "m.onnx",
        "memory-vq:dim=4,codes=16",
        calibrate=random_data(zoo("memformer"), tmp_path / "y.npz"),
        steps=20,
    )
    assert not any("slots" in text for text in slots.warnings)


def test_a_bar_hears_of_every_stage(models: Path, tmp_path: Path) -> None:
    """Shares never go back within a stage, and the stages come in the order of the work."""
    heard: list[tuple[str, float]] = []

    def tick(stage: str, share: float) -> None:
        heard.append((stage, share))

    quantize(models / "k.onnx", tmp_path / "q.onnx", "vq:dim=8,codes=64,tune=2", steps=10, tick=tick)
    stages = list(dict.fromkeys(stage for stage, _ in heard))
    assert stages == ["calibrating", "coding", "tuning", "comparing"]
    for stage in stages:
        shares = [share for name, share in heard if name == stage]
        assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert sum(stage == "comparing" for stage, _ in heard) == 10 and heard[-1] == ("comparing", 1.0)


def test_a_memory_is_trained_by_what_it_does_to_the_outputs(zoo: Files, tmp_path: Path) -> None:
    """Entries move, the distance on windows that were held out becomes smaller, and an empty cache stays exact."""
    parent = zoo("folding")
    contract = open_model(parent).contract
    job = Job(ir.load(parent), contract, parent, {})
    job.calibration = Calibration(job.model, contract, read(random_data(parent, tmp_path / "x.npz", 1024), contract))
    caches = [s for s in contract.states if s.role == "cache"]
    seen = memory_vq.rolled(job, caches, {})
    books = {s.name: memory_vq.fitted(seen[s.name], s, 4, 8, 0) for s in caches}
    after = memory_tuning.tuned(job, books, 15, 0)
    assert not job.warnings and any((after[name] != book).any() for name, book in books.items())
    assert all((book[:, 0] == 0).all() for book in after.values())


def test_the_nearest_entry_and_its_gradient() -> None:
    book = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    entry = memory_tuning.nearest(value, book)
    np.testing.assert_array_equal(entry.detach(), memory_vq.decoded(value.numpy(), book.detach().numpy()))
    entry.sum().backward()
    assert book.grad is not None and float(book.grad.sum()) == entry.numel()
